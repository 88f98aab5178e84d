"""What came out of a run: the figures of the closing table, and ``result.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Le
from pydantic import Field

from tpsprune.records.energy import Cost, EnergyMethod, PhaseEnergy, Projection
from tpsprune.records.readings import Decision, Milestone
from tpsprune.records.serial import AtLeastZero, Natural, Positive, Text
from tpsprune.records.task import TaskFacts

GIVEN: Final = "given"
"""The rule of a draw that no rule made: the dense model was trained elsewhere."""

Accuracy = Annotated[float, Le(1.0)]
"""Of whatever the task's quality is: R² may be below zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Deterministic figures of a model: parameters, multiply-accumulates per item, bytes on disk."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one forward pass over a batch: median and quartiles over ``repeats`` passes."""

    median_seconds: Annotated[AtLeastZero, Field(alias="median")]
    lower_quartile_seconds: Annotated[AtLeastZero, Field(alias="lower_quartile")]
    upper_quartile_seconds: Annotated[AtLeastZero, Field(alias="upper_quartile")]
    repeats: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model as benchmarked: test accuracy (read once, at the end), size, and latency as ``batch-64``."""

    accuracy: Accuracy
    parameters: Natural
    macs: Natural
    bytes: Natural
    latency_seconds: dict[Annotated[str, Field(pattern="^batch-[1-9][0-9]*$")], Latency]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """The width of one group of coupled units before and after pruning, and the rank that chose it.

    ``effective_rank`` is ``None`` where widths were not chosen by rank; ``residual_share`` is the part
    of the consumers' input variance that the kept units cannot reproduce on the calibration data, in the
    dense model; ``kind`` is what a unit is: ``units`` (channels, neurons), ``heads``, ``head-width`` or
    ``blocks``; or ``rank``, where the group is a layer that is split in two.
    """

    group: str
    width_before: Positive
    width_after: Natural
    effective_rank: AtLeastZero | None = None
    residual_share: AtLeastZero | None = None
    kind: Literal["units", "heads", "head-width", "blocks", "rank"] = "units"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpruned:
    """A layer or group that is not pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The results of a finished run, in the order of its report.

    ``pruned_validation_accuracy`` is read right after pruning, before any retraining. ``energy`` is by phase,
    in the order the phases first began. ``projected_dense`` is ``None`` where this run was handed the dense
    model trained: the cost of its training is not known. The rule of ``drawn_at`` is then ``given``
    and its reason names what was handed in. Shares, always made from the figures, are of the dense model's.
    ``folder`` is where the run lies now, and in no file.
    """

    SCHEMA: ClassVar[str] = "tpsprune.result/1"

    schema: Literal["tpsprune.result/1"] = "tpsprune.result/1"
    name: Text
    seed: Natural
    device: Text
    machine: dict[str, Any]
    task: TaskFacts
    dense: ModelFigures
    ticket: ModelFigures
    pruned_validation_accuracy: Accuracy
    macs_share: AtLeastZero = 0.0
    parameters_share: AtLeastZero = 0.0
    groups: tuple[GroupChange, ...]
    unpruned: tuple[Unpruned, ...]
    drawn_at: Milestone
    stopped_at: Milestone
    epochs: dict[str, AtLeastZero]
    energy: dict[str, PhaseEnergy]
    method: EnergyMethod
    total: Cost
    projected_dense: Projection | None
    overhead: dict[str, float | None]
    attempts: Positive
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    folder: Annotated[str, Field(exclude=True)] = ""

    def __post_init__(self) -> None:
        """Work out the shares that readers of the JSON find there."""
        for name in ("macs", "parameters"):
            dense, ticket = getattr(self.dense, name), getattr(self.ticket, name)
            object.__setattr__(self, f"{name}_share", ticket / dense if dense else 0.0)
        if self.dense.latency_seconds.keys() != self.ticket.latency_seconds.keys():
            raise ValueError("dense.latency_seconds and ticket.latency_seconds are of other batches")

    @property
    def drawn(self) -> Decision:
        """The decision to draw the ticket."""
        return self.drawn_at.as_decision("draw")

    @property
    def stopped(self) -> Decision:
        """The decision to end the training."""
        return self.stopped_at.as_decision("stop")

    @property
    def was_given(self) -> bool:
        """Whether the dense model was handed in as it is, and not trained by this run."""
        return self.drawn_at.rule == GIVEN
