"""Alarms: rules that are let loose on what a training showed, and when each of them first rang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tpsprune import stopping
from tpsprune.recipe.stop import ChangeRule, MaskRule, ReopenRule, Rule, ThresholdRule
from tpsprune.records import Reading
from tpsprune.studies.watched import Series, Watched

__all__ = ["CANDIDATES", "Tally", "alarm_step", "best", "tally"]

FACTORS: Final = (1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
PATIENCES: Final = (1, 3)
CHANGING: Final[Mapping[str, tuple[Literal["fall", "rise"], ...]]] = {
    "d_eff": ("fall", "rise"),
    "h1_max": ("fall", "rise"),
    "h1_total": ("fall", "rise"),
    "h1_sum_of_squares": ("fall", "rise"),
    "spectral_edge": ("fall", "rise"),
    "gap_23": ("fall", "rise"),
    "norm": ("fall", "rise"),
    "condensation": ("fall", "rise"),
    "collapse": ("fall", "rise"),
    "logit_rank": ("fall", "rise"),
    "commutator_defect": ("fall", "rise"),
    "tps_coherence": ("fall", "rise"),
    "validation_loss": ("fall",),
    "validation_accuracy": ("rise",),
}
"""Signals by the ways they may change before something is understood; the pilot picks one of them."""


def _candidates() -> Iterator[Rule]:
    for signal, goals in CHANGING.items():
        for goal in goals:
            for factor in FACTORS:
                for patience in PATIENCES:
                    yield ChangeRule(
                        signal=signal, goal=goal, factor=factor, patience=patience, learned_share=0.0
                    )
    for level in (2.0, 3.0, 5.0, 10.0):
        for patience in PATIENCES:
            yield ThresholdRule(signal="h1", level=level, patience=patience)
    for level in (0.02, 0.05, 0.1, 0.2):
        for patience in PATIENCES:
            yield MaskRule(level=level, patience=patience, learned_share=0.0)
    for signal in ("spectral_edge", "gap_23"):
        for collapse in (2.0, 4.0, 10.0):
            yield ReopenRule(signal=signal, collapse=collapse, learned_share=0.0)


CANDIDATES: Final[tuple[Rule, ...]] = tuple(_candidates())
"""Every rule that a signal may be given, settled before any training was looked at."""


def alarm_step(rule: Rule, series: Mapping[str, Series]) -> int | None:
    """Return the step of the reading at which a rule first acts, or ``None``.

    The rule is the one that ``train`` would run: it sees one reading after the other, and no more.
    """
    signal = getattr(rule, "signal", "")
    memory = stopping.start(rule)
    for step, value in series.get(signal, ()):
        reading = Reading(signal=signal, step=step, epoch=float(step), value=value)
        memory, verdict = stopping.step(rule, memory, [reading])
        if verdict.act:
            return step
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a rule's alarms: epochs before the level was reached, of trainings that reached it.

    A miss (no alarm before) leads by nothing. ``false_alarms`` are those on trainings that never got there.
    """

    rule: Rule
    lead_epochs: tuple[float, ...]
    misses: int
    false_alarms: int
    controls: int

    @property
    def mean_lead_epochs(self) -> float:
        """Epochs by which the alarm led, on average."""
        return sum(self.lead_epochs) / len(self.lead_epochs) if self.lead_epochs else 0.0


def tally(rule: Rule, learned: Sequence[Watched], controls: Sequence[Watched]) -> Tally:
    """Let a rule loose on trainings that reached the level and on some that never did."""
    leads = []
    for each in learned:
        step = alarm_step(rule, each.series)
        assert each.reached_step is not None, "a training that reached the level"
        leads.append(0.0 if step is None else (each.reached_step - step) / each.steps_per_epoch)
    return Tally(
        rule=rule,
        lead_epochs=tuple(leads),
        misses=sum(lead <= 0 for lead in leads),
        false_alarms=sum(alarm_step(rule, each.series) is not None for each in controls),
        controls=len(controls),
    )


def best(signal: str, learned: Sequence[Watched], controls: Sequence[Watched]) -> Tally:
    """Return the signal's candidate that errs least there, and of such the one that leads most.

    A false alarm weighs as much as a miss.
    """
    tallies = [tally(rule, learned, controls) for rule in CANDIDATES if getattr(rule, "signal", "") == signal]
    return min(tallies, key=lambda each: (each.false_alarms + each.misses, -each.mean_lead_epochs))
