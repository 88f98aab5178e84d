"""What happens in a run, in order: the pipeline yields these, the door shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tpsprune.records.comparison import ArmRun
from tpsprune.records.energy import Cost
from tpsprune.records.family import FamilyFinished, Sized
from tpsprune.records.readings import Decision
from tpsprune.records.result import GroupChange, ModelFigures, RunResult, Unpruned


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted:
    """A phase begins: ``total_steps`` is how far it can go, ``done_steps`` how far it already is."""

    phase: str
    title: str
    total_steps: int
    done_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a phase stands; ``read`` is whether the figures were read at this step.

    ``quality`` is what ``validation_accuracy`` is called.
    """

    phase: str
    step: int
    total_steps: int
    epoch: float
    loss: float | None = None
    validation_accuracy: float | None = None
    signals: tuple[tuple[str, float], ...] = ()
    joules: float | None = None
    watts: float | None = None
    read: bool = False
    quality: str = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded:
    """A phase is over."""

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A rule acted: the draw, or the end."""

    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Pruning is done: widths before and after, what was left alone, and accuracy before and after it.

    Shares are of the model that was pruned. ``output_error`` is what the ticket's outputs on the calibration
    data miss the dense model's by, in squares, as a share of their variance. With several rounds this is
    round ``round`` of ``rounds``. ``quality`` is what the accuracies are called.
    """

    groups: tuple[GroupChange, ...]
    unpruned: tuple[Unpruned, ...]
    macs_share: float
    parameters_share: float
    validation_accuracy_before: float
    validation_accuracy_after: float
    output_error: float | None = None
    round: int = 1
    rounds: int = 1
    quality: str = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A model that another tool has pruned is fitted to the dense one: test quality of all three; cost."""

    quality: str
    dense: float
    pruned: float
    ticket: float
    macs_share: float
    parameters_share: float
    total: Cost
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """A frozen encoder is on a new task: test quality of it and of the ticket, if it was cut; cost by part.

    ``parts`` are ``features``, ``head`` and ``cut``. ``macs_share`` is of the dense model's;
    ``trained_parameters`` are those of the head, ``parameters`` all of what was written.
    """

    quality: str
    encoder: float
    ticket: float | None
    macs_share: float
    trained_parameters: int
    parameters: int
    parts: dict[str, Cost]
    total: Cost
    folder: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know, in a sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over and everything is on disk."""

    outcome: RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model was trained to its end and not pruned: where it came to, and its figures."""

    figures: ModelFigures
    stopped: Decision
    drawn_epoch: float | None
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmBegun:
    """A run of a comparison begins: the ``number``-th of ``total``; a warm-up has number 0."""

    arm: str
    seed: int
    number: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEnded:
    """A run of a comparison is over and in its journal; about ``seconds_left`` for the rest.

    ``quality`` is what the run's ``accuracy`` is called.
    """

    run: ArmRun
    number: int
    total: int
    seconds_left: float
    quality: str = "accuracy"


Event: TypeAlias = (
    PhaseStarted
    | Progress
    | PhaseEnded
    | Decided
    | Pruned
    | Note
    | Finished
    | Trained
    | Sized
    | FamilyFinished
    | Repaired
    | Transferred
)
Comparing: TypeAlias = Event | ArmBegun | ArmEnded
