"""Rules run over recorded trainings: alarms before generalisation, and rules that draw a ticket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Final, Literal, TypeAlias

from tpsprune import stopping
from tpsprune.recipe.stop import (
    ChangeRule,
    ConsensusRule,
    MaskRule,
    PlateauRule,
    ReopenRule,
    Rule,
    Stop,
    ThresholdRule,
)
from tpsprune.records import Reading
from tpsprune_studies.finding import Table

Series: TypeAlias = tuple[tuple[int, float | None], ...]
"""Steps at which a signal was read, and its values; none where it had no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTrial:
    """A training to be watched: the task by its name in the study, and the seed of all that is random."""

    arm: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTraining:
    """A training that was watched: signals of the whole model, and what each cost.

    ``reached_step`` is that of the first reading at the level, none where the cap came first. ``cpu_seconds``
    are the training's own; ``signal_cpu_seconds`` come on top, by signal as a recipe names it.
    """

    trial: WatchedTrial
    steps: int
    steps_per_epoch: int
    reached_step: int | None
    series: Mapping[str, Series]
    cpu_seconds: float
    signal_cpu_seconds: Mapping[str, float]
    seconds: float


FACTORS: Final = (1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
PATIENCES: Final = (1, 3)
CHANGING: Final[Mapping[str, tuple[Literal["min", "max"], ...]]] = {
    **dict.fromkeys(("d_eff", "h1_max", "h1_total", "h1_sum_of_squares", "spectral_edge"), ("min", "max")),
    **dict.fromkeys(("gap_23", "norm", "condensation", "collapse", "logit_rank"), ("min", "max")),
    **dict.fromkeys(("commutator_defect", "tps_coherence"), ("min", "max")),
    "validation_loss": ("min",),
    "validation_accuracy": ("max",),
}
"""Signals, and the ways each may change before a net generalises; the pilot picks one of them."""


def _candidates() -> Iterator[Rule]:
    for signal, modes in CHANGING.items():
        for mode, factor, patience in product(modes, FACTORS, PATIENCES):
            yield ChangeRule(
                monitor=signal, mode=mode, factor=factor, patience=patience, min_adjusted_accuracy=0.0
            )
    for level, patience in product((2.0, 3.0, 5.0, 10.0), PATIENCES):
        yield ThresholdRule(monitor="h1", threshold=level, patience=patience)
    for level, patience in product((0.02, 0.05, 0.1, 0.2), PATIENCES):
        yield MaskRule(threshold=level, patience=patience, min_adjusted_accuracy=0.0)
    for signal, collapse in product(("spectral_edge", "gap_23"), (2.0, 4.0, 10.0)):
        yield ReopenRule(monitor=signal, collapse=collapse, min_adjusted_accuracy=0.0)


CANDIDATES: Final[tuple[Rule, ...]] = tuple(_candidates())
"""Every candidate rule of a signal, fixed before any training was run."""


def find_alarm(rule: Rule, series: Mapping[str, Series]) -> int | None:
    """Return the step of the reading at which a rule first acts, or ``None``.

    The rule is the one that ``train`` would run: it sees one reading after the other, and no more.
    """
    signal = getattr(rule, "monitor", "")
    memory = stopping.start(rule)
    for step, value in series.get(signal, ()):
        reading = Reading(signal=signal, step=step, epoch=float(step), value=value)
        memory, verdict = stopping.step(rule, memory, [reading])
        if verdict.act:
            return step
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """The alarms of a rule: by how many epochs each led, of trainings that reached the level.

    A miss (no alarm before) leads by nothing. ``false_alarms`` are those on controls, which never reach it.
    """

    rule: Rule
    lead_epochs: tuple[float, ...]
    misses: int
    false_alarms: int
    controls: int

    @property
    def hits(self) -> int:
        """Trainings with an alarm before the level."""
        return len(self.lead_epochs) - self.misses

    @property
    def mean_lead_epochs(self) -> float:
        """Epochs by which the alarm led, on average."""
        return fmean(self.lead_epochs) if self.lead_epochs else 0.0

    @property
    def errors_and_lead(self) -> tuple[int, float]:
        """Misses and false alarms, which count alike, and less the lead: the lower, the better the rule."""
        return self.false_alarms + self.misses, -self.mean_lead_epochs


def count_alarms(
    rule: Rule, learned: Sequence[WatchedTraining], controls: Sequence[WatchedTraining]
) -> Alarms:
    """Run a rule over trainings that reached the level and over some that never did."""
    leads = []
    for each in learned:
        step = find_alarm(rule, each.series)
        assert each.reached_step is not None, "a training that reached the level"
        leads.append(0.0 if step is None else (each.reached_step - step) / each.steps_per_epoch)
    return Alarms(
        rule=rule,
        lead_epochs=tuple(leads),
        misses=sum(lead <= 0 for lead in leads),
        false_alarms=sum(find_alarm(rule, each.series) is not None for each in controls),
        controls=len(controls),
    )


def choose_rule(
    signal: str, learned: Sequence[WatchedTraining], controls: Sequence[WatchedTraining]
) -> Alarms:
    """Return the signal's candidate with the fewest errors there, and of such the one that leads most."""
    rules = (rule for rule in CANDIDATES if getattr(rule, "monitor", "") == signal)
    return min(
        (count_alarms(rule, learned, controls) for rule in rules), key=lambda each: each.errors_and_lead
    )


_FALLS: Final = {name: ChangeRule(monitor=name, factor=1.1) for name in ("d_eff", "validation_loss")}
DRAW_RULES: Final[Mapping[str, Rule]] = {
    "default": Stop().draw,
    "wider plateau": PlateauRule(tolerance=0.1),
    "longer plateau": PlateauRule(patience=5),
    "plateau of the loss": PlateauRule(monitor="validation_loss", tolerance=0.1),
    "fall of d_eff": _FALLS["d_eff"],
    "fall of the loss": _FALLS["validation_loss"],
    "fall of the loss, no hold": ChangeRule(monitor="validation_loss", factor=1.1, min_adjusted_accuracy=0.0),
    "Early-Bird": MaskRule(),
    "Early-Bird, no hold": MaskRule(min_adjusted_accuracy=0.0),
    "loops": ThresholdRule(monitor="h1", threshold=3.0, min_adjusted_accuracy=0.5),
    "edge": ReopenRule(),
    "accuracy": ThresholdRule(monitor="validation_accuracy", threshold=0.9),
    "both falls": ConsensusRule(rules=tuple(_FALLS.values())),
}
"""Rules that a recipe might name under ``[stop.draw]``: the default first, fixed before any was tried."""


@dataclass(frozen=True, slots=True)
class Draw:
    """When a rule drew, and the validation accuracy then."""

    step: int
    accuracy: float


def draw_ticket(rule: Rule, training: WatchedTraining, chance_accuracy: float) -> Draw | None:
    """Return where a rule first draws a ticket, run as ``train`` would, or ``None``.

    It sees every reading of a step at once, and holds until its share is learned.
    """
    values = {name: dict(series) for name, series in training.series.items()}
    memory = stopping.start(rule, chance_accuracy=chance_accuracy)
    for step in sorted({step for each in values.values() for step in each}):
        readings = [
            Reading(signal=name, step=step, epoch=step / training.steps_per_epoch, value=each[step])
            for name, each in values.items()
            if step in each
        ]
        memory, verdict = stopping.step(rule, memory, readings)
        if verdict.act:
            return Draw(step, values["validation_accuracy"].get(step) or 0.0)
    return None


def tabulate_draws(
    learned: Sequence[WatchedTraining],
    controls: Sequence[WatchedTraining],
    ordinary: Sequence[WatchedTraining],
    chances: Mapping[str, float],
) -> Table:
    """Return of each rule how often, how early and at what accuracy it drew; ``chances`` by task."""
    rows = []
    for name, rule in DRAW_RULES.items():
        before, false, usual = (
            [(drawn, each) for each in group if (drawn := draw_ticket(rule, each, chances[each.trial.arm]))]
            for group in (learned, controls, ordinary)
        )
        leads = [each.reached_step - drawn.step for drawn, each in before if each.reached_step is not None]
        rows.append(
            (
                name,
                stopping.describe(rule),
                f"{len(before)} of {len(learned)}",
                f"{fmean(leads):.0f}" if leads else "",
                f"{fmean(drawn.accuracy for drawn, _ in before):.2f}" if before else "",
                f"{len(false)} of {len(controls)}",
                f"{len(usual)} of {len(ordinary)}",
                f"{fmean(drawn.accuracy for drawn, _ in usual):.3f}" if usual else "",
            )
        )
    return Table(
        "Rules of drawing, as a run would follow them",
        "rule | in words | drew before the level | steps before it | accuracy then | drew in vain | "
        "drew on digits | accuracy then",
        rows,
    )
