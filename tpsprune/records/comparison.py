"""A comparison as it was measured: its rules, fixed before the first run, and everything that was run."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final

from annotated_types import Interval, Le, MinLen
from pydantic import Field

from tpsprune.records.energy import EnergyMethod, Window
from tpsprune.records.result import Accuracy
from tpsprune.records.serial import AtLeastZero, Joules, Natural, Positive, Seconds, Text
from tpsprune.records.task import quality_of

Share = Annotated[float, Interval(ge=0.0, le=1.0)]
Pair = Annotated[Natural, Le(9_999)]
CLAIMED: Final = ("ticket", "family", "frozen-ticket", "frozen")
MostPairs = Annotated[Positive, Le(10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What was fixed before the first run: who is compared, on which seeds, and what would count.

    The first of ``arms`` is the baseline of every claim. ``tolerance_share`` is how much test accuracy an
    arm may lose (0.01 is one point), ``required_accuracy`` the least that the task requires; ``alpha`` the
    error rate of a claim; ``order_seed`` shuffles the order of the runs within each pair.
    ``foreign_load_share`` is how much of the machine's processors others may have taken in a run that
    counts.
    """

    SCHEMA: ClassVar[str] = "tpsprune.comparison/1"

    name: Text
    arms: Annotated[tuple[Text, ...], MinLen(2)]
    first_seed: Natural
    order_seed: Natural
    tolerance_share: Share
    required_accuracy: Accuracy
    alpha: Annotated[float, Interval(gt=0.0, lt=1.0)]
    inference_seconds: Seconds
    inference_batches: tuple[Positive, ...]
    idle_seconds: Seconds
    foreign_load_share: AtLeastZero
    patience: Natural
    recipe_text: str
    recipe_sha256: str
    device: str
    machine: dict[str, Any]
    versions: dict[str, str]
    begun: str
    command: str
    pairs: MostPairs
    """Pairs requested when it was begun; a later command may request more."""

    @property
    def baseline(self) -> str:
        """The arm that every other is compared with."""
        return self.arms[0]

    @property
    def loss(self) -> str:
        """The loss of the recipe, by its name in the text; cross-entropy where the text has none."""
        return _loss_in(self.recipe_text)

    @property
    def quality(self) -> str:
        """What the figure is called that runs hold as ``accuracy``."""
        return quality_of(self.loss)

    @property
    def primary(self) -> str:
        """The arm of the claim fixed beforehand: of ``CLAIMED`` the first, else that after the baseline."""
        others = self.arms[1:]
        return next((arm for arm in CLAIMED if arm in others), others[0])


@lru_cache
def _loss_in(recipe_text: str) -> str:
    try:
        task = tomllib.loads(recipe_text).get("task")
    except tomllib.TOMLDecodeError:
        task = None
    found = task.get("loss") if isinstance(task, dict) else None
    return found if isinstance(found, str) else "cross-entropy"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """One reading of a run: epochs trained, joules spent so far, accuracy, and the signals then."""

    epoch: AtLeastZero
    joules: Joules | None
    validation_accuracy: Accuracy | None
    signals: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedModel:
    """One of the models that a run of several sizes left.

    ``size`` is the share of multiply-accumulates that was asked for; ``folder``, below the comparison's,
    holds its plan and its weights.
    """

    size: Share
    accuracy: Accuracy
    parameters: Natural
    macs: Natural
    folder: str
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One finished run of one arm; ``failure`` in words where it ended without a model.

    ``position`` is its place in the order in which all runs were made. ``accuracy`` is of the test split,
    read once; ``parameters`` and ``macs`` are of the model it left. ``given`` names what it was handed that
    others had to find, as the widths of a ticket. ``notes`` are the run's own. ``receipt`` identifies what a
    loop of the user's own handed in; empty for runs of a recipe. ``sizes`` are the models of a run that left
    several, the largest first: then ``accuracy`` is their mean, and ``epochs`` are those of all trainings.
    ``machine`` tells machines of a cluster apart and names none: a salted hash, empty for a run made here.
    """

    arm: str
    seed: Natural
    pair: Pair
    position: Natural
    windows: tuple[Window, ...]
    method: EnergyMethod
    accuracy: Accuracy | None = None
    validation_accuracy: Accuracy | None = None
    parameters: Natural | None = None
    macs: Natural | None = None
    epochs: AtLeastZero | None = None
    drawn_epoch: AtLeastZero | None = None
    stopped_by: str = ""
    history: tuple[HistoryPoint, ...] = ()
    given: str = ""
    failure: str = ""
    folder: str = ""
    weights_sha256: str = ""
    notes: tuple[str, ...] = ()
    logical_cpus: Positive = 1
    receipt: str = ""
    sizes: Annotated[tuple[SizedModel, ...], Field(exclude_if=lambda sizes: not sizes)] = ()
    machine: Annotated[str, Field(pattern="^([0-9a-f]{12})?$", exclude_if=lambda machine: not machine)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSpan:
    """The machine doing nothing, in the process that runs the comparison, before a pair begins."""

    pair: Pair
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """Training steps of an arm's shape, in one window, to fit its schedule to the ticket's cost.

    Of an arm with a shape for each size, ``arm`` is followed by the size, as in ``each-joules/0.5``.
    """

    arm: str
    seed: int
    pair: int
    steps: int
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSpan:
    """Inference of the model that an arm left: ``items`` items in batches of ``batch``, in one window."""

    arm: str
    seed: Natural
    pair: Pair
    batch: Positive
    items: Positive
    window: Window

    @property
    def joules_per_item(self) -> float | None:
        """Energy of one inference; ``None`` when nothing was metered."""
        joules = self.window.total_joules
        return None if joules is None else joules / self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenOff:
    """A run that was begun and not finished: what it took until then is shown, and counts for no arm.

    Without windows its energy is not known, which is not zero. A warm-up belongs to no pair.
    """

    arm: str
    seed: Natural
    pair: Pair | None
    position: Natural
    windows: tuple[Window, ...]
    why: str = ""
    """Why a finished pair was set aside; empty where the run was broken off."""
    receipt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Grams of CO₂ equivalents for a kilowatt-hour, as the user chose them, and where they come from."""

    grams_per_kwh: Annotated[float, Interval(ge=0.0, le=1e6)]
    country: str
    year: int | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the reader of a report chose: a grid, a volume of inferences a day, a wall meter's readings.

    ``wall_meter`` names the file of the readings in the journal's folder; none of it changes a run.
    """

    grid: Grid | None = None
    per_day: Annotated[float, Interval(gt=0.0, le=1e15)] | None = None
    wall_meter: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """All that a journal holds, in the order it happened; ``under_way`` names a run without an end.

    ``looks`` counts how often results could be seen before the number of pairs was final: one more each time
    that another number was requested after a run had ended.
    """

    design: Design
    runs: tuple[ArmRun, ...] = ()
    idle: tuple[IdleSpan, ...] = ()
    inference: tuple[InferenceSpan, ...] = ()
    steps: tuple[StepSpan, ...] = ()
    broken_off: tuple[BrokenOff, ...] = ()
    choices: Choices = Choices()
    pairs_asked: int = 0
    looks: int = 1
    under_way: str = ""
    notes: tuple[str, ...] = ()

    def run_of(self, arm: str, pair: int) -> ArmRun | None:
        """Return the run of an arm in a pair, if it is done."""
        return next((run for run in self.runs if (run.arm, run.pair) == (arm, pair)), None)
