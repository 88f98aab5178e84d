"""Study ``speed-up``: whether TPS makes a structured task converge two to five times faster.

On modular addition every variant of TPS is compared with training without it and with Grokfast, each at the
learning rate, weight decay and strength that tuning on pilot seeds found best for it: same initial weights,
same split, same order of data within a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune_studies.catalogue import STUDIES
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
LIMITS: Final = (
    "`moments` was taught to let go after a first run of this study, on some of the seeds that are compared "
    "here: its figures may flatter it. No other arm was changed after a look.",
    "One task and one architecture: modular addition with tokens and answers renamed at random, half of the "
    "table, a token MLP with one hidden layer. Where the gain ends is the question of the study `reach`.",
    "The published abstract gives no formula: every variant of TPS here is our instantiation. `labels` and "
    "`moments` were worked out on tasks of this family.",
    "The grids are coarse, factors of two to three, and each arm is tuned on few seeds: which of two near "
    "settings wins is luck, for every arm alike. Trainings without TPS were given as many settings as any.",
    "`fourier` has tokens and answers under their own names, which it needs and the others cannot see; it is "
    "paired by seed all the same.",
    "Evaluation is not in the CPU-seconds, nor are data, set-up and the races. What else a machine does "
    "changes a CPU-second's worth; the arms of a seed run one after the other to share it.",
    "The fewest steps to a level say nothing of what more training would bring.",
)


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
        protocol=_write_protocol(setup, baseline, best),
        tables=(_settings_table(results), _pair_table(results)),
        limits=LIMITS,
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


def _write_protocol(setup: TunedSetup, baseline: ArmResult, best: ArmResult) -> tuple[str, ...]:
    experiment = setup.experiments[0]
    data = experiment.recipe.task.data
    details = ", ".join(
        f"{name} {getattr(data, key)}"
        for key, name in (("operation", "operation"), ("modulus", "p ="), ("train_share", "share trained on"))
        if hasattr(data, key)
    )
    return (
        f"Task and model: recipe `{experiment.recipe.name}` ({details}), "
        f"{experiment.recipe.train.optimizer}, the whole of the training pairs in every step.",
        "Arms: without TPS (`none`), Grokfast-EMA (arXiv 2405.20233, memory 0.98), and TPS in every variant, "
        "`weights` and `neurons` decoupled, the others in the loss.",
        f"Tuning: each arm by a race on {setup.seeds.pilot_seeds} pilot seeds that are in no pair, over "
        "learning rates and weight decays together, then over λ (Grokfast: its gain); the fewest steps "
        "summed over the pilot seeds win. A training is given up once it can no longer win.",
        f"Compared: `{baseline.arm.name}`, the fastest on the pilot seeds of the two arms without TPS, with "
        f"each other arm. The verdict is on `{best.arm.name}`, the fastest there of those with TPS.",
        "A pair shares its seed: the same initial weights, split, renaming and order of data.",
        f"Measured: optimiser steps (each an epoch) to the first reading of validation accuracy ≥ "
        f"{experiment.level:g}, read after every step, at most {experiment.cap_steps:,}; and the "
        "processor seconds of those steps on one thread, TPS's own cost included, evaluation excluded.",
        "Statistics: geometric mean of the ratios over pairs, and Student's t-interval on their logarithms.",
        f"Verdict: {Ruling.CONFIRMED} where the whole interval of the step ratio is at or above "
        f"{PREDICTED_LEAST:g}, {Ruling.REFUTED} where it is wholly below, {Ruling.UNDECIDED} else; `>` marks "
        "a training stopped at the cap, whose figures are bounds.",
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
