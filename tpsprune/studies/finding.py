"""What a study found: frozen records, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from tpsprune.numerics.small_samples import Interval
from tpsprune.studies.catalogue import Prediction
from tpsprune.studies.verdict import Bound, Ruling

__all__ = ["Curve", "Done", "Finding", "Panel", "Plan", "Quantity", "Table", "Trial"]


class Trial(Protocol):
    """A training to be done: all that tells it from others of its study. Trials of one arm cost alike."""

    @property
    def arm(self) -> str:
        """What is compared."""


class Done(Protocol):
    """A training that is done; ``seconds`` of wall time serve estimates of time left only."""

    @property
    def trial(self) -> Trial:
        """What it was."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The trainings whose settings are known, in order, and the arms of those to come once these are done."""

    trials: tuple[Trial, ...]
    later_arms: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many trainings the study has in all."""
        return len(self.trials) + len(self.later_arms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One predicted quantity beside what was measured of it."""

    name: str
    predicted: str
    measured: Interval
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures ready to print, one row a line."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (x, y) under one name; a dashed one goes with the whole one before it."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A picture beside the quantities: curves over two axes, either of them logarithmic."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A study's outcome; ``sentence`` holds the numbers that the ruling rests on.

    ``measure`` says what the quantities are of, ``counted`` what an interval is over, ``predicted_range``
    from where to where they are predicted to lie, none where that side is open.
    """

    SCHEMA: ClassVar[str] = "tpsprune.study/1"

    prediction: Prediction
    ruling: Ruling
    sentence: str
    quantities: tuple[Quantity, ...]
    measure: str
    counted: str
    predicted_range: tuple[float | None, float | None]
    protocol: tuple[str, ...]
    tables: tuple[Table, ...]
    limits: tuple[str, ...]
    command: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    trainings: tuple[Done, ...]
    panels: tuple[Panel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values; tables are left out, trainings hold all their figures."""
        return {
            "schema": self.SCHEMA,
            "study": self.prediction.name,
            "prediction": self.prediction.to_json(),
            "verdict": self.ruling.value,
            "sentence": self.sentence,
            "measure": self.measure,
            "counted": self.counted,
            "predicted_range": dict(zip(("low", "high"), self.predicted_range, strict=True)),
            "quantities": [asdict(quantity) for quantity in self.quantities],
            "protocol": list(self.protocol),
            "limits": list(self.limits),
            "command": self.command,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "trainings": [trained.to_json() for trained in self.trainings],
            **({"panels": [asdict(panel) for panel in self.panels]} if self.panels else {}),
        }
