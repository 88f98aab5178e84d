"""Study ``speed-up``: whether TPS makes a structured task converge two to five times faster.

On modular addition every variant of TPS is compared with training without it and with Grokfast, each at the
learning rate, weight decay and strength that tuning on pilot seeds found best for it: same initial weights,
same split, same order of data within a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune.recipe.task import Data
from tpsprune_studies.catalogue import STUDIES, write_protocol
from tpsprune_studies.finding import (
    Finding,
    Quantity,
    Table,
    format_interval,
    format_ratio,
    format_seconds,
    judge,
)
from tpsprune_studies.tuned_comparison import (
    Arm,
    ArmResult,
    ArmTraining,
    Experiment,
    PairedRatios,
    Seeds,
    TunedSetup,
    Variant,
    by_trial,
    choose_baseline,
    choose_best_tps,
    collect_results,
    compare,
    plan,  # noqa: F401 -- `Study` has it
    run,  # noqa: F401 -- `Study` has it
    select_planned,
)

PREDICTION: Final = STUDIES["speed-up"]
TRAINING: Final = ArmTraining
PREDICTED_LEAST: Final = 2.0
PREDICTED_MOST: Final = 5.0
PREDICTED: Final = f"{PREDICTED_LEAST:g} to {PREDICTED_MOST:g}"
LEVEL: Final = 0.95
CAP_STEPS: Final = 3000
LEARNING_RATES: Final = (0.1, 0.03, 0.3, 0.01)
WEIGHT_DECAYS: Final = (2.0, 1.0, 4.0, 0.5)
MORE_DECAYS: Final = (*WEIGHT_DECAYS, 8.0)
COUPLINGS: Final[Mapping[Variant, tuple[float, ...]]] = {
    "labels": (10.0, 3.0, 30.0, 100.0),
    "moments": (10.0, 3.0, 30.0, 100.0),
    "fourier": (1.0, 0.3, 3.0, 10.0),
    "weights": (0.3, 0.1, 0.03, 1.0),
    "neurons": (0.3, 0.1, 1.0, 3.0),
}


def make_arms() -> tuple[Arm, ...]:
    """Return the arms, each with its grid."""
    return (
        Arm(name="none", learning_rates=LEARNING_RATES, weight_decays=MORE_DECAYS),
        Arm(
            name="grokfast",
            grokfast=True,
            learning_rates=LEARNING_RATES,
            weight_decays=MORE_DECAYS,
            strengths=(0.5, 0.1, 2.0),
        ),
        *(
            Arm(
                name=variant,
                variant=variant,
                ordered=variant == "fourier",
                learning_rates=LEARNING_RATES,
                weight_decays=WEIGHT_DECAYS,
                strengths=strengths,
            )
            for variant, strengths in COUPLINGS.items()
        ),
    )


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> TunedSetup:
    """Return the settings of the study at that size."""
    experiment = Experiment(
        task="addition",
        recipe=recipe,
        arms=make_arms(),
        level=LEVEL,
        cap_steps=cap_steps or CAP_STEPS,
        reading_steps=1,
    )
    size = Seeds(pilot_seeds=5 if full else 2, seeds=seeds or (10 if full else 5))
    return TunedSetup(experiments=(experiment,), seeds=size, full=full)


def describe(setup: TunedSetup, last: ArmTraining) -> str:
    """Return which training ended, how, and how fast."""
    trial, steps = last.trial, f"{last.steps:,}"
    reached = f"{setup.experiments[0].level:g} at step {steps}"
    missed = f"{last.validation_accuracy:.3f} after {steps} steps"
    return (
        f"{trial.stage} seed {trial.seed} {trial.name} {trial.settings}: "
        f"{reached if last.reached else missed}, {format_seconds(last.cpu_seconds)} CPU-s"
    )


def conclude(setup: TunedSetup, done: Sequence[ArmTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison; the ruling is on the steps of the arm with TPS that won on the pilot seeds."""
    results = collect_results(setup.experiments[0], setup.seeds, by_trial(done))
    baseline, best = choose_baseline(results), choose_best_tps(results)
    ratios = {result.arm.name: compare(baseline, result) for result in results if result is not baseline}
    leading = ratios[best.arm.name]
    return Finding(
        prediction=PREDICTION,
        ruling=judge(leading.steps.low, leading.steps.high, PREDICTED_LEAST, leading.bound),
        sentence=_write_sentence(setup, baseline, best, leading),
        quantities=tuple(
            Quantity(
                name=f"{name}: {what}",
                predicted=PREDICTED if name == best.arm.name else "",
                measured=measured,
                bound=each.bound,
            )
            for name, each in ratios.items()
            for what, measured in (("optimiser steps", each.steps), ("CPU-seconds", each.seconds))
        ),
        measure=f"ratio {baseline.arm.name} / arm",
        counted="pairs",
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        protocol=write_protocol(
            PREDICTION.name,
            setup=setup,
            experiment=setup.experiments[0],
            details=_describe_task(setup.experiments[0].recipe.task.data),
            baseline=baseline,
            best=best,
            least=PREDICTED_LEAST,
        ),
        tables=(_settings_table(results), _pair_table(results)),
        command=setup.command(PREDICTION.name),
        settings=setup.describe(),
        machine=machine,
        trainings=select_planned(setup, done),
    )


def _write_sentence(setup: TunedSetup, baseline: ArmResult, best: ArmResult, ratios: PairedRatios) -> str:
    steps, seconds, qualify = ratios.steps, ratios.seconds, ratios.bound.qualify
    text = (
        f"to validation accuracy {setup.experiments[0].level:g}, the faster of training without TPS and "
        f"Grokfast (`{baseline.arm.name}`) takes {qualify(format_ratio(steps.mean))} times the optimiser "
        f"steps of TPS `{best.arm.name}` (95 % interval {format_interval(steps)}) and "
        f"{qualify(format_ratio(seconds.mean))} times its CPU-seconds ({format_interval(seconds)}), over "
        f"{steps.count} pairs, every arm at the learning rate, weight decay and strength that suit it best."
    )
    for result, side in ((baseline, "a lower"), (best, "an upper")):
        missed = [training for training in result.trainings if not training.reached]
        if missed:
            text += (
                f" {len(missed)} of {steps.count} trainings of `{result.arm.name}` never got there "
                f"(> {missed[0].steps:,} steps): their ratio is {side} bound."
            )
    return text


def _describe_task(data: Data) -> str:
    return ", ".join(
        f"{name} {getattr(data, key)}"
        for key, name in (("operation", "operation"), ("modulus", "p ="), ("train_share", "share trained on"))
        if hasattr(data, key)
    )


def _settings_table(results: Sequence[ArmResult]) -> Table:
    """Return what each arm was tuned to, and where that lies at the end of a list."""
    rows = [
        (
            result.arm.name,
            f"{result.chosen.learning_rate:g}",
            f"{result.chosen.weight_decay:g}",
            f"{result.chosen.strength:g}" if result.chosen.strength else "",
            str(result.arm.size),
            "never" if result.pilot_steps is None else f"{result.pilot_steps:,}",
            ", ".join(result.arm.edges(result.chosen)),
        )
        for result in results
    ]
    header = "arm | learning rate | weight decay | λ or gain | tried | pilot steps | at an edge"
    return Table("What each arm was tuned to", header, rows)


def _pair_table(results: Sequence[ArmResult]) -> Table:
    """Return steps and processor seconds of every arm on every seed."""
    seeds = [f"steps, seed {training.trial.seed}" for training in results[0].trainings]
    rows = []
    for result in results:
        whole = sum(training.cpu_seconds for training in result.trainings)
        own = sum(training.tps_cpu_seconds for training in result.trainings)
        share = f"{own / whole:.0%}" if own else ""
        rows.append((result.arm.name, *result.steps_by_seed, format_seconds(result.mean_cpu_seconds), share))
    return Table("Steps to the level", " | ".join(["arm", *seeds, "CPU-s, mean", "of it TPS"]), rows)
