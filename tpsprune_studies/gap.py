"""Study ``gap``: whether a declining spectral gap of the updates tells trainings that grok from others.

The trainings are those of ``lead-time``, from its journal: modular arithmetic, and Dyck-1 and SCAN as
published. The published criterion looks back from the step of grokking; it is asked of trainings that never
get there too, and beside it a rule that looks only back from the step it is read at.
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
from tpsprune.recipe.stop import ChangeRule
from tpsprune_studies import lead_time, sequence_tasks
from tpsprune_studies.alarms import Alarms, Series, WatchedTraining, choose_rule, count_alarms, find_act
from tpsprune_studies.finding import Curve, Finding, Panel, Plan, Quantity, Ruling, rule_all
from tpsprune_studies.lead_time import WatchedSetup

TRAINING: Final = lead_time.TRAINING
make_setup: Final = lead_time.make_setup
run: Final = lead_time.run
GAP: Final = "gap_23"
PLACE: Final = "spectral_edge_k"
MODULAR: Final = "modular arithmetic"
LANGUAGES: Final = (sequence_tasks.DYCK, sequence_tasks.SCAN)
PUBLISHED_DECLINE: Final = 1.5
"""A gap that was so many times as large before as at the end has declined."""
EDGE_OF_LEARNERS: Final = 2
"""The most frequent k* of trainings that learn, as it was found here: no published rule."""
SURE: Final = 0.05
SMALLEST: Final = 1e-12
"""A gap below this share of its largest counts as that much."""


def plan(setup: WatchedSetup, done: Sequence[WatchedTraining]) -> Plan:
    """Return the trainings of ``lead-time`` but those on digits, which have no plateau to leave."""
    planned = lead_time.plan(setup, done)
    return Plan(tuple(trial for trial in planned.trials if trial.arm != lead_time.DIGITS))


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


def name_read(training: WatchedTraining, of_attention: str, of_all: str) -> str:
    """Return which of two series is to be read: that of attention's updates, as published, where it is."""
    return of_attention if of_attention in training.series else of_all


def decline(training: WatchedTraining, step: float) -> float:
    """Return the largest gap up to that step over the gap then: by construction never below 1.

    Source: the code of Xu 2026 (arXiv 2602.16746), with the step of grokking.
    """
    gaps = read_until(training, name_read(training, sequence_tasks.GAP, GAP), step)
    largest = max(gaps, default=0.0)
    return largest / max(gaps[-1], SMALLEST * largest) if largest > 0.0 else 1.0


def usual_place(training: WatchedTraining, step: float) -> int:
    """Return the most frequent k* up to that step, of equally frequent ones the first to come; 0 for none."""
    read = read_until(training, name_read(training, sequence_tasks.PLACE, PLACE), step)
    places = Counter(read).most_common(1)
    return int(places[0][0]) if places else 0


def has_declined(training: WatchedTraining, step: float) -> bool:
    """Return whether the published criterion is met at that step."""
    return decline(training, step) > PUBLISHED_DECLINE


def has_warned(training: WatchedTraining, step: float) -> bool:
    """Return whether the gap lay that far below its largest so far at a reading before that step.

    The published criterion as a run could follow it: nobody knows the step of grokking beforehand.
    """
    monitor = name_read(training, sequence_tasks.GAP, GAP)
    rule = ChangeRule(monitor=monitor, factor=PUBLISHED_DECLINE, min_adjusted_accuracy=0.0)
    act = find_act(rule, training)
    return act is not None and act.step < step


def has_edge_of_learners(training: WatchedTraining, step: float) -> bool:
    """Return whether the most frequent k* is that of trainings that learn."""
    return usual_place(training, step) == EDGE_OF_LEARNERS


CRITERIA: Final[Mapping[str, Callable[[WatchedTraining, float], bool]]] = {
    "published: largest gap over the last > 1.5": has_declined,
    "online: 1.5 times below the largest so far, before": has_warned,
    "most frequent k* is 2": has_edge_of_learners,
}
PUBLISHED, ONLINE, USUAL_PLACE = CRITERIA


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Trainings on one kind of task: those that learn it, and those that never do.

    ``splits`` are of controls asked at their end, and at the median step at which the others got there.
    """

    name: str
    learned: Sequence[WatchedTraining]
    controls: Sequence[WatchedTraining]

    @property
    def enough(self) -> bool:
        """Whether there are two of either."""
        return len(self.learned) > 1 and len(self.controls) > 1

    @property
    def usual_step(self) -> float:
        """The median step at which trainings got to the level."""
        return median(each.reached_step or 0 for each in self.learned) if self.learned else 0.0

    @property
    def splits(self) -> dict[str, tuple[Split, Split]]:
        """What each criterion tells apart."""
        return {
            name: (self.split(criterion, inf), self.split(criterion, self.usual_step))
            for name, criterion in CRITERIA.items()
        }

    @property
    def ruling(self) -> Ruling | None:
        """The ruling on the published criterion; none where there are too few."""
        return _rule(*self.splits[PUBLISHED]) if self.enough else None

    def split(self, criterion: Callable[[WatchedTraining, float], bool], last_step: float) -> Split:
        """Return what a criterion tells apart; controls are asked at that step, or their end."""
        return Split(
            met=sum(criterion(each, _end(each)) for each in self.learned),
            learners=len(self.learned),
            met_by_controls=sum(criterion(each, last_step) for each in self.controls),
            controls=len(self.controls),
        )


def conclude(setup: WatchedSetup, done: Sequence[WatchedTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what each criterion tells apart, of whole controls and of controls cut short.

    The alarm's rule is chosen on the pilot seed and judged on the others; the criteria that look back, and
    the online one, are asked of all seeds, since nothing was chosen. Every kind of task has a ruling of its
    own: one that refutes it refutes the criterion, all have to confirm it.
    """
    # The journal may have more: lead-time's may be another size.
    trials = plan(setup, done).trials
    trained = [each for each in done if each.trial in trials]
    learned, controls, _ = lead_time.divide(trained)
    modular = Family(name=MODULAR, learned=learned, controls=controls)
    languages = lead_time.divide_by_language(setup, trained).items()
    families = (modular, *(Family(name=name, learned=one, controls=two) for name, (one, two) in languages))
    pilot, judged = (
        lead_time.divide([each for each in trained if (each.trial.seed == setup.pilot_seed) is of_pilot])
        for of_pilot in (True, False)
    )
    alarm = count_alarms(choose_rule(GAP, *pilot[:2]).rule, *judged[:2])
    arms = dict.fromkeys(trial.arm for trial in trials)
    by_arm = {arm: found for arm in arms if (found := [each for each in trained if each.trial.arm == arm])}
    asked = [family for family in families if family.enough]
    return Finding(
        name="gap",
        setup=setup,
        machine=machine,
        ruling=rule_all(family.ruling for family in asked),
        quantities=tuple(
            Quantity(
                name=arm,
                predicted=_predict(setup, arm),
                measured=ratio_interval((decline(each, _end(each)), 1.0) for each in found),
            )
            for arm, found in by_arm.items()
            if len(found) > 1
        ),
        predicted_range=(PUBLISHED_DECLINE, None),
        figures={
            "asked": asked,
            "unasked": [family for family in families if not family.enough],
            "modular": modular if modular.enough and judged[0] and judged[1] else None,
            "neither": [
                each
                for each in trained
                if not any(each in (*family.learned, *family.controls) for family in families)
            ],
            "alarm": alarm,
            "of_alarm": Split.of_alarms(alarm),
            "describe": stopping.describe,
            "tasks": lead_time.TASKS,
            "by_arm": by_arm,
            "usual_steps": {each.trial: family.usual_step for family in families for each in family.controls},
            "decline": decline,
            "usual_place": usual_place,
            "end": _end,
        },
        trainings=tuple(replace(each, series={}) for each in trained),  # The journal has the series.
        panels=tuple(
            _panel(setup, f"{family.name}: {title}", found)
            for family in families
            for title, found in (("learns", family.learned), ("never learns", family.controls))
            if found
        ),
    )


def _end(training: WatchedTraining) -> int:
    """Return the step at which a training got to the level, or was given up."""
    return training.reached_step or training.steps


def _rule(whole: Split, short: Split) -> Ruling:
    """Return the ruling on the published criterion."""
    if whole.sensitivity < 0.5 or whole.specificity < 0.5:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if max(whole.luck, short.luck) <= SURE else Ruling.UNDECIDED


def _predict(setup: WatchedSetup, arm: str) -> str:
    """Return what was published of such trainings: with weight decay, if they learn, and without."""
    task = lead_time.TASKS.get(arm) or setup.sequence_tasks[arm]
    if task.learns:
        return f"above {PUBLISHED_DECLINE:g}"
    return "" if task.weight_decay else f"at most {PUBLISHED_DECLINE:g}"


def _panel(setup: WatchedSetup, title: str, trainings: Sequence[WatchedTraining]) -> Panel:
    """Return the gaps of the first seed after the pilot, or of the pilot where that alone is there."""
    seed = min((each.trial.seed for each in trainings), key=lambda seed: (seed == setup.pilot_seed, seed))
    return Panel(
        title=f"{title}, seed {seed}",
        x="step",
        y="σ₂² − σ₃²",
        curves=tuple(
            Curve(
                name=each.trial.arm,
                points=tuple((step, value) for step, value in _gaps(each) if value),
            )
            for each in trainings
            if each.trial.seed == seed and any(value for _, value in _gaps(each))
        ),
        log_y=True,
    )


def _gaps(training: WatchedTraining) -> Series:
    return training.series.get(name_read(training, sequence_tasks.GAP, GAP), ())
