"""Study ``gap``: whether a declining spectral gap of the updates tells trainings that grok from others.

The trainings are those of ``lead-time``, from its journal. The published criterion looks back from the step
of grokking; it is asked of trainings that never get there too, and beside it a rule that looks only back
from the step it is read at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf
from statistics import median
from typing import Any, Final

from tpsprune import stopping
from tpsprune.numerics.small_samples import fisher_greater, ratio_interval
from tpsprune_studies import lead_time
from tpsprune_studies.alarms import Alarms, WatchedTraining, choose_rule, count_alarms
from tpsprune_studies.finding import Curve, Finding, Panel, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup

TRAINING: Final = lead_time.TRAINING
make_setup: Final = lead_time.make_setup
run: Final = lead_time.run
GAP: Final = "gap_23"
PLACE: Final = "spectral_edge_k"
PUBLISHED_DECLINE: Final = 1.5
"""A gap that was so many times as large before as at the end has declined."""
EDGE_OF_LEARNERS: Final = 2
"""The most frequent k* of trainings that learn, as it was found here: no published rule."""
SURE: Final = 0.05
SMALLEST: Final = 1e-12
"""A gap below this share of its largest counts as that much."""


def plan(setup: Setup, done: Sequence[WatchedTraining]) -> Plan:
    """Return the trainings of ``lead-time`` but those on digits, which have no plateau to leave."""
    planned = lead_time.plan(setup, done)
    return Plan(tuple(trial for trial in planned.trials if trial.arm in lead_time.TASKS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How many trainings that learn meet a criterion, and how many that never do."""

    met: int
    learners: int
    met_by_controls: int
    controls: int

    @property
    def sensitivity(self) -> float:
        """The share of trainings that learn and meet it."""
        return self.met / self.learners

    @property
    def specificity(self) -> float:
        """The share of trainings that never learn and do not."""
        return 1 - self.met_by_controls / self.controls

    @property
    def luck(self) -> float:
        """How likely trainings that learn would meet it so much more often if it told nothing apart."""
        return fisher_greater(self.met, self.learners, self.met_by_controls, self.controls)

    @classmethod
    def of_alarms(cls, found: Alarms) -> Split:
        """Return what an alarm told apart: it counts where it rang before the level."""
        return cls(
            met=found.hits,
            learners=len(found.lead_epochs),
            met_by_controls=found.false_alarms,
            controls=found.controls,
        )


def read_until(training: WatchedTraining, signal: str, step: float) -> list[float]:
    """Return the values of a signal up to that step, as far as it had any."""
    points = takewhile(lambda point: point[0] <= step, training.series.get(signal, ()))
    return [value for _, value in points if value is not None]


def decline(training: WatchedTraining, step: float) -> float:
    """Return the largest gap up to that step over the gap then: by construction never below 1.

    Source: the code of Xu 2026 (arXiv 2602.16746), with the step of grokking.
    """
    gaps = read_until(training, GAP, step)
    largest = max(gaps, default=0.0)
    return largest / max(gaps[-1], SMALLEST * largest) if largest > 0.0 else 1.0


def usual_place(training: WatchedTraining, step: float) -> int:
    """Return the most frequent k* up to that step, of equally frequent ones the first to come; 0 for none."""
    places = Counter(read_until(training, PLACE, step)).most_common(1)
    return int(places[0][0]) if places else 0


def has_declined(training: WatchedTraining, step: float) -> bool:
    """Return whether the published criterion is met at that step."""
    return decline(training, step) > PUBLISHED_DECLINE


def has_edge_of_learners(training: WatchedTraining, step: float) -> bool:
    """Return whether the most frequent k* is that of trainings that learn."""
    return usual_place(training, step) == EDGE_OF_LEARNERS


CRITERIA: Final[Mapping[str, Callable[[WatchedTraining, float], bool]]] = {
    "published: largest gap over the last > 1.5": has_declined,
    "most frequent k* is 2": has_edge_of_learners,
}
PUBLISHED, USUAL_PLACE = CRITERIA


def conclude(setup: Setup, done: Sequence[WatchedTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what each criterion tells apart, of whole controls and of controls cut short.

    The alarm's rule is chosen on the pilot seed and judged on the others; the criteria that look back are
    asked of all seeds, since nothing was chosen.
    """
    seeds = (
        setup.pilot_seed,
        *setup.pair_seeds,
    )  # The journal may have more: lead-time's may be another size.
    trained = [each for each in done if each.trial.arm in lead_time.TASKS and each.trial.seed in seeds]
    learned, controls, _ = lead_time.divide(trained)
    pilot, judged = (
        lead_time.divide([each for each in trained if (each.trial.seed == setup.pilot_seed) is of_pilot])
        for of_pilot in (True, False)
    )
    alarm = count_alarms(choose_rule(GAP, *pilot[:2]).rule, *judged[:2])
    enough = len(learned) > 1 and len(controls) > 1 and bool(judged[0] and judged[1])
    usual_step = median(each.reached_step or 0 for each in learned) if learned else 0.0
    splits = {
        name: tuple(_split(criterion, learned, controls, last_step) for last_step in (inf, usual_step))
        for name, criterion in CRITERIA.items()
    }
    without_decay = [each for each in controls if not lead_time.TASKS[each.trial.arm].weight_decay]
    by_arm = {
        arm: found
        for arm in lead_time.TASKS
        if (found := [each for each in (*learned, *controls) if each.trial.arm == arm])
    }
    return Finding(
        name="gap",
        setup=setup,
        machine=machine,
        ruling=_rule(*splits[PUBLISHED]) if enough else Ruling.UNDECIDED,
        quantities=tuple(
            Quantity(
                name=arm,
                predicted=_predict(arm),
                measured=ratio_interval((decline(each, _end(each)), 1.0) for each in found),
            )
            for arm, found in by_arm.items()
            if len(found) > 1
        ),
        predicted_range=(PUBLISHED_DECLINE, None),
        figures={
            "enough": enough,
            "splits": splits,
            "without_decay": _split(has_declined, learned, without_decay, inf),
            "alarm": alarm,
            "of_alarm": Split.of_alarms(alarm),
            "describe": stopping.describe,
            "usual_step": usual_step,
            "tasks": lead_time.TASKS,
            "by_arm": by_arm,
            "decline": decline,
            "usual_place": usual_place,
            "end": _end,
        },
        trainings=tuple(replace(each, series={}) for each in trained),  # The journal has the series.
        panels=tuple(_panel(setup, title, found) for title, found in _sides(learned, controls) if found),
    )


def _end(training: WatchedTraining) -> int:
    """Return the step at which a training got to the level, or was given up."""
    return training.reached_step or training.steps


def _split(
    criterion: Callable[[WatchedTraining, float], bool],
    learned: Sequence[WatchedTraining],
    controls: Sequence[WatchedTraining],
    last_step: float,
) -> Split:
    return Split(
        met=sum(criterion(each, _end(each)) for each in learned),
        learners=len(learned),
        met_by_controls=sum(criterion(each, last_step) for each in controls),
        controls=len(controls),
    )


def _rule(whole: Split, short: Split) -> Ruling:
    """Return the ruling on the published criterion."""
    if whole.sensitivity < 0.5 or whole.specificity < 0.5:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if max(whole.luck, short.luck) < SURE else Ruling.UNDECIDED


def _predict(arm: str) -> str:
    """Return what was published of such trainings: with weight decay, if they learn, and without."""
    task = lead_time.TASKS[arm]
    if task.learns:
        return f"above {PUBLISHED_DECLINE:g}"
    return "" if task.weight_decay else f"at most {PUBLISHED_DECLINE:g}"


def _sides(
    learned: Sequence[WatchedTraining], controls: Sequence[WatchedTraining]
) -> tuple[tuple[str, Sequence[WatchedTraining]], ...]:
    return ("learns", learned), ("never learns", controls)


def _panel(setup: Setup, title: str, trainings: Sequence[WatchedTraining]) -> Panel:
    """Return the gaps of the first seed after the pilot, or of the pilot where that alone is there."""
    seed = min((each.trial.seed for each in trainings), key=lambda seed: (seed == setup.pilot_seed, seed))
    return Panel(
        title=f"{title}, seed {seed}",
        x="step",
        y="σ₂² − σ₃²",
        curves=tuple(
            Curve(
                name=each.trial.arm,
                points=tuple((step, value) for step, value in each.series[GAP] if value),
            )
            for each in trainings
            if each.trial.seed == seed and any(value for _, value in each.series.get(GAP, ()))
        ),
        log_y=True,
    )
