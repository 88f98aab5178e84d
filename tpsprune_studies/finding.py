"""What a study concludes: frozen records of a plan and a finding, the verdict, and the page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from tpsprune.numerics.small_samples import Interval
from tpsprune_studies.catalogue import Prediction, list_limits


class Trial(Protocol):
    """A training to be run: all that tells it from the others of its study. Trials of one arm cost alike."""

    @property
    def arm(self) -> str:
        """What is compared."""


class Training(Protocol):
    """A finished training, a dataclass; ``seconds`` of wall time serve estimates of the time left only."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def trial(self) -> Trial:
        """Which training it was."""

    @property
    def seconds(self) -> float:
        """How long it took."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The trainings whose settings are known, in order, and the arms of those to come once these are done."""

    trials: tuple[Trial, ...]
    later_arms: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many trainings the study has in all."""
        return len(self.trials) + len(self.later_arms)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measured quantity, and what was predicted of it, if anything."""

    name: str
    predicted: str
    measured: Interval
    bound: Bound = EXACT


@dataclass(frozen=True, slots=True)
class Table:
    """Figures ready to print, one row a line; the header has the columns between bars, as it is printed."""

    title: str
    header: str
    rows: Sequence[tuple[str, ...]]


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
    """The conclusion of a study; ``sentence`` holds the numbers that the ruling rests on.

    ``measure`` names the unit of the quantities, ``counted`` what an interval is over, ``predicted_range``
    the predicted lower and upper end, none where that side is open.
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
    command: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    trainings: tuple[Training, ...]
    panels: tuple[Panel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values; tables are left out, trainings hold all their figures."""
        return {
            "schema": self.SCHEMA,
            "study": self.prediction.name,
            "prediction": asdict(self.prediction),
            "verdict": self.ruling.value,
            "sentence": self.sentence,
            "measure": self.measure,
            "counted": self.counted,
            "predicted_range": dict(zip(("low", "high"), self.predicted_range, strict=True)),
            "quantities": [asdict(quantity) for quantity in self.quantities],
            "protocol": list(self.protocol),
            "limits": list_limits(self.prediction.name),
            "command": self.command,
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "trainings": [asdict(training) for training in self.trainings],
            **({"panels": [asdict(panel) for panel in self.panels]} if self.panels else {}),
        }


def render_page(finding: Finding) -> str:
    """Return the page in Markdown: predicted and measured, the protocol, every pair, and the limits.

    Equal findings give equal pages, byte for byte.
    """
    parts = [
        f"# Study `{finding.prediction.name}`: {finding.ruling}",
        f"Predicted: {finding.prediction.statement}. Source: {finding.prediction.source}.",
        f"Measured: {finding.sentence}",
        "## Predicted beside measured",
        _render_table(_tabulate_quantities(finding)),
        "## How it was measured",
        _render_list(finding.protocol),
    ]
    for table in finding.tables:
        parts += [f"## {table.title}", _render_table(table)]
    parts += [
        "## What it does not show",
        _render_list(list_limits(finding.prediction.name)),
        "## Where, and how to run it again",
        _render_list(f"{name.replace('_', ' ')}: {value}" for name, value in finding.machine.items()),
        f"    {finding.command}",
    ]
    return "\n\n".join(parts) + "\n"


def _tabulate_quantities(finding: Finding) -> Table:
    rows = [
        (
            quantity.name,
            quantity.predicted,
            quantity.bound.qualify(format_ratio(quantity.measured.mean)),
            format_interval(quantity.measured),
            str(quantity.measured.count),
        )
        for quantity in finding.quantities
    ]
    return Table("", f"{finding.measure} | predicted | measured | 95 % interval | {finding.counted}", rows)


def _render_list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _render_table(table: Table) -> str:
    rule = " | ".join(["---", *["---:"] * table.header.count(" | ")])
    lines = (table.header, rule, *(" | ".join(row) for row in table.rows))
    return "\n".join(f"| {line} |" for line in lines)


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


def format_seconds(value: float) -> str:
    """Return processor seconds with one decimal, below ten with two.

    >>> format_seconds(33.71), format_seconds(0.456)
    ('33.7', '0.46')
    """
    return f"{value:.{1 if value >= 9.995 else 2}f}"
