"""Study ``speed-up``: whether TPS makes a structured task converge two to five times faster.

Two arms, without TPS and with variant ``labels``, each at the weight decay that was fastest for it on the
pilot seed, meet on further seeds: same initial weights, same split, same order of data within a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.figures import count, cpu_seconds, ratio
from tpsprune.studies.finding import Finding, Plan, Quantity, Table
from tpsprune.studies.setup import Setup
from tpsprune.studies.statistics import Interval, ratio_interval
from tpsprune.studies.trial import Arm, Trained, Trial, run_trial
from tpsprune.studies.verdict import Bound, judge

__all__ = ["finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["speed-up"]
PREDICTED_LEAST: Final = 2.0
PREDICTED_MOST: Final = 5.0
PREDICTED: Final = f"{PREDICTED_LEAST:g} to {PREDICTED_MOST:g}"
WITHOUT: Final[Arm] = "none"
WITH: Final[Arm] = "labels"
ARMS: Final = (WITHOUT, WITH)
LIMITS: Final = (
    "One task family (modular addition with tokens and answers renamed at random), one architecture (a token "
    "MLP with one hidden layer). Nothing is said of images, text, attention or larger models.",
    "The published abstract gives no formula: TPS here is our instantiation, variant `labels`. A failure "
    "would speak against this variant, not against every reading of the abstract, and so would a success.",
    "`labels` was worked out on tasks of this family, and its coupling λ is the recipe's, not tuned here. A "
    "task that it was not worked out on would be the harder test.",
    "Weight decay was tuned for both arms over the same grid on one seed; the learning rate was not. The "
    "opponent has more to gain from tuning: over the narrower grid 1, 2 the ratio came out larger, at a "
    "higher learning rate smaller.",
    "Evaluation is not in the CPU-seconds, nor are data, set-up and the trainings of the pilot. What else a "
    "machine does changes a CPU-second's worth; the arms of a pair run one after the other to share it.",
)


run = run_trial
record = Trained.from_json


def setup(recipe: Recipe, seeds: int, cap_steps: int) -> Setup:
    """Return the study's settings at that size."""
    return Setup(recipe=recipe, seeds=seeds, cap_steps=cap_steps)


def words(setup: Setup, last: Trained) -> str:
    """Return which training ended, how, and how fast."""
    trial = last.trial
    reached = f"{setup.level:g} at step {count(last.steps)}"
    missed = f"{last.validation_accuracy:.3f} after {count(last.steps)} steps, {setup.level:g} not reached"
    return (
        f"{trial.stage} seed {trial.seed} {trial.arm} weight decay {trial.weight_decay:g}: "
        f"{reached if last.reached else missed}, {last.cpu_seconds:.1f} CPU-s "
        f"({last.steps / last.seconds:.0f} steps/s)"
    )


def plan(setup: Setup, done: Sequence[Trained]) -> Plan:
    """Return the pilot, and once it is done the pairs, the arms of a seed one after the other."""
    pilot = tuple(
        Trial(stage="pilot", seed=setup.pilot_seed, arm=arm, weight_decay=weight_decay)
        for arm in ARMS
        for weight_decay in setup.weight_decays
    )
    by_trial = _by_trial(done)
    if not all(trial in by_trial for trial in pilot):
        return Plan(pilot, ARMS * setup.seeds)
    chosen = _chosen([by_trial[trial] for trial in pilot])
    pairs = (
        Trial(stage="pair", seed=seed, arm=arm, weight_decay=chosen[arm].trial.weight_decay)
        for seed in setup.pair_seeds
        for arm in ARMS
    )
    return Plan((*pilot, *pairs))


def finding(setup: Setup, done: Sequence[Trained], machine: Mapping[str, Any]) -> Finding:
    """Return what the finished trainings of ``plan`` say; the pilot is shown and left out of every ratio.

    The ruling is on the steps alone. A training that never reached the level counts with the steps and
    seconds it was given, which makes its pair's ratio a bound.
    """
    by_trial = _by_trial(done)
    trainings = tuple(by_trial[trial] for trial in plan(setup, done).trials)
    pilot = [trained for trained in trainings if trained.trial.stage == "pilot"]
    pairs = _pairs(trainings)
    bound = Bound(
        may_be_larger=any(not without.reached for without, _ in pairs),
        may_be_smaller=any(not with_tps.reached for _, with_tps in pairs),
    )
    steps = ratio_interval((without.steps, with_tps.steps) for without, with_tps in pairs)
    seconds = ratio_interval((without.cpu_seconds, with_tps.cpu_seconds) for without, with_tps in pairs)
    return Finding(
        prediction=PREDICTION,
        ruling=judge(steps.low, steps.high, PREDICTED_LEAST, bound),
        sentence=_sentence(setup, steps, seconds, pairs, bound),
        quantities=(
            Quantity(name="optimiser steps", predicted=PREDICTED, measured=steps, bound=bound),
            Quantity(name="CPU-seconds of training", predicted=PREDICTED, measured=seconds, bound=bound),
        ),
        measure="ratio without / with TPS",
        counted="pairs",
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        protocol=_protocol(setup, _chosen(pilot)),
        tables=(_pair_table(pairs), _pilot_table(setup, pilot)),
        limits=LIMITS,
        command=f"tpsprune study {PREDICTION.name} --seeds {setup.seeds} --cap {setup.cap_steps}",
        settings={"seeds": list(setup.pair_seeds), **setup.decisive()},
        machine=machine,
        trainings=trainings,
    )


def _by_trial(done: Sequence[Trained]) -> dict[Any, Trained]:
    return {trained.trial: trained for trained in reversed(done)}


def _pairs(trainings: Sequence[Trained]) -> list[tuple[Trained, Trained]]:
    arms = [
        [trained for trained in trainings if trained.trial.stage == "pair" and trained.trial.arm == arm]
        for arm in ARMS
    ]
    return list(zip(*arms, strict=True))


def _chosen(pilot: Sequence[Trained]) -> dict[str, Trained]:
    """Return each arm's best pilot: the fewest steps, at equal steps the higher accuracy."""
    return {
        arm: min(
            (trained for trained in pilot if trained.trial.arm == arm),
            key=lambda trained: (trained.steps, -trained.validation_accuracy),
        )
        for arm in ARMS
    }


def _sentence(
    setup: Setup,
    steps: Interval,
    seconds: Interval,
    pairs: Sequence[tuple[Trained, Trained]],
    bound: Bound,
) -> str:
    words = f"{bound.words} " if bound.words else ""
    text = (
        f"to validation accuracy {setup.level:g}, training without TPS takes {words}{ratio(steps.mean)} "
        f"times the optimiser steps of training with TPS `{WITH}` (95 % interval {ratio(steps.low)} to "
        f"{ratio(steps.high)}) and {words}{ratio(seconds.mean)} times its CPU-seconds "
        f"({ratio(seconds.low)} to {ratio(seconds.high)}), over {steps.count} pairs."
    )
    if steps.low > PREDICTED_MOST and not bound.may_be_smaller:
        text += f" The interval of steps lies above the predicted {PREDICTED}."
    for arm, (name, side) in enumerate((("without", "a lower"), ("with", "an upper"))):
        stopped = sum(not pair[arm].reached for pair in pairs)
        if stopped:
            text += (
                f" {stopped} of {len(pairs)} trainings {name} TPS never got there in "
                f"{count(setup.cap_steps)} steps and count with those: their ratio is {side} bound."
            )
    return text


def _protocol(setup: Setup, chosen: Mapping[str, Trained]) -> tuple[str, ...]:
    data, train = setup.recipe.task.data, setup.recipe.train
    decays = " and ".join(f"{chosen[arm].trial.weight_decay:g} for `{arm}`" for arm in ARMS)
    grid = ", ".join(f"{weight_decay:g}" for weight_decay in setup.weight_decays)
    details = ", ".join(
        f"{name} {getattr(data, key)}"
        for key, name in (("operation", "operation"), ("modulus", "p ="), ("train_share", "share trained on"))
        if hasattr(data, key)
    )
    return (
        f"Task and model: recipe `{setup.recipe.name}` ({details}), {train.optimizer} at learning rate "
        f"{train.learning_rate:g}, coupling λ = {setup.recipe.tps.coupling:g}.",
        f"Arms: `{WITHOUT}` and TPS `{WITH}`. Both had the weight decays {grid} tried on the pilot seed; "
        f"chosen were {decays}: the fewest steps, at equal steps the higher accuracy. "
        "The pilot seed is in no ratio.",
        "A pair shares its seed: the same initial weights, the same split and renaming, the same order of "
        "data.",
        f"Measured: optimiser steps to the first reading of validation accuracy ≥ {setup.level:g}, read "
        f"every {setup.reading_steps} steps, at most {count(setup.cap_steps)}; and the processor seconds of "
        f"those steps on {setup.threads} thread, TPS's own cost included, evaluation excluded.",
        "Statistics: geometric mean of the ratios without / with TPS over pairs, and Student's t-interval on "
        "their logarithms.",
        f"Verdict: confirmed where the whole interval of the step ratio is at or above {PREDICTED_LEAST:g}, "
        f"refuted where it is wholly below, undecided else; `>` marks a training stopped at the cap, whose "
        "figures are bounds.",
    )


def _pair_table(pairs: Sequence[tuple[Trained, Trained]]) -> Table:
    return Table(
        title="Pairs",
        columns=(
            "seed",
            "steps without",
            "steps with",
            "ratio",
            "CPU-s without",
            "CPU-s with",
            "ratio",
            "of it TPS",
        ),
        rows=tuple(
            (
                str(without.trial.seed),
                _steps(without),
                _steps(with_tps),
                ratio(without.steps / with_tps.steps),
                _cpu_seconds(without),
                _cpu_seconds(with_tps),
                ratio(without.cpu_seconds / with_tps.cpu_seconds),
                f"{with_tps.tps_cpu_seconds / with_tps.cpu_seconds:.0%}",
            )
            for without, with_tps in pairs
        ),
    )


def _pilot_table(setup: Setup, pilot: Sequence[Trained]) -> Table:
    chosen = _chosen(pilot).values()
    return Table(
        title=f"Pilot, seed {setup.pilot_seed}",
        columns=("arm", "weight decay", "steps", "accuracy there", "CPU-s", "chosen"),
        rows=tuple(
            (
                trained.trial.arm,
                f"{trained.trial.weight_decay:g}",
                _steps(trained),
                f"{trained.validation_accuracy:.3f}",
                _cpu_seconds(trained),
                "yes" if trained in chosen else "",
            )
            for trained in pilot
        ),
    )


def _steps(trained: Trained) -> str:
    return count(trained.steps) if trained.reached else f"> {count(trained.steps)}"


def _cpu_seconds(trained: Trained) -> str:
    figure = cpu_seconds(trained.cpu_seconds)
    return figure if trained.reached else f"> {figure}"
