"""What a study plans and concludes: frozen records, the verdict, and the page by its template."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from statistics import fmean
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from tpsprune.numerics.small_samples import Interval, mean_interval, ratio_interval
from tpsprune.records import dump
from tpsprune.report.forms import load_templates
from tpsprune_studies.catalogue import STUDIES, Prediction, Settings, load_study


class Trial(Protocol):
    """A training to be run: all that tells it from the others of its study. Trials of one arm cost alike."""

    @property
    def arm(self) -> str:
        """What is compared."""


class Training(Protocol):
    """A finished training, a record; ``seconds`` of wall time serve estimates of the time left only."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def trial(self) -> Trial:
        """Which training it was."""

    @property
    def seconds(self) -> float:
        """How long it took."""


AnyTrial = TypeVar("AnyTrial", bound=Trial)
AnyTraining = TypeVar("AnyTraining", bound=Training)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """The trainings whose settings are known, in order, and the arms of those to come once these are done."""

    trials: tuple[Trial, ...]
    later_arms: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many trainings the study has in all."""
        return len(self.trials) + len(self.later_arms)

    @classmethod
    def join(cls, plans: Iterable[Plan]) -> Plan:
        """Return one plan after the other; a training that several need is run once."""
        joined = list(plans)
        return cls(
            tuple(dict.fromkeys(trial for each in joined for trial in each.trials)),
            tuple(arm for each in joined for arm in each.later_arms),
        )


Strand: TypeAlias = Generator[tuple[AnyTrial, Sequence[str]], AnyTraining, Result]
"""Trainings that follow from one another: it yields one, with the arms of about as many as may come later,
receives it finished, and at last returns what they show."""


def by_trial(done: Sequence[AnyTraining]) -> dict[Any, AnyTraining]:
    """Return trainings by their trial; of two alike the one that was done first."""
    return {training.trial: training for training in reversed(done)}


def follow(
    strand: Strand[AnyTrial, AnyTraining, Result], done: Mapping[AnyTrial, AnyTraining]
) -> tuple[Plan, Result | None]:
    """Return the trainings of a strand as far as they are known, and what they show once all are done."""
    trials: list[Trial] = []
    try:
        trial, later_arms = next(strand)
        while True:
            trials.append(trial)
            if trial not in done:
                return Plan(tuple(trials), tuple(later_arms)), None
            trial, later_arms = strand.send(done[trial])
    except StopIteration as end:
        return Plan(tuple(trials)), end.value


class Ruling(StrEnum):
    """The verdict of a study on its prediction."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Bound:
    """Whether true ratios may lie above or below those measured, since runs were stopped before the level."""

    may_be_larger: bool = False
    may_be_smaller: bool = False

    @property
    def qualifier(self) -> str:
        """Return ``at least``, ``at most``, ``nominally`` (true ratios may lie either way) or nothing.

        >>> Bound(may_be_larger=True).qualifier, Bound().qualifier
        ('at least', '')
        """
        if self.may_be_larger and self.may_be_smaller:
            return "nominally"
        if self.may_be_larger:
            return "at least"
        return "at most" if self.may_be_smaller else ""

    def qualify(self, text: str) -> str:
        """Return the text after the bound's qualifier.

        >>> Bound(may_be_smaller=True).qualify("3.0"), Bound().qualify("3.0")
        ('at most 3.0', '3.0')
        """
        return f"{self.qualifier} {text}".strip()


EXACT = Bound()
"""No run was stopped before the level."""


class Timed(Protocol):
    """A training to a level; one that was not ``reached`` counts with the steps it was allowed."""

    @property
    def steps(self) -> int:
        """Optimiser steps to the level."""

    @property
    def reached(self) -> bool:
        """Whether it got there."""


def compare_steps(pairs: Sequence[tuple[Timed, Timed]]) -> tuple[Interval, Bound]:
    """Return the ratio of steps, first over second, and how trainings that were stopped bound it."""
    bound = Bound(
        may_be_larger=any(not first.reached for first, _ in pairs),
        may_be_smaller=any(not second.reached for _, second in pairs),
    )
    return ratio_interval((first.steps, second.steps) for first, second in pairs), bound


def judge(low: float, high: float, threshold: float, bound: Bound) -> Ruling:
    """Return whether a ratio predicted to be ``threshold`` or more is, given its interval.

    Confirmed: the whole interval is at or above the threshold. Refuted: the whole interval is below it.
    Undecided: it lies on both sides, or on one side only because runs were stopped: an interval of lower
    bounds cannot refute, since the mean of the true ratios is at least theirs, and one of upper bounds cannot
    confirm.

    >>> judge(2.1, 3.0, 2.0, EXACT).value
    'confirmed'
    """
    if low >= threshold and not bound.may_be_smaller:
        return Ruling.CONFIRMED
    if high < threshold and not bound.may_be_larger:
        return Ruling.REFUTED
    return Ruling.UNDECIDED


def rule_all(rulings: Iterable[Ruling | None]) -> Ruling:
    """Return confirmed where all confirm it, refuted where one refutes it, undecided else."""
    found = set(rulings)
    if Ruling.REFUTED in found:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if found == {Ruling.CONFIRMED} else Ruling.UNDECIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measured quantity, and what was predicted of it, if anything."""

    name: str
    predicted: str
    measured: Interval
    bound: Bound = EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (x, y) under one name; a dashed curve belongs to the solid one before it."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A plot: curves over two axes, either of them logarithmic."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The conclusion of a study, in numbers; ``templates/NAME.md.j2`` puts them into words.

    A template knows the ``setup``, the constants of the ``study``, the finding as ``found`` and what is in
    ``figures``. Its blocks ``measure`` and ``counted`` name the unit of the quantities and what an interval
    is over; ``measured`` is the sentence that the ruling rests on. ``predicted_range`` holds the predicted
    lower and upper end, none where that side is open.
    """

    SCHEMA: ClassVar[str] = "tpsprune.study/1"

    name: str
    setup: Settings
    machine: Mapping[str, Any]
    ruling: Ruling
    quantities: tuple[Quantity, ...]
    predicted_range: tuple[float | None, float | None]
    figures: Mapping[str, Any]
    trainings: tuple[Training, ...]
    panels: tuple[Panel, ...] = ()
    study: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the constants as they are now: what a finding says is settled once it is made."""
        constants = {name: value for name, value in vars(load_study(self.name)).items() if name.isupper()}
        object.__setattr__(self, "study", constants)

    @property
    def prediction(self) -> Prediction:
        """What was predicted."""
        return STUDIES[self.name]

    @property
    def sentence(self) -> str:
        """What was measured, with the numbers that the ruling rests on."""
        return " ".join(self._write("measured"))

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values; tables are left out, trainings hold all their figures."""
        return {
            "schema": self.SCHEMA,
            "study": self.name,
            "prediction": dump(self.prediction),
            "verdict": self.ruling.value,
            "sentence": self.sentence,
            "measure": " ".join(self._write("measure")),
            "counted": " ".join(self._write("counted")),
            "predicted_range": dict(zip(("low", "high"), self.predicted_range, strict=True)),
            "quantities": [dump(quantity) for quantity in self.quantities],
            "protocol": [line.removeprefix("- ") for line in self._write("protocol")],
            "limits": [line.removeprefix("- ") for line in self._write("limits")],
            "command": self.setup.command(self.name),
            "settings": self.setup.describe(),
            "machine": dict(self.machine),
            "trainings": [dump(training) for training in self.trainings],
            **({"panels": [dump(panel) for panel in self.panels]} if self.panels else {}),
        }

    def render_page(self) -> str:
        """Return the page in Markdown: equal findings give equal pages, byte for byte."""
        return str(load_words(self.name).render(self._words)) + "\n"

    @property
    def _words(self) -> dict[str, Any]:
        return {"found": self, "setup": self.setup, "study": self.study, **self.figures}

    def _write(self, block: str) -> list[str]:
        return _write_block(self.name, block, self._words)


def describe(name: str, setup: Settings, last: Training) -> str:
    """Return in a line which training of a study ended, and how."""
    return " ".join(_write_block(name, "progress", {"setup": setup, "last": last}))


def _write_block(name: str, block: str, words: Mapping[str, Any]) -> list[str]:
    """Return the lines of a block of a study's template that are not blank."""
    template = load_words(name)
    text = "".join(template.blocks[block](template.new_context(words)))
    return [line.strip() for line in text.splitlines() if line.strip()]


def format_ratio(value: float) -> str:
    """Return a ratio with three significant figures.

    >>> format_ratio(8.2146), format_ratio(12.345), format_ratio(123.4)
    ('8.21', '12.3', '123')
    """
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def format_interval(interval: Interval) -> str:
    """Return both ends of an interval of ratios.

    >>> format_interval(Interval(mean=2.0, low=1.5, high=12.25, count=3, confidence=0.95))
    '1.50 to 12.2'
    """
    return f"{format_ratio(interval.low)} to {format_ratio(interval.high)}"


def format_spread(interval: Interval, shift: float = 0.0) -> str:
    """Return a mean with both ends of its interval, all moved by ``shift``.

    >>> format_spread(Interval(mean=2.0, low=1.5, high=12.25, count=3, confidence=0.95))
    '2.00 (1.50 to 12.25)'
    """
    mean, low, high = (each + shift for each in (interval.mean, interval.low, interval.high))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def format_steps(training: Timed) -> str:
    """Return the steps a training took, with ``>`` before those of one that was stopped."""
    return f"{training.steps:,}" if training.reached else f"> {training.steps:,}"


@cache
def load_words(name: str) -> Any:
    """Return the template of a page by its name, with the filters that pages share."""
    environment = load_templates(
        "plain",
        {
            "form": format,
            "where": lambda each, **fields: [
                one
                for one in each
                if all(getattr(getattr(one, "trial", one), name) == value for name, value in fields.items())
            ],
            "of": lambda mappings, name: [each[name] for each in mappings],
            "formatted": lambda values, pattern: [pattern.format(value) for value in values],
            "ratio": format_ratio,
            "interval": format_interval,
            "spread": format_spread,
            "steps": format_steps,
            "mean": fmean,
            "mean_interval": mean_interval,
            "heads": _write_heads,
        },
        {},
        "tpsprune_studies",
    )
    return environment.get_template(f"{name}.md.j2")


def _write_heads(headings: Sequence[str]) -> str:
    """Return the first two rows of a table: words to the left, figures to the right."""
    sides = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, sides))
