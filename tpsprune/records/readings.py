"""What is read while training, and what was decided on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Interval
from pydantic import Field

from tpsprune.records.serial import AtLeastZero, Natural, Text
from tpsprune.records.strict import LARGEST


class Status(StrEnum):
    """Why a reading has, or has not, a value: a reading is never silently missing."""

    OK = "ok"
    NOT_YET = "not-yet-defined"
    NOT_FINITE = "not-finite"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number read at one step: ``signal`` of ``group`` (empty: of the whole model).

    ``value`` is ``None`` unless ``status`` is ``OK``; ``reason`` is then the cause.
    """

    signal: Text
    step: Natural
    epoch: AtLeastZero
    value: Annotated[float, Interval(ge=-LARGEST, le=LARGEST)] | None
    group: str = ""
    unit: str = ""
    status: Status = Status.OK
    reason: str = ""

    @classmethod
    def of(
        cls, signal: str, value: float, *, step: int, epoch: float, group: str = "", unit: str = ""
    ) -> Reading:
        """Make a reading of a number; one not finite, or beyond 1e150, becomes ``NOT_FINITE``, without one.

        >>> Reading.of("norm", float("nan"), step=3, epoch=1.0).status
        <Status.NOT_FINITE: 'not-finite'>
        """
        if abs(value) <= LARGEST:
            return cls(signal=signal, step=step, epoch=epoch, value=float(value), group=group, unit=unit)
        return cls(
            signal=signal,
            step=step,
            epoch=epoch,
            value=None,
            group=group,
            unit=unit,
            status=Status.NOT_FINITE,
            reason=f"came out as {value}",
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The output of a rule after one more round of readings, and its reason with the numbers."""

    act: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict as journalled: what was decided (``draw`` or ``stop``), when, by which rule, and why."""

    kind: Annotated[str, Field(pattern="^(draw|stop)$")]
    act: bool
    step: Natural
    epoch: AtLeastZero
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """Where a run's rule acted, as its result has it; ``rule`` is ``given`` where none of its rules did."""

    epoch: AtLeastZero
    step: Natural
    reason: str
    rule: str

    @classmethod
    def of(cls, decision: Decision) -> Milestone:
        """Return a decision's milestone."""
        return cls(epoch=decision.epoch, step=decision.step, reason=decision.reason, rule=decision.rule)

    def as_decision(self, kind: str) -> Decision:
        """Return the decision, to ``draw`` or to ``stop``, that it was."""
        return Decision(
            kind=kind, act=True, step=self.step, epoch=self.epoch, rule=self.rule, reason=self.reason
        )
