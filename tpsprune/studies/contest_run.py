"""One training of a contest: from an arm and a seed to the steps and processor seconds it took."""

from __future__ import annotations

import time
from dataclasses import replace

from tpsprune import training
from tpsprune.errors import DivergedError
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import ModularData, split_by
from tpsprune.recipe.train import Tps
from tpsprune.studies.contest import Contest, Trained, Trial
from tpsprune.studies.trial import DEVICE, accuracy_of, begin, regulariser_of, ticks_of

__all__ = ["recipe_of", "run_trial"]


def recipe_of(contest: Contest, trial: Trial) -> Recipe:
    """Return the contest's recipe as ``trial`` runs it: one thread, and all that differs between trials."""
    recipe, arm = contest.recipe, contest.arm(trial.name)
    data = split_by(recipe.task.data, trial.seed)
    if arm.ordered and isinstance(data, ModularData):
        data = replace(data, relabel=False)
    return replace(
        recipe,
        seed=trial.seed,
        task=replace(recipe.task, data=data),
        train=replace(
            recipe.train,
            learning_rate=trial.learning_rate,
            weight_decay=trial.weight_decay,
            grokfast_gain=trial.strength if arm.grokfast else 0.0,
            threads=1,
        ),
        tps=Tps(
            variant=arm.variant,
            coupling=0.0 if arm.variant == "none" else trial.strength,
            degree=arm.degree,
            warmup_share=0.0,
        ),
    )


def run_trial(contest: Contest, trial: Trial) -> Trained:
    """Train on the processor until validation accuracy is at the level, or for the steps allowed.

    Validation is read every ``contest.reading_steps`` steps and once more at the end. A training that leaves
    the finite numbers has lost: it never gets there, and its accuracy is 0.

    Raises:
        VariantError: the arm's TPS variant does not fit the task or the model.
    """
    started = time.monotonic()
    recipe = recipe_of(contest, trial)
    dataset, model = begin(recipe)
    execution = training.Execution.of(recipe.train, DEVICE)
    regulariser = regulariser_of(recipe, dataset, model, contest.cap_steps)
    penalty = regulariser if regulariser and regulariser.in_loss else None
    ticks = ticks_of(recipe, dataset, model, execution, contest.cap_steps, penalty)
    steps, accuracy, cpu_seconds, tps_cpu_seconds = 0, 0.0, 0.0, 0.0
    resumed = time.process_time()
    try:
        for tick in ticks:
            moved = time.process_time()
            if regulariser is not None:
                regulariser.move(tick.step - 1, tick.learning_rate)
                tps_cpu_seconds += tick.penalty_cpu_seconds + time.process_time() - moved
            if tick.step % contest.reading_steps and tick.step < trial.allowed_steps:
                continue
            cpu_seconds += time.process_time() - resumed
            steps = tick.step
            accuracy = accuracy_of(model, dataset, execution)
            if accuracy >= contest.level or steps >= trial.allowed_steps:
                break
            resumed = time.process_time()
    except DivergedError:
        steps, accuracy = trial.allowed_steps, 0.0
    return Trained(
        trial=trial,
        steps=steps,
        reached=accuracy >= contest.level,
        validation_accuracy=accuracy,
        cpu_seconds=cpu_seconds,
        tps_cpu_seconds=tps_cpu_seconds,
        seconds=time.monotonic() - started,
    )
