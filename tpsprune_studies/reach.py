"""Study ``reach``: where the speed-up of TPS holds, and where it ends.

Task by task, training without TPS and the variants that fit are compared as in ``speed-up``: each tuned on
pilot seeds, then compared on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune_studies.catalogue import STUDIES, write_protocol
from tpsprune_studies.finding import (
    Finding,
    Quantity,
    Ruling,
    Table,
    format_interval,
    format_ratio,
    format_seconds,
    judge,
)
from tpsprune_studies.reach_tasks import ReachTask, list_missing, make_experiments
from tpsprune_studies.speed_up import PREDICTED, PREDICTED_LEAST, PREDICTED_MOST
from tpsprune_studies.tuned_comparison import (
    ArmResult,
    ArmTraining,
    PairedRatios,
    Seeds,
    TunedSetup,
    by_trial,
    choose_baseline,
    choose_best_tps,
    collect_results,
    compare,
    plan,  # noqa: F401 -- `Study` has it
    run,  # noqa: F401 -- `Study` has it
    select_planned,
)

PREDICTION: Final = STUDIES["reach"]
TRAINING: Final = ArmTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach(TunedSetup):
    """The tasks, each with its experiment, and on how many seeds."""

    tasks: tuple[ReachTask, ...]


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Reach:  # noqa: ARG001 -- the protocol of a study; tasks have recipes and caps of their own
    """Return the settings of the study at that size."""
    size = Seeds(pilot_seeds=3 if full else 1, seeds=seeds or (10 if full else 5))
    tasks, experiments = zip(*make_experiments(full=full), strict=True)
    return Reach(tasks=tasks, experiments=experiments, seeds=size, full=full)


def describe(setup: Reach, last: ArmTraining) -> str:  # noqa: ARG001 -- the protocol of a study
    """Return which training ended, and how."""
    trial = last.trial
    how = f"{last.validation_accuracy:.3f} {'at' if last.reached else 'after'} step {last.steps:,}"
    return f"{trial.task}: {trial.stage} seed {trial.seed} {trial.name} {trial.settings}: {how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """A finished task: the ratios of every arm with TPS to ``baseline``; ``best`` is the arm that is judged.

    No ratios where neither side ever reached the level.
    """

    task: ReachTask
    arms: tuple[ArmResult, ...]
    baseline: ArmResult
    best: ArmResult
    ratios_by_arm: Mapping[str, PairedRatios]

    @property
    def ratios(self) -> PairedRatios | None:
        """Those of the arm that is judged."""
        return self.ratios_by_arm.get(self.best.arm.name)

    def ruling_on(self, name: str) -> Ruling | None:
        """Return the verdict on this task alone, with that arm."""
        found = self.ratios_by_arm.get(name)
        return judge(found.steps.low, found.steps.high, PREDICTED_LEAST, found.bound) if found else None

    @property
    def ruling(self) -> Ruling | None:
        """The verdict on this task alone."""
        return self.ruling_on(self.best.arm.name)


def conclude(setup: Reach, done: Sequence[ArmTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison on every task; the ruling is on the structured ones together."""
    finished = by_trial(done)
    results = [
        _summarise(task, collect_results(experiment, setup.seeds, finished))
        for task, experiment in zip(setup.tasks, setup.experiments, strict=True)
    ]
    return Finding(
        prediction=PREDICTION,
        ruling=_rule(results),
        sentence=_write_sentence(results),
        quantities=tuple(
            Quantity(
                name=f"{each.task.name}: {each.best.arm.name}",
                predicted=PREDICTED if each.task.kind == "structured" else "",
                measured=each.ratios.steps,
                bound=each.ratios.bound,
            )
            for each in results
            if each.ratios is not None
        ),
        measure="optimiser steps without / with TPS",
        counted="pairs",
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        protocol=_write_protocol(setup),
        tables=(_task_table(results), _arm_table(results)),
        command=setup.command(PREDICTION.name),
        settings=setup.describe(),
        machine=machine,
        trainings=select_planned(setup, done),
    )


def _summarise(task: ReachTask, arms: tuple[ArmResult, ...]) -> TaskResult:
    baseline, best = choose_baseline(arms), choose_best_tps(arms)
    ratios = {
        arm.arm.name: compare(baseline, arm)
        for arm in arms
        if arm.arm.variant != "none"
        and any(training.reached for each in (baseline, arm) for training in each.trainings)
    }
    return TaskResult(task=task, arms=arms, baseline=baseline, best=best, ratios_by_arm=ratios)


def _rule(results: Sequence[TaskResult]) -> Ruling:
    """Confirmed where every structured task confirms it, refuted where one refutes it: it speaks of all."""
    rulings = [each.ruling for each in results if each.task.kind == "structured" and each.ruling]
    if Ruling.REFUTED in rulings:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if rulings and set(rulings) == {Ruling.CONFIRMED} else Ruling.UNDECIDED


def _write_sentence(results: Sequence[TaskResult]) -> str:
    structured = [each for each in results if each.task.kind == "structured" and each.ruling]
    parts = []
    for ruling, words in (
        (Ruling.CONFIRMED, "twice as fast or more, beyond doubt, on"),
        (Ruling.UNDECIDED, "undecided on"),
        (Ruling.REFUTED, "less than twice as fast, beyond doubt, on"),
    ):
        names = [each.task.name for each in structured if each.ruling is ruling]
        if names:
            parts.append(f"{words} {len(names)} ({'; '.join(names)})")
    ordinary = ", ".join(
        f"{each.task.name} {each.ratios.bound.qualify(format_ratio(each.ratios.steps.mean))}"
        for each in results
        if each.task.kind == "ordinary" and each.ratios
    )
    return (
        f"of {len(structured)} structured tasks, training with TPS is {', '.join(parts)}."
        f"{_write_labels_sentence(structured)}"
        + (f" On ordinary work steps without over steps with it are: {ordinary}." if ordinary else "")
    )


def _write_labels_sentence(structured: Sequence[TaskResult]) -> str:
    """Describe how the default variant does where it fits, judged there or not."""
    rulings = [ruling for each in structured if (ruling := each.ruling_on("labels"))]
    if not rulings:
        return ""
    counts = ", ".join(f"{ruling} on {rulings.count(ruling)}" for ruling in Ruling if ruling in rulings)
    return f" `labels` alone, on the {len(rulings)} that it fits: {counts}."


def _write_protocol(setup: Reach) -> tuple[str, ...]:
    pilots = setup.seeds.pilot_seeds
    paragraphs = write_protocol(
        PREDICTION.name,
        pilot_seeds=f"{pilots} pilot seed{'s' * (pilots > 1)}",
        levels=", ".join(f"{task.name} {task.level:g}" for task in setup.tasks if task.kind == "ordinary"),
    )
    left_out = ", ".join(list_missing())
    return paragraphs + (
        (f"Left out, since their data are not on this machine: {left_out}.",) if left_out else ()
    )


def _task_table(results: Sequence[TaskResult]) -> Table:
    header = "task | with TPS | steps | 95 % interval | CPU-s | 95 % interval | verdict | judged"
    arms = ((each, arm.arm) for each in results for arm in each.arms)
    rows = [_task_row(each, arm.name) for each, arm in arms if arm.variant != "none"]
    return Table("Task by task: steps and CPU-seconds without TPS over those with it", header, rows)


def _task_row(each: TaskResult, name: str) -> tuple[str, ...]:
    ratios = each.ratios_by_arm.get(name)
    judged = "yes" if name == each.best.arm.name else ""
    if ratios is None:
        return (each.task.name, name, "", "", "", "", "never learned", judged)
    return (
        each.task.name,
        name,
        ratios.bound.qualify(format_ratio(ratios.steps.mean)),
        format_interval(ratios.steps),
        ratios.bound.qualify(format_ratio(ratios.seconds.mean)),
        format_interval(ratios.seconds),
        str(each.ruling_on(name)),
        judged,
    )


def _arm_table(results: Sequence[TaskResult]) -> Table:
    rows = [
        (
            each.task.name,
            arm.arm.name,
            str(arm.chosen),
            ", ".join(arm.steps_by_seed),
            f"{max(training.validation_accuracy for training in arm.trainings):.3f}",
            format_seconds(arm.mean_cpu_seconds),
        )
        for each in results
        for arm in each.arms
    ]
    header = "task | arm | settings | steps by seed | best accuracy | CPU-s, mean"
    return Table("Every arm: what it was tuned to, and its steps on each seed", header, rows)
