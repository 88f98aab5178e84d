"""Study ``lead-time``: whether topology warns of generalisation, and what else does, earlier or cheaper.

Every signal is read while nets learn modular addition, subtraction and multiplication; others never can, and
digits learn without a plateau. On the pilot seed the best rule of each signal is chosen; on further
seeds it is counted how long before the level its alarm rang, and how often for nothing.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch

import tpsprune
from tpsprune import recipe, stopping
from tpsprune.numerics.small_samples import fisher_greater, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import ModularData
from tpsprune.recipe.train import Signal, Tps
from tpsprune_studies.alarms import (
    CANDIDATES,
    Alarms,
    WatchedTraining,
    WatchedTrial,
    choose_rule,
    count_alarms,
    tabulate_draws,
)
from tpsprune_studies.catalogue import STUDIES, write_protocol
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling, Table
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize

PREDICTION: Final = STUDIES["lead-time"]
TRAINING: Final = WatchedTraining
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)
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
    """A task by the fields of its data, and whether its net can generalise."""

    learns: bool
    data: Mapping[str, str]
    weight_decay: float = WEIGHT_DECAY


TASKS: Final[Mapping[str, Task]] = {
    "add": Task(learns=True, data={"operation": "add"}),
    "subtract": Task(learns=True, data={"operation": "subtract"}),
    "multiply": Task(learns=True, data={"operation": "multiply"}),
    "add, no decay": Task(learns=False, data={"operation": "add"}, weight_decay=0.0),
    "a2+ab+b2": Task(learns=False, data={"operation": "a2+ab+b2"}),
    "a3+ab": Task(learns=False, data={"operation": "a3+ab"}),
}
DIGITS: Final = "digits"
DIGITS_READING_STEPS: Final = 17
"""About an epoch."""
DIGITS_EPOCHS: Final = 40
DIGITS_CLASSES: Final = 10


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=3, reading_steps=50), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[WatchedTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every task on the pilot seed, then on the others."""
    seeds = (setup.pilot_seed, *setup.pair_seeds)
    return Plan(tuple(WatchedTrial(arm=arm, seed=seed) for seed in seeds for arm in (*TASKS, DIGITS)))


def run(setup: Setup, trial: WatchedTrial) -> WatchedTraining:
    """Run one training."""
    if trial.arm == DIGITS:
        found = at_seed(recipe.read(DIGITS), trial.seed)
        cap = DIGITS_EPOCHS * DIGITS_READING_STEPS
        # No accuracy is above 1: there is no level to reach, and every alarm of the training counts.
        return watch_training(found, trial, cap_steps=cap, level=2.0, reading_steps=DIGITS_READING_STEPS)
    task = TASKS[trial.arm]
    found = at_seed(setup.recipe, trial.seed, weight_decay=task.weight_decay)
    data = replace(found.task.data, **task.data)  # type: ignore[arg-type]
    return watch_training(
        replace(found, task=replace(found.task, data=data)),
        trial,
        cap_steps=setup.cap_steps,
        level=setup.level,
        reading_steps=setup.reading_steps,
    )


def watch_training(
    recipe: Recipe, trial: WatchedTrial, *, cap_steps: int, level: float, reading_steps: int
) -> WatchedTraining:
    """Train on the processor, read all signals every ``reading_steps``, stop once accuracy is at the level.

    Each signal has a ``tpsprune.Watch`` of its own, so that its cost is measured. On token pairs the
    coherence of TPS ``labels`` is read as well; it moves nothing.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started = time.monotonic()
    prepared = prepare(recipe)
    is_tokens = prepared.dataset.facts.input_kind == "tokens"
    labels_tps = prepared.build_regulariser(cap_steps, Tps(variant="labels")) if is_tokens else None
    series: dict[str, list[tuple[int, float | None]]] = {}
    costs: dict[str, float] = dict.fromkeys(SIGNALS, 0.0)

    def note(name: str, step: int, value: float | None) -> None:
        rounded = None if value is None else float(f"{value:.{DIGITS_OF_JOURNAL}g}")
        series.setdefault(name, []).append((step, rounded))

    cpu_seconds, reached, step, losses = 0.0, None, 0, torch.zeros(())
    children_before = _child_cpu_seconds()
    with ExitStack() as stack:
        watches = {name: stack.enter_context(_make_watch(prepared, name, reading_steps)) for name in SIGNALS}
        resumed = time.process_time()
        for tick in prepared.fit(cap_steps):
            losses += tick.loss
            step = tick.step
            if step % reading_steps:
                continue
            cpu_seconds += time.process_time() - resumed
            score = prepared.evaluate()
            note("train_loss", step, float(losses) / reading_steps)
            note("validation_loss", step, score.loss)
            note("validation_accuracy", step, score.accuracy)
            losses = torch.zeros(())
            for name, watch in watches.items():
                seen, before = len(watch.readings), time.process_time()
                watch.step(step, epoch=tick.epoch)
                costs[name] += time.process_time() - before
                # Loops come one reading late, and are noted at the step where they come.
                for reading in watch.readings[seen:]:
                    if not reading.group:
                        note(reading.signal, step, reading.value)
            for reading in labels_tps.order_parameters(step=step, epoch=tick.epoch) if labels_tps else ():
                if not reading.group:
                    note(reading.signal, step, reading.value)
            if score.accuracy >= level:
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
        seconds=time.monotonic() - started,
    )


def _make_watch(prepared: Prepared, signal: Signal, reading_steps: int) -> tpsprune.Watch:
    inputs, labels = prepared.sample_calibration(prepared.recipe.watch.calibration_items)
    seed = prepared.recipe.seed
    return tpsprune.Watch(
        prepared.model, [inputs], [labels], signals=[signal], every_steps=reading_steps, seed=seed
    )


def _child_cpu_seconds() -> float:
    """Return the processor time of the processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def describe(setup: Setup, last: WatchedTraining) -> str:
    """Return which training ended, and how."""
    reached = f"{setup.level:g} at step {last.reached_step:,}" if last.reached_step else "never there"
    signals = sum(last.signal_cpu_seconds.values())
    return (
        f"seed {last.trial.seed} {last.trial.arm}: {reached}, {last.steps:,} steps in "
        f"{last.cpu_seconds:.1f} CPU-s, signals {signals:.1f} CPU-s more"
    )


def conclude(setup: Setup, done: Sequence[WatchedTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what the alarms were worth; the pilot chooses rules and is counted nowhere.

    The ruling is on the topological signal that did best on the pilot.
    """
    pilot = [each for each in done if each.trial.seed == setup.pilot_seed]
    judged = [each for each in done if each.trial.seed in setup.pair_seeds]
    signals = dict.fromkeys(getattr(rule, "monitor", "") for rule in CANDIDATES)
    chosen = {signal: choose_rule(signal, _learned(pilot), _controls(pilot)) for signal in signals}
    found = {
        signal: count_alarms(each.rule, _learned(judged), _controls(judged))
        for signal, each in chosen.items()
    }
    topological = min(TOPOLOGICAL, key=lambda signal: chosen[signal].errors_and_lead)
    enough = len(_learned(judged)) >= 2
    ruling, sentence = (
        _rule(found[topological], max(found.values(), key=_value), setup.level)
        if enough
        else (Ruling.UNDECIDED, f"fewer than two trainings reached validation accuracy {setup.level:g}.")
    )
    return Finding(
        prediction=PREDICTION,
        ruling=ruling,
        sentence=sentence,
        quantities=tuple(
            Quantity(
                name=signal,
                predicted="100 to 500" if signal in TOPOLOGICAL else "",
                measured=mean_interval(each.lead_epochs),
            )
            for signal, each in found.items()
            if enough
        ),
        measure="lead of the alarm in epochs",
        counted="trainings",
        predicted_range=(PREDICTED_EPOCHS, PREDICTED_MOST_EPOCHS),
        protocol=write_protocol(
            PREDICTION.name,
            setup=setup,
            tasks="; ".join(TASKS),
            weight_decay=WEIGHT_DECAY,
            epoch=judged[0].steps_per_epoch,
            least_epochs=PREDICTED_EPOCHS,
            sure=SURE,
        ),
        tables=(_alarm_table(found, judged), _draw_table(setup, judged), _training_table(done)),
        command=setup.command(PREDICTION.name),
        settings={"seeds": list(setup.pair_seeds), **setup.decisive()},
        machine=machine,
        trainings=tuple(replace(each, series={}) for each in done),  # The journal has the series.
    )


def _learned(done: Sequence[WatchedTraining]) -> list[WatchedTraining]:
    able = [name for name, task in TASKS.items() if task.learns]
    return [each for each in done if each.trial.arm in able and each.reached_step is not None]


def _controls(done: Sequence[WatchedTraining]) -> list[WatchedTraining]:
    unable = [name for name, task in TASKS.items() if not task.learns]
    return [each for each in done if each.trial.arm in unable and each.reached_step is None]


def _rule(found: Alarms, best_of_all: Alarms, level: float) -> tuple[Ruling, str]:
    """Return the ruling on an alarm, and the sentence with its numbers and those of the best alarm of all."""
    lead = mean_interval(found.lead_epochs)
    tried = len(found.lead_epochs)
    chance = fisher_greater(found.hits, tried, found.false_alarms, found.controls)
    if found.false_alarms > FALSE_ALARM_SHARE * found.controls or lead.high < PREDICTED_EPOCHS:
        ruling = Ruling.REFUTED
    elif lead.low >= PREDICTED_EPOCHS and chance < SURE:
        ruling = Ruling.CONFIRMED
    else:
        ruling = Ruling.UNDECIDED
    return ruling, (
        f"the best topological alarm on the pilot ({stopping.describe(found.rule)}) rang before validation "
        f"accuracy {level:g} in {found.hits} of {tried} trainings, {lead.mean:.0f} epochs before "
        f"on average (95 % interval {lead.low:.0f} to {lead.high:.0f}), and for nothing in "
        f"{found.false_alarms} of {found.controls} that never got there (p = {chance:.2g} that it tells them "
        f"apart by luck). The best alarm of all ({stopping.describe(best_of_all.rule)}) rang in "
        f"{best_of_all.hits} of {len(best_of_all.lead_epochs)}, "
        f"{best_of_all.mean_lead_epochs:.0f} epochs before, and for nothing in {best_of_all.false_alarms} of "
        f"{best_of_all.controls}."
    )


def _alarm_table(found: Mapping[str, Alarms], judged: Sequence[WatchedTraining]) -> Table:
    ordinary = [each for each in judged if each.trial.arm == DIGITS]
    seconds = sum(each.cpu_seconds for each in judged)
    rows = []
    for signal, each in sorted(found.items(), key=lambda item: -_value(item[1])):
        costs = sum(one.signal_cpu_seconds.get(_owner_of(signal), 0.0) for one in judged)
        rows.append(
            (
                signal,
                stopping.describe(each.rule),
                f"{each.mean_lead_epochs:.0f}",
                str(each.hits),
                str(each.misses),
                f"{each.false_alarms} of {each.controls}",
                f"{count_alarms(each.rule, [], ordinary).false_alarms} of {len(ordinary)}",
                f"{costs / seconds:.1%}",
            )
        )
    header = "signal | rule | lead | hits | misses | false | on digits | CPU cost"
    return Table("Alarms on further seeds", header, rows)


def _draw_table(setup: Setup, judged: Sequence[WatchedTraining]) -> Table:
    classes = setup.recipe.task.data.modulus if isinstance(setup.recipe.task.data, ModularData) else 1
    ordinary = [each for each in judged if each.trial.arm == DIGITS]
    chances = {**dict.fromkeys(TASKS, 1.0 / classes), DIGITS: 1.0 / DIGITS_CLASSES}
    return tabulate_draws(_learned(judged), _controls(judged), ordinary, chances)


def _value(found: Alarms) -> float:
    """Return hits less false alarms, each as a share; of equal ones the longer lead counts."""
    hits = found.hits / max(1, len(found.lead_epochs))
    return hits - found.false_alarms / max(1, found.controls) + 1e-6 * found.mean_lead_epochs


def _owner_of(signal: str) -> str:
    """Return the signal, as a recipe names it, that reads a number; others are their own."""
    prefixes = {"h1": "h1", "spectral_edge": "spectral_edge", "gap_23": "spectral_edge"}
    return next((owner for prefix, owner in prefixes.items() if signal.startswith(prefix)), signal)


def _training_table(done: Sequence[WatchedTraining]) -> Table:
    rows = [
        (
            each.trial.arm,
            str(each.trial.seed),
            f"{each.reached_step:,}" if each.reached_step else f"not in {each.steps:,}",
            f"{each.series['validation_accuracy'][-1][1]:.3f}",
            f"{each.cpu_seconds:.1f}",
            f"{sum(each.signal_cpu_seconds.values()):.1f}",
        )
        for each in done
    ]
    header = "task | seed | level reached at step | last accuracy | CPU-s | signals' CPU-s"
    return Table("Trainings", header, rows)
