"""Study ``reach``: where the speed-up of TPS holds, and where it ends.

Task by task, training without TPS and the variants that fit are compared as in ``speed-up``: each tuned on
pilot seeds, then compared on others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Quantity, Ruling
from tpsprune_studies.reach_tasks import ReachTask, list_missing, make_experiments
from tpsprune_studies.tuned_comparison import (
    PREDICTED,
    PREDICTED_LEAST,
    PREDICTED_MOST,
    ArmTraining,
    Seeds,
    TunedSetup,
    by_trial,
    plan,  # noqa: F401 -- `Study` has it
    run,  # noqa: F401 -- `Study` has it
    select_planned,
    summarise,
)

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


def conclude(setup: Reach, done: Sequence[ArmTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison on every task; the ruling is on the structured ones together."""
    finished = by_trial(done)
    results = [
        (task, summarise(experiment, setup.seeds, finished))
        for task, experiment in zip(setup.tasks, setup.experiments, strict=True)
    ]
    structured = [(task, each) for task, each in results if task.kind == "structured" and each.ruling]
    return Finding(
        name="reach",
        setup=setup,
        machine=machine,
        ruling=_rule({each.ruling for _, each in structured}),
        quantities=tuple(
            Quantity(
                name=f"{task.name}: {each.best.arm.name}",
                predicted=PREDICTED if task.kind == "structured" else "",
                measured=each.leading.steps,
                bound=each.leading.bound,
            )
            for task, each in results
            if each.ruling
        ),
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        figures={"results": results, "structured": structured, "missing": list_missing(), "rulings": Ruling},
        trainings=select_planned(setup, done),
    )


def _rule(rulings: Collection[Ruling | None]) -> Ruling:
    """Confirmed where every structured task confirms it, refuted where one refutes it: it speaks of all."""
    if Ruling.REFUTED in rulings:
        return Ruling.REFUTED
    return Ruling.CONFIRMED if rulings == {Ruling.CONFIRMED} else Ruling.UNDECIDED
