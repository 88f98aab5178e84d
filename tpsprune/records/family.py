"""A family: several sizes of one trained model, measured beside it; ``family.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tpsprune.records.energy import Cost, EnergyMethod, PhaseEnergy
from tpsprune.records.result import Accuracy, ModelFigures
from tpsprune.records.serial import AtLeastZero, Natural, Positive, Text
from tpsprune.records.task import TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyMember:
    """One size: what was asked for, and the model as benchmarked.

    ``size`` is the share asked for, 1 the dense model. ``output_error`` is against the dense model's outputs
    on the calibration data. Limits are held against ``validation_accuracy``. ``joules_per_answer`` is metered
    at batch 64, every class of energy in it. ``rival_accuracy`` is that of torch-pruning's magnitude at the
    same multiply-accumulates, its batch-norm statistics computed again. ``refused`` says which limit it
    breaks; it is not in the folder then.
    """

    size: AtLeastZero
    figures: ModelFigures
    output_error: AtLeastZero = 0.0
    joules_per_answer: AtLeastZero | None = None
    validation_accuracy: Accuracy | None = None
    rival_accuracy: Accuracy | None = None
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder in that of the family."""
        return f"{self.size:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyGroup:
    """A group of units: how many of the sizes keep each. Of nested sizes those that keep most are the least.

    A unit that ``k`` sizes keep is in the ``k`` largest.
    """

    name: Text
    kept_by: tuple[Natural, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedGroup:
    """What a look has of one group, beside tensors; what the choice of widths does not read is ``None``."""

    name: Text
    width: Positive
    rows: Natural | None = None
    rank: AtLeastZero | None = None
    loudness: AtLeastZero | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyLook:
    """What a look at the dense model found; its tensors lie beside it."""

    SCHEMA: ClassVar[str] = "tpsprune.look/1"

    schema: Literal["tpsprune.look/1"] = "tpsprune.look/1"
    groups: tuple[LookedGroup, ...]
    calls: dict[str, Natural]
    item_bytes: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyJob:
    """What a family is of: the recipe, whatever its target, the weights, what the sizes are shares of."""

    recipe: Text
    weights_sha256: Text
    by: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyDrawn:
    """A size that is on disk, a line of a journal, and what the user should know of it."""

    size: AtLeastZero
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyResult:
    """All sizes of a model, the largest first, and what they took."""

    SCHEMA: ClassVar[str] = "tpsprune.family/1"

    schema: Literal["tpsprune.family/1"] = "tpsprune.family/1"
    name: Text
    seed: Natural
    device: Text
    machine: dict[str, Any]
    task: TaskFacts
    by: Literal["macs", "params", "bytes", "latency", "joules", "tolerance"]
    weights: Text
    dense: FamilyMember
    members: tuple[FamilyMember, ...]
    groups: tuple[FamilyGroup, ...]
    energy: dict[str, PhaseEnergy]
    inference_batch: Positive
    method: EnergyMethod
    total: Cost
    versions: dict[str, str] = field(default_factory=dict)

    def dominated(self, member: FamilyMember) -> bool:
        """Return whether another size is as accurate for fewer multiply-accumulates, and no worse in both."""
        mine = member.figures
        return any(
            other.figures.accuracy >= mine.accuracy
            and other.figures.macs <= mine.macs
            and (other.figures.accuracy > mine.accuracy or other.figures.macs < mine.macs)
            for other in (self.dense, *self.members)
            if other is not member and not other.refused
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A size of a family is drawn and measured: the ``number``-th of ``total``."""

    member: FamilyMember
    number: int
    total: int
    quality: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFinished:
    """A family is on disk, whole."""

    family: FamilyResult
    folder: str
