"""Study ``reach``: where the speed-up of TPS holds, and where it ends.

Task by task, training without TPS and the variants that fit meet as in ``speed-up``: each tuned by a race on
pilot seeds, then compared on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.contest import Contest, Size, Trained, Trial
from tpsprune.studies.contest_result import (
    Comparison,
    Entry,
    by_trial,
    champion,
    compare,
    entries,
    opponent,
    plan_contest,
    settings_words,
    steps_words,
)
from tpsprune.studies.contest_run import run_trial
from tpsprune.studies.figures import count, cpu_seconds, ratio
from tpsprune.studies.finding import Finding, Plan, Quantity, Table
from tpsprune.studies.reach_tasks import ReachTask, contests, missing
from tpsprune.studies.speed_up import PREDICTED, PREDICTED_LEAST, PREDICTED_MOST
from tpsprune.studies.verdict import Ruling, judge

__all__ = ["Reach", "finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["reach"]
LIMITS: Final = (
    "`moments` was taught to let go after a first run of this study, on some of the seeds that are compared "
    "here: its figures may flatter it. No other arm was changed after a look.",
    "Each arm is tuned over a coarse grid on one seed (nine settings without TPS, eight with it; λ over two "
    "orders of magnitude): an arm that lost may have lost to its grid.",
    "With few pairs an interval is wide: undecided is no finding that there is nothing. Every task has its "
    "own interval at 95 %: of twenty, one may miss by luck.",
    "CPU-seconds are of a machine that did other work at times, which no arm was spared; steps are not "
    "touched by that.",
    "Small networks throughout, on one processor thread. Fashion-MNIST is a tenth of its images and an MLP.",
    "`moments` couples the first layer of units (of a transformer the last MLP), in every task; other layers "
    "were not tried here. Text is the next character after eight others, by an MLP.",
    "The fewest steps to a level say nothing of what more training would bring.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The tasks with their contests, and on how many seeds."""

    tasks: tuple[tuple[ReachTask, Contest], ...]
    size: Size
    full: bool = False

    def decisive(self) -> dict[str, Any]:
        """Return what every line of the journal must agree on; trials hold the rest."""
        return {"pilot_seeds": self.size.pilot_seeds}


record = Trained.from_json


def setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Reach:  # noqa: ARG001 -- as studies are asked; tasks have recipes and caps of their own
    """Return the study's settings at that size."""
    size = Size(pilot_seeds=3 if full else 1, seeds=seeds or (10 if full else 5))
    return Reach(tasks=tuple(contests(full=full)), size=size, full=full)


def run(setup: Reach, trial: Trial) -> Trained:
    """Do one training."""
    return run_trial(next(contest for _, contest in setup.tasks if contest.task == trial.task), trial)


def plan(setup: Reach, done: Sequence[Trained]) -> Plan:
    """Return task after task: its races, and once they are done its comparison."""
    finished = by_trial(done)
    plans = [plan_contest(contest, setup.size, finished) for _, contest in setup.tasks]
    return Plan(
        tuple(trial for each in plans for trial in each.trials),
        tuple(arm for each in plans for arm in each.later_arms),
    )


def words(setup: Reach, last: Trained) -> str:  # noqa: ARG001 -- as studies are asked
    """Return which training ended, and how."""
    trial = last.trial
    how = f"{last.validation_accuracy:.3f} {'at' if last.reached else 'after'} step {count(last.steps)}"
    return (
        f"{trial.task}: {trial.stage} seed {trial.seed} {trial.name} {settings_words(trial.settings)}: {how}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A task after its contest: every arm with TPS beside ``against``; ``best`` is the one that is judged.

    No comparison where neither side ever got to the level.
    """

    task: ReachTask
    found: tuple[Entry, ...]
    against: Entry
    best: Entry
    comparisons: Mapping[str, Comparison]

    @property
    def comparison(self) -> Comparison | None:
        """That of the arm that is judged."""
        return self.comparisons.get(self.best.arm.name)

    def ruling_on(self, name: str) -> Ruling | None:
        """What the prediction comes to on this task alone, with that arm."""
        found = self.comparisons.get(name)
        return judge(found.steps.low, found.steps.high, PREDICTED_LEAST, found.bound) if found else None

    @property
    def ruling(self) -> Ruling | None:
        """What the prediction comes to on this task alone."""
        return self.ruling_on(self.best.arm.name)


def finding(setup: Reach, done: Sequence[Trained], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison on every task; the ruling is on the structured ones together."""
    finished = by_trial(done)
    outcomes = [_outcome(task, entries(contest, setup.size, finished)) for task, contest in setup.tasks]
    return Finding(
        prediction=PREDICTION,
        ruling=_ruling(outcomes),
        sentence=_sentence(outcomes),
        quantities=tuple(
            Quantity(
                name=f"{each.task.name}: {each.best.arm.name}",
                predicted=PREDICTED if each.task.kind == "structured" else "",
                measured=each.comparison.steps,
                bound=each.comparison.bound,
            )
            for each in outcomes
            if each.comparison is not None
        ),
        measure="optimiser steps without / with TPS",
        counted="pairs",
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        protocol=_protocol(setup),
        tables=(_task_table(outcomes), _arm_table(outcomes)),
        limits=LIMITS,
        command=f"tpsprune study {PREDICTION.name}" + (" --full" if setup.full else ""),
        settings={"seeds": list(setup.size.pairs), **setup.decisive()},
        machine=machine,
        trainings=tuple(finished[trial] for trial in plan(setup, done).trials if isinstance(trial, Trial)),
    )


def _outcome(task: ReachTask, found: tuple[Entry, ...]) -> Outcome:
    against, best = opponent(found), champion(found)
    comparisons = {
        entry.arm.name: compare(against, entry)
        for entry in found
        if entry.arm.variant != "none"
        and any(trained.reached for each in (against, entry) for trained in each.trainings)
    }
    return Outcome(task=task, found=found, against=against, best=best, comparisons=comparisons)


def _ruling(outcomes: Sequence[Outcome]) -> Ruling:
    """Confirmed where every structured task confirms it, refuted where one refutes it: it speaks of all."""
    rulings = [each.ruling for each in outcomes if each.task.kind == "structured" and each.ruling]
    if Ruling.REFUTED in rulings:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if rulings and set(rulings) == {Ruling.CONFIRMED} else Ruling.UNDECIDED


def _sentence(outcomes: Sequence[Outcome]) -> str:
    structured = [each for each in outcomes if each.task.kind == "structured" and each.ruling]
    parts = []
    for ruling, words in (
        (Ruling.CONFIRMED, "twice as fast or more, beyond doubt, on"),
        (Ruling.UNDECIDED, "undecided on"),
        (Ruling.REFUTED, "less than twice as fast, beyond doubt, on"),
    ):
        names = [each.task.name for each in structured if each.ruling is ruling]
        if names:
            parts.append(f"{words} {len(names)} ({'; '.join(names)})")
    ordinary = [each for each in outcomes if each.task.kind == "ordinary" and each.comparison]
    told = ", ".join(
        f"{each.task.name} {each.comparison.bound.words} {ratio(each.comparison.steps.mean)}".replace(
            "  ", " "
        )
        for each in ordinary
        if each.comparison
    )
    return (
        f"of {len(structured)} structured tasks, training with TPS is {', '.join(parts)}."
        f"{_labels_sentence(structured)}"
        + (f" On ordinary work steps without over steps with it are: {told}." if told else "")
    )


def _labels_sentence(structured: Sequence[Outcome]) -> str:
    """Say how the variant that is the default fares where it fits, judged there or not."""
    rulings = [ruling for each in structured if (ruling := each.ruling_on("labels"))]
    if not rulings:
        return ""
    counts = ", ".join(f"{ruling} on {rulings.count(ruling)}" for ruling in Ruling if ruling in rulings)
    return f" `labels` alone, on the {len(rulings)} that it fits: {counts}."


def _protocol(setup: Reach) -> tuple[str, ...]:
    left_out = missing()
    levels = ", ".join(f"{task.name} {task.level:g}" for task, _ in setup.tasks if task.kind == "ordinary")
    lines = (
        "Tasks: recipe `modular-addition` (p = 59, tokens and answers renamed at random, half of the table, "
        "an MLP of 256 units, full batches) with the change that names the task; `digits` and "
        "`fashion-mnist`; Python's own help texts. Learning rates constant.",
        "Arms: without TPS, `labels` where a unit has two tokens and a class, `moments` everywhere (degree 3 "
        "for the parity of three), `weights` and `neurons` on ordinary work. Tuned as in `speed-up`, on "
        f"{setup.size.pilot_seeds} pilot seed{'s' * (setup.size.pilot_seeds > 1)}; the fastest there of "
        "those with TPS is compared with the fastest without, on other seeds.",
        "Measured: optimiser steps to the first reading of validation accuracy at the task's level "
        f"({levels}; 0.95 elsewhere), read every 5 steps (Fashion-MNIST: 10). A training that never gets "
        "there counts with the cap, which makes its pair's ratio a bound.",
        "Verdict on a task: as in `speed-up`; those on the other arms are told for comparison. On the "
        "prediction: refuted where one structured task refutes it, confirmed where all confirm it, undecided "
        "else.",
    )
    return (
        (*lines, f"Left out, since their data are not on this machine: {', '.join(left_out)}.")
        if left_out
        else lines
    )


def _task_table(outcomes: Sequence[Outcome]) -> Table:
    return Table(
        title="Task by task: steps and CPU-seconds without TPS over those with it",
        columns=("task", "with TPS", "steps", "95 % interval", "CPU-s", "95 % interval", "verdict", "judged"),
        rows=tuple(
            _task_row(each, entry.arm.name)
            for each in outcomes
            for entry in each.found
            if entry.arm.variant != "none"
        ),
    )


def _task_row(each: Outcome, name: str) -> tuple[str, ...]:
    found = each.comparisons.get(name)
    judged = "yes" if name == each.best.arm.name else ""
    if found is None:
        return (each.task.name, name, "", "", "", "", "never learned", judged)
    words = f"{found.bound.words} " if found.bound.words else ""
    return (
        each.task.name,
        name,
        words + ratio(found.steps.mean),
        f"{ratio(found.steps.low)} to {ratio(found.steps.high)}",
        words + ratio(found.seconds.mean),
        f"{ratio(found.seconds.low)} to {ratio(found.seconds.high)}",
        str(each.ruling_on(name)),
        judged,
    )


def _arm_table(outcomes: Sequence[Outcome]) -> Table:
    return Table(
        title="Every arm: what it was tuned to, and its steps on each seed",
        columns=("task", "arm", "settings", "steps by seed", "best accuracy", "CPU-s, mean"),
        rows=tuple(
            (
                each.task.name,
                entry.arm.name,
                settings_words(entry.chosen),
                ", ".join(steps_words(trained) for trained in entry.trainings),
                f"{max(trained.validation_accuracy for trained in entry.trainings):.3f}",
                cpu_seconds(sum(t.cpu_seconds for t in entry.trainings) / len(entry.trainings)),
            )
            for each in outcomes
            for entry in each.found
        ),
    )
