"""Study ``lead-time``: whether topology warns of generalisation, and what else does, earlier or cheaper.

Every signal is read while nets learn modular addition, subtraction and multiplication; others never can, and
digits learn without a plateau. On the pilot seed the best rule of each signal is chosen; on further
seeds it is counted how long before the level its alarm rang, and how often for nothing. The same rules are
then run over transformers that learn Dyck-1 and SCAN.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias, get_args

import torch

import tpsprune
from tpsprune import recipe, stopping
from tpsprune.numerics.small_samples import fisher_greater, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.recipe.schema import watched_names
from tpsprune.recipe.task import ModularData, Operation
from tpsprune.recipe.train import Signal, Tps
from tpsprune_studies import sequence_tasks
from tpsprune_studies.alarms import (
    CANDIDATES,
    DRAW_RULES,
    Act,
    Alarms,
    WatchedTraining,
    WatchedTrial,
    choose_rule,
    count_alarms,
    find_act,
)
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.sequence_tasks import AttentionGap, SequenceTask
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

TRAINING: Final = WatchedTraining
MONITORS: Final = frozenset(getattr(rule, "monitor", "") for rule in CANDIDATES)
SIGNALS: Final[tuple[Signal, ...]] = tuple(
    signal for signal in get_args(Signal) if MONITORS.intersection(watched_names((signal,)))
)
"""Those that some candidate looks at: the candidates were fixed before any training."""
DIGITS_OF_JOURNAL: Final = 6
"""Significant digits of a value in the journal."""
PREDICTED_EPOCHS: Final = 100.0
PREDICTED_MOST_EPOCHS: Final = 500.0
TOPOLOGICAL: Final = ("h1", "h1_max", "h1_total", "h1_sum_of_squares")
FALSE_ALARM_SHARE: Final = 0.5
SURE: Final = 0.05
WEIGHT_DECAY: Final = 4.0
"""What was best for training without TPS in the study ``speed-up``."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task by the operation of its data, and whether its net can generalise."""

    operation: Operation
    learns: bool
    weight_decay: float = WEIGHT_DECAY


TASKS: Final[Mapping[str, Task]] = {
    "add": Task("add", learns=True),
    "subtract": Task("subtract", learns=True),
    "multiply": Task("multiply", learns=True),
    "add, no decay": Task("add", learns=False, weight_decay=0.0),
    "a2+ab+b2": Task("a2+ab+b2", learns=False),
    "a3+ab": Task("a3+ab", learns=False),
}
Groups: TypeAlias = tuple[list[WatchedTraining], list[WatchedTraining], list[WatchedTraining]]
SEQUENCE_DECAY: Final = sequence_tasks.WEIGHT_DECAY
DIGITS: Final = "digits"
DIGITS_READING_STEPS: Final = 17
"""About an epoch."""
DIGITS_EPOCHS: Final = 40
DIGITS_CLASSES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedSetup(Setup):
    """The settings of the study; ``full`` has SCAN at its published size in place of the small one.

    Arms say which it is, so that both may stand in one journal.
    """

    full: bool = False

    @property
    def sequence_tasks(self) -> Mapping[str, SequenceTask]:
        """Dyck-1 and SCAN, with weight decay and without, by arm."""
        return sequence_tasks.FULL_TASKS if self.full else sequence_tasks.TASKS

    @property
    def sequence_trials(self) -> tuple[WatchedTrial, ...]:
        """The trainings on Dyck-1 and SCAN, the pilot seed among them: no rule is chosen there."""
        seeds = (self.pilot_seed, *self.pair_seeds)
        return tuple(
            WatchedTrial(arm=arm, seed=seed)
            for arm, task in self.sequence_tasks.items()
            for seed in seeds[: task.seeds]
        )

    def command(self, name: str) -> str:
        """Return the command that runs the study at this size."""
        return f"tpsprune study {name} --seeds {self.seeds} --cap {self.cap_steps}{' --full' * self.full}"


def make_setup(
    recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False
) -> WatchedSetup:
    """Return the settings of the study at that size."""
    setup = WatchedSetup(recipe=recipe, seeds=3, reading_steps=50, full=full)
    return resize(setup, seeds, cap_steps, full=full)


def plan(setup: WatchedSetup, done: Sequence[WatchedTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every task on the pilot seed, then on the others; Dyck-1 and SCAN last."""
    seeds = (setup.pilot_seed, *setup.pair_seeds)
    own = [WatchedTrial(arm=arm, seed=seed) for seed in seeds for arm in (*TASKS, DIGITS)]
    return Plan((*own, *setup.sequence_trials))


def run(setup: WatchedSetup, trial: WatchedTrial) -> WatchedTraining:
    """Train on the processor, read all signals every so many steps, stop once accuracy is at the level.

    Each signal has a ``tpsprune.Watch`` of its own, so that its cost is measured. On token pairs the
    coherence of TPS ``labels`` is read as well; it moves nothing. On Dyck-1 and SCAN the published gap of
    attention's updates is.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    published = setup.sequence_tasks.get(trial.arm)
    if trial.arm == DIGITS:
        cap_steps = DIGITS_EPOCHS * DIGITS_READING_STEPS
        # No accuracy is above 1: there is no level to reach, and every alarm of the training counts.
        setup = replace(setup, cap_steps=cap_steps, level=2.0, reading_steps=DIGITS_READING_STEPS)
        found = at_seed(recipe.read(DIGITS), trial.seed)
    elif published:
        cap_steps = min(setup.cap_steps, published.cap_steps)
        setup = replace(setup, cap_steps=cap_steps, reading_steps=published.reading_steps)
        found = published.make_recipe(setup.recipe, trial.seed)
    else:
        task = TASKS[trial.arm]
        found = at_seed(setup.recipe, trial.seed, weight_decay=task.weight_decay)
        data = replace(found.task.data, operation=task.operation)  # type: ignore[arg-type]
        found = replace(found, task=replace(found.task, data=data))
    prepared = prepare(found)
    inputs, labels = prepared.sample_calibration(found.watch.calibration_items)
    every: dict[str, Any] = {"every_steps": setup.reading_steps, "seed": found.seed}
    watch = partial(tpsprune.Watch, prepared.model, [inputs], [labels], **every)
    labels_tps = (
        prepared.build_regulariser(setup.cap_steps, Tps(variant="labels")) if trial.arm in TASKS else None
    )
    attention = AttentionGap(prepared.model, published.window, trial.seed) if published else None
    series: dict[str, list[tuple[int, float | None]]] = {}
    costs: dict[str, float] = dict.fromkeys(SIGNALS, 0.0)

    def note(name: str, value: float | None) -> None:
        rounded = None if value is None else float(f"{value:.{DIGITS_OF_JOURNAL}g}")
        series.setdefault(name, []).append((step, rounded))

    cpu_seconds, reached, step, losses = 0.0, None, 0, torch.zeros(())
    children_before = _child_cpu_seconds()
    with ExitStack() as stack:
        watches = {name: stack.enter_context(watch(signals=[name])) for name in SIGNALS}
        resumed = time.process_time()
        for tick in prepared.fit(setup.cap_steps):
            losses += tick.loss
            step = tick.step
            if step % setup.reading_steps:
                continue
            cpu_seconds += time.process_time() - resumed
            score = prepared.evaluate()
            note("train_loss", float(losses) / setup.reading_steps)
            note("validation_loss", score.loss)
            note("validation_accuracy", score.accuracy)
            losses = torch.zeros(())
            readings = list(labels_tps.order_parameters(step=step, epoch=tick.epoch)) if labels_tps else []
            for name, each in watches.items():
                seen, before = len(each.readings), time.process_time()
                each.step(step, epoch=tick.epoch)
                costs[name] += time.process_time() - before
                readings += each.readings[seen:]
            for signal, value in attention.read() if attention else ():
                note(signal, value)
            # Loops come one reading late, and are noted at the step where they come.
            for reading in readings:
                if not reading.group:
                    note(reading.signal, reading.value)
            if score.accuracy >= setup.level:
                reached = step
                break
            resumed = time.process_time()
    # Loops are counted in a process of their own, the only one that a training starts.
    costs["h1"] += _child_cpu_seconds() - children_before
    return WatchedTraining(
        trial=trial,
        steps=step,
        steps_per_epoch=prepared.steps_per_epoch,
        reached_step=reached,
        series={name: tuple(points) for name, points in series.items()},
        cpu_seconds=cpu_seconds,
        signal_cpu_seconds=costs,
    )


def _child_cpu_seconds() -> float:
    """Return the processor time of the processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def conclude(setup: WatchedSetup, done: Sequence[WatchedTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what the alarms were worth; the pilot chooses rules and is counted nowhere.

    The ruling is on the topological signal that did best on the pilot.
    """
    own = [each for each in done if each.trial.arm in (*TASKS, DIGITS)]
    judged = [each for each in own if each.trial.seed in setup.pair_seeds]
    groups = learned, controls, ordinary = divide(judged)
    pilot = divide([each for each in own if each.trial.seed == setup.pilot_seed])
    signals = dict.fromkeys(getattr(rule, "monitor", "") for rule in CANDIDATES)
    chosen = {signal: choose_rule(signal, *pilot[:2]) for signal in signals}
    found = {signal: count_alarms(each.rule, learned, controls) for signal, each in chosen.items()}
    topological = found[min(TOPOLOGICAL, key=lambda signal: chosen[signal].errors_and_lead)]
    enough = len(learned) >= 2
    owners = {name: owner for owner in SIGNALS for name in watched_names((owner,))}
    seconds = sum(each.cpu_seconds for each in judged)
    shares = {
        signal: sum(each.signal_cpu_seconds.get(owners.get(signal, ""), 0.0) for each in judged) / seconds
        for signal in found
    }
    return Finding(
        name="lead-time",
        setup=setup,
        machine=machine,
        ruling=_rule(topological) if enough else Ruling.UNDECIDED,
        quantities=tuple(
            Quantity(
                name=signal,
                predicted="100 to 500" if signal in TOPOLOGICAL else "",
                measured=mean_interval(each.lead_epochs),
            )
            for signal, each in found.items()
            if enough
        ),
        predicted_range=(PREDICTED_EPOCHS, PREDICTED_MOST_EPOCHS),
        figures={
            "topological": topological if enough else None,
            "luck": _luck(topological),
            "alarms": sorted(found.items(), key=lambda item: -item[1].value),
            "cost_shares": shares,
            "on_digits": {signal: count_alarms(each.rule, [], ordinary) for signal, each in found.items()},
            "elsewhere": _run_elsewhere(setup, done, found),
            "draws": _collect_draws(setup, groups),
            "groups": groups,
            "epoch_steps": judged[0].steps_per_epoch,
            "done": done,
            "describe": stopping.describe,
        },
        trainings=tuple(replace(each, series={}) for each in done),  # The journal has the series.
    )


def divide(done: Sequence[WatchedTraining]) -> Groups:
    """Return those that got to the level, controls, which never do, and those on digits."""
    able = {name for name, task in TASKS.items() if task.learns}
    return (
        [each for each in done if each.trial.arm in able and each.reached_step is not None],
        [each for each in done if each.trial.arm in TASKS.keys() - able and each.reached_step is None],
        [each for each in done if each.trial.arm == DIGITS],
    )


def divide_by_language(
    setup: WatchedSetup, done: Sequence[WatchedTraining]
) -> Mapping[str, tuple[list[WatchedTraining], list[WatchedTraining]]]:
    """Return, of Dyck-1 and SCAN, trainings with weight decay that got to the level, and published controls.

    Those are without decay and never do. Whoever does otherwise is in neither list.
    """
    found: dict[str, tuple[list[WatchedTraining], list[WatchedTraining]]] = {}
    for each in done:
        if each.trial in setup.sequence_trials:
            task = setup.sequence_tasks[each.trial.arm]
            learned, controls = found.setdefault(task.language, ([], []))
            if task.learns == (each.reached_step is not None):
                (learned if task.learns else controls).append(each)
    return found


def _run_elsewhere(
    setup: WatchedSetup, done: Sequence[WatchedTraining], found: Mapping[str, Alarms]
) -> dict[str, dict[str, Alarms | None]]:
    """Return, by language and signal, what the rules chosen on the pilot are worth there; none if unread."""
    return {
        language: {
            signal: count_alarms(each.rule, learned, controls)
            if any(value is not None for one in learned for _, value in one.series.get(signal, ()))
            else None
            for signal, each in found.items()
        }
        for language, (learned, controls) in divide_by_language(setup, done).items()
    }


def _luck(found: Alarms) -> float:
    """Return how likely an alarm that tells nothing apart would ring so much more often before the level."""
    return fisher_greater(found.hits, len(found.lead_epochs), found.false_alarms, found.controls)


def _rule(found: Alarms) -> Ruling:
    """Return the ruling on an alarm."""
    lead = mean_interval(found.lead_epochs)
    if found.false_alarms > FALSE_ALARM_SHARE * found.controls or lead.high < PREDICTED_EPOCHS:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if lead.low >= PREDICTED_EPOCHS and _luck(found) < SURE else Ruling.UNDECIDED


def _collect_draws(setup: Setup, groups: Groups) -> dict[str, list[list[tuple[Act, WatchedTraining]]]]:
    """Return, by rule, the tickets that it drew in each group."""
    classes = setup.recipe.task.data.modulus if isinstance(setup.recipe.task.data, ModularData) else 1
    chances = {**dict.fromkeys(TASKS, 1.0 / classes), DIGITS: 1.0 / DIGITS_CLASSES}
    return {
        name: [
            [(act, each) for each in group if (act := find_act(rule, each, chances[each.trial.arm]))]
            for group in groups
        ]
        for name, rule in DRAW_RULES.items()
    }
