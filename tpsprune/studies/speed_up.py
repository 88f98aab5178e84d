"""Study ``speed-up``: whether TPS makes a structured task converge two to five times faster.

On modular addition every variant of TPS meets training without it and Grokfast, each at the learning rate,
weight decay and strength that a race on pilot seeds found best for it: same initial weights, same split, same
order of data within a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.contest import Arm, Contest, Size, Trained, Trial, Variant
from tpsprune.studies.contest_result import (
    Comparison,
    Entry,
    by_trial,
    champion,
    compare,
    entries,
    opponent,
    pair_table,
    plan_contest,
    settings_table,
    settings_words,
    steps_words,
)
from tpsprune.studies.contest_run import run_trial
from tpsprune.studies.figures import count, cpu_seconds, ratio
from tpsprune.studies.finding import Finding, Plan, Quantity
from tpsprune.studies.verdict import Ruling, judge

__all__ = ["SpeedUp", "finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["speed-up"]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """The contest, and on how many seeds."""

    contest: Contest
    size: Size
    full: bool = False

    def decisive(self) -> dict[str, Any]:
        """Return what every line of the journal must agree on; trials hold the rest."""
        return {"pilot_seeds": self.size.pilot_seeds}


record = Trained.from_json


def arms() -> tuple[Arm, ...]:
    """Return who takes part, and over which grid."""
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


def setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> SpeedUp:
    """Return the study's settings at that size."""
    contest = Contest(
        task="addition",
        recipe=recipe,
        arms=arms(),
        level=LEVEL,
        cap_steps=cap_steps or CAP_STEPS,
        reading_steps=1,
    )
    size = Size(pilot_seeds=5 if full else 2, seeds=seeds or (10 if full else 5))
    return SpeedUp(contest=contest, size=size, full=full)


def run(setup: SpeedUp, trial: Trial) -> Trained:
    """Do one training."""
    return run_trial(setup.contest, trial)


def plan(setup: SpeedUp, done: Sequence[Trained]) -> Plan:
    """Return the races, and once they are done the comparison."""
    return plan_contest(setup.contest, setup.size, by_trial(done))


def words(setup: SpeedUp, last: Trained) -> str:
    """Return which training ended, how, and how fast."""
    trial = last.trial
    reached = f"{setup.contest.level:g} at step {count(last.steps)}"
    missed = f"{last.validation_accuracy:.3f} after {count(last.steps)} steps"
    return (
        f"{trial.stage} seed {trial.seed} {trial.name} {settings_words(trial.settings)}: "
        f"{reached if last.reached else missed}, {cpu_seconds(last.cpu_seconds)} CPU-s"
    )


def finding(setup: SpeedUp, done: Sequence[Trained], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison; the ruling is on the steps of the arm with TPS that won on the pilot seeds."""
    finished = by_trial(done)
    found = entries(setup.contest, setup.size, finished)
    against, best = opponent(found), champion(found)
    others = [entry for entry in found if entry is not against]
    compared = {entry.arm.name: compare(against, entry) for entry in others}
    leading = compared[best.arm.name]
    steps = leading.steps
    return Finding(
        prediction=PREDICTION,
        ruling=judge(steps.low, steps.high, PREDICTED_LEAST, leading.bound),
        sentence=_sentence(setup, against, best, leading),
        quantities=tuple(
            Quantity(
                name=f"{name}: {what}",
                predicted=PREDICTED if name == best.arm.name else "",
                measured=measured,
                bound=each.bound,
            )
            for name, each in compared.items()
            for what, measured in (("optimiser steps", each.steps), ("CPU-seconds", each.seconds))
        ),
        measure=f"ratio {against.arm.name} / arm",
        counted="pairs",
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        protocol=_protocol(setup, against, best),
        tables=(
            settings_table("What each arm was tuned to", found),
            pair_table("Steps to the level", found),
        ),
        limits=LIMITS,
        command=f"tpsprune study {PREDICTION.name}" + (" --full" if setup.full else ""),
        settings={"seeds": list(setup.size.pairs), **setup.decisive()},
        machine=machine,
        trainings=tuple(finished[trial] for trial in plan(setup, done).trials if isinstance(trial, Trial)),
    )


def _sentence(setup: SpeedUp, against: Entry, best: Entry, compared: Comparison) -> str:
    words = f"{compared.bound.words} " if compared.bound.words else ""
    steps, seconds = compared.steps, compared.seconds
    text = (
        f"to validation accuracy {setup.contest.level:g}, the faster of training without TPS and Grokfast "
        f"(`{against.arm.name}`) takes {words}{ratio(steps.mean)} times the optimiser steps of TPS "
        f"`{best.arm.name}` (95 % interval {ratio(steps.low)} to {ratio(steps.high)}) and {words}"
        f"{ratio(seconds.mean)} times its CPU-seconds ({ratio(seconds.low)} to {ratio(seconds.high)}), over "
        f"{steps.count} pairs, every arm at the learning rate, weight decay and strength that suit it best."
    )
    for entry, side in ((against, "a lower"), (best, "an upper")):
        missed = [trained for trained in entry.trainings if not trained.reached]
        if missed:
            text += (
                f" {len(missed)} of {steps.count} trainings of `{entry.arm.name}` never got there "
                f"({steps_words(missed[0])} steps): their ratio is {side} bound."
            )
    return text


def _protocol(setup: SpeedUp, against: Entry, best: Entry) -> tuple[str, ...]:
    contest, size = setup.contest, setup.size
    data = contest.recipe.task.data
    details = ", ".join(
        f"{name} {getattr(data, key)}"
        for key, name in (("operation", "operation"), ("modulus", "p ="), ("train_share", "share trained on"))
        if hasattr(data, key)
    )
    return (
        f"Task and model: recipe `{contest.recipe.name}` ({details}), {contest.recipe.train.optimizer}, the "
        "whole of the training pairs in every step.",
        "Arms: without TPS (`none`), Grokfast-EMA (arXiv 2405.20233, memory 0.98), and TPS in every variant, "
        "`weights` and `neurons` decoupled, the others in the loss.",
        f"Tuning: each arm by a race on {size.pilot_seeds} pilot seeds that are in no pair, over learning "
        "rates and weight decays together, then over λ (Grokfast: its gain); the fewest steps summed over "
        "the pilot seeds win. A training is given up once it can no longer win.",
        f"Compared: `{against.arm.name}`, the fastest on the pilot seeds of the two arms without TPS, with "
        f"each other arm. The verdict is on `{best.arm.name}`, the fastest there of those with TPS.",
        "A pair shares its seed: the same initial weights, split, renaming and order of data.",
        f"Measured: optimiser steps (each an epoch) to the first reading of validation accuracy ≥ "
        f"{contest.level:g}, read after every step, at most {count(contest.cap_steps)}; and the processor "
        "seconds of those steps on one thread, TPS's own cost included, evaluation excluded.",
        "Statistics: geometric mean of the ratios over pairs, and Student's t-interval on their logarithms.",
        f"Verdict: {Ruling.CONFIRMED} where the whole interval of the step ratio is at or above "
        f"{PREDICTED_LEAST:g}, {Ruling.REFUTED} where it is wholly below, {Ruling.UNDECIDED} else; `>` marks "
        "a training stopped at the cap, whose figures are bounds.",
    )
