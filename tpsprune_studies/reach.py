"""Study ``reach``: where the speed-up of TPS holds, and where it ends.

Task by task, training without TPS and the variants that fit are compared as in ``speed-up``: each tuned on
pilot seeds, then compared on others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tpsprune import recipe
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import IdxData
from tpsprune.records import load
from tpsprune_studies.finding import Finding, Quantity, Ruling, rule_all
from tpsprune_studies.tuned_comparison import (
    PREDICTED,
    PREDICTED_LEAST,
    PREDICTED_MOST,
    Arm,
    ArmTraining,
    Experiment,
    Seeds,
    TunedSetup,
    Variant,
    collect_results,
    make_arms,
    plan,  # noqa: F401 -- `Study` has it
    run,  # noqa: F401 -- `Study` has it
)

TRAINING: Final = ArmTraining


COUPLINGS: Final = (10.0, 1.0, 0.1)
GENTLE: Final = (0.3, 0.1, 0.03)
"""λ of the group-wide variants, which stop learning where the others thrive."""
CONSTANT_RATE: Final = ("train.schedule='constant'", "train.warmup_share=0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachTask:
    """A task of ``reach.toml``: a shipped recipe with changes, what counts as learned, which variants fit."""

    name: str
    kind: Literal["structured", "ordinary", "control"] = "structured"
    base: str = "modular-addition"
    changes: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ("labels", "moments")
    degree: Literal[2, 3] = 2
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.01)
    level: float = 0.95
    cap_steps: int = 1500
    reading_steps: int = 5

    @property
    def recipe(self) -> Recipe:
        """The recipe with its changes, learning rates constant."""
        return recipe.read(self.base, (*CONSTANT_RATE, *self.changes))

    @property
    def is_missing(self) -> bool:
        """Whether its data are not on this machine."""
        data = self.recipe.task.data
        return isinstance(data, IdxData) and not Path(data.folder).is_dir()

    def make_experiment(self, *, full: bool) -> Experiment:
        """Return the task with its arms; ``full`` has Grokfast among them, and finer grids."""
        return Experiment(
            task=self.name,
            recipe=self.recipe,
            arms=self._make_arms(full=full),
            level=self.level,
            cap_steps=self.cap_steps,
            reading_steps=self.reading_steps,
        )

    def _make_arms(self, *, full: bool) -> tuple[Arm, ...]:
        is_control = self.kind == "control"  # One setting each, what is best on addition.
        rates = self.learning_rates
        decays: tuple[float, ...] = (0.1, 1.0) if self.kind == "ordinary" else (2.0, 0.5)
        more: tuple[float, ...] = (*decays, 0.01 if self.kind == "ordinary" else 4.0)
        if is_control:
            rates, decays, more = rates[:1], decays[:1], decays[:1]
        elif full:
            rates, decays, more = (*rates, rates[-1] / 3), more, (*more, 8.0)
        couplings = {
            variant: (GENTLE if variant in {"weights", "neurons"} else COUPLINGS)[: 1 if is_control else None]
            for variant in self.variants
        }
        return make_arms(rates, decays, more, couplings, grokfast=full, degree=self.degree)


TASKS: Final = tuple(
    load(ReachTask, each)
    for each in tomllib.loads(Path(__file__).with_name("reach.toml").read_text(encoding="utf-8"))["task"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach(TunedSetup):
    """The tasks, each with its experiment, and on how many seeds."""

    tasks: tuple[ReachTask, ...]


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Reach:  # noqa: ARG001 -- the protocol of a study; tasks have recipes and caps of their own
    """Return the settings of the study at that size."""
    size = Seeds(pilot_seeds=3 if full else 1, seeds=seeds or (10 if full else 5))
    tasks = tuple(task for task in TASKS if not task.is_missing)
    experiments = tuple(task.make_experiment(full=full) for task in tasks)
    return Reach(tasks=tasks, experiments=experiments, seeds=size, full=full)


def conclude(setup: Reach, done: Sequence[ArmTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison on every task; the ruling is on the structured ones together."""
    found, trainings = collect_results(setup, done)
    results = list(zip(setup.tasks, found, strict=True))
    structured = [(task, each) for task, each in results if task.kind == "structured" and each.ruling]
    return Finding(
        name="reach",
        setup=setup,
        machine=machine,
        ruling=rule_all(each.ruling for _, each in structured),
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
        figures={
            "results": results,
            "structured": structured,
            "missing": [task.name for task in TASKS if task.is_missing],
            "rulings": Ruling,
        },
        trainings=trainings,
    )
