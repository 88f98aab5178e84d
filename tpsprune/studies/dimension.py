"""Study ``dimension``: whether training with TPS leaves fewer dimensions, and whether cuts then cost less.

The same nets from the same weights on the same data, without TPS and with each variant that fits; after
training the effective dimension of every group is read, and the net is cut without retraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.dimension_run import (
    ADDITION,
    DIGITS,
    OTHER,
    PARITY,
    PROBE_ITEMS,
    SHARES,
    WEIGHT_DECAYS,
    Dimensions,
    DimensionTrial,
    run_dimension,
)
from tpsprune.studies.figures import count
from tpsprune.studies.finding import Finding, Plan, Quantity, Table
from tpsprune.studies.setup import Setup, sized
from tpsprune.studies.verdict import Bound, Ruling

__all__ = ["finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["dimension"]
PREDICTED_SHARE: Final = 0.1
VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    ADDITION: ("none", "weights", "neurons", "labels", "moments"),
    DIGITS: ("none", "weights", "neurons", "moments"),
    PARITY: ("none", "moments"),
}
LIMITS: Final = (
    "Three tasks and one small net for each. Coupling λ is 1 and not tuned; a stronger one may lower "
    "dimensions further, at a price in accuracy.",
    "Arms of a seed share weights and data, so the interval over all trainings is narrower than independent "
    "trainings would make it.",
    "The abstract does not say what N counts. Here it is the width of a group, and the figure of a net the "
    "mean over its groups.",
    "Effective dimension is the effective rank of what a group's consumers are fed on the probe; other "
    "measures (participation ratio, nearest neighbours) give other numbers.",
)


run = run_dimension
record = Dimensions.from_json


def setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the study's settings at that size."""
    return sized(Setup(recipe=recipe, seeds=3), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[Dimensions]) -> Plan:  # noqa: ARG001 -- nothing depends on what is done
    """Return every task and variant on every seed, the variants of a seed one after the other."""
    return Plan(
        tuple(
            DimensionTrial(task=task, variant=variant, seed=seed)
            for seed in setup.pair_seeds
            for task, variants in VARIANTS.items()
            for variant in variants
        )
    )


def words(setup: Setup, last: Dimensions) -> str:  # noqa: ARG001 -- as studies are asked
    """Return which training ended, and how."""
    cut = ", ".join(f"{accuracy:.3f} at {share} MACs" for share, accuracy in last.cut_accuracies.items())
    return (
        f"seed {last.trial.seed} {last.trial.arm}: accuracy {last.accuracy:.3f}, d_eff {last.share:.2f} of "
        f"the width; cut {cut}"
    )


def finding(setup: Setup, done: Sequence[Dimensions], machine: Mapping[str, Any]) -> Finding:
    """Return dimensions and prunability by arm; the ruling is on the arms with TPS, task by task."""
    arms = dict.fromkeys(each.trial.arm for each in done)
    by_arm = {arm: [each for each in done if each.trial.arm == arm] for arm in arms}
    with_tps, without = (
        {
            task: mean_interval(
                each.share
                for each in done
                if each.trial.task == task and (each.trial.variant != "none") is regularised
            )
            for task in VARIANTS
        }
        for regularised in (True, False)
    )
    return Finding(
        prediction=PREDICTION,
        ruling=_ruling(with_tps.values()),
        sentence=(
            "after training with TPS the effective dimension, as a share of the width with its 95 % "
            f"interval, is: {'; '.join(_words(*each) for each in with_tps.items())}. Without TPS: "
            f"{'; '.join(_words(*each) for each in without.items())}. {_cost_sentence(by_arm)}"
        ),
        quantities=tuple(
            Quantity(
                name=arm,
                predicted="below 0.1" if not arm.endswith("none") else "",
                measured=mean_interval(each.share for each in trained),
                bound=Bound(),
            )
            for arm, trained in by_arm.items()
        ),
        measure="d_eff over the width, mean of groups",
        counted="trainings",
        predicted_range=(None, PREDICTED_SHARE),
        protocol=_protocol(setup),
        tables=(_cut_table(by_arm), _group_table(by_arm)),
        limits=LIMITS,
        command=f"tpsprune study {PREDICTION.name} --seeds {setup.seeds} --cap {setup.cap_steps}",
        settings={"seeds": list(setup.pair_seeds), **setup.decisive()},
        machine=machine,
        trainings=tuple(done),
    )


def _ruling(by_task: Iterable[Interval]) -> Ruling:
    """Refuted where one task refutes it, confirmed where all confirm it: it speaks of all."""
    found = list(by_task)
    if any(each.low >= PREDICTED_SHARE for each in found):
        return Ruling.REFUTED
    return Ruling.CONFIRMED if all(each.high < PREDICTED_SHARE for each in found) else Ruling.UNDECIDED


def _words(task: str, found: Interval) -> str:
    return f"{task} {found.mean:.2f} ({found.low:.2f} to {found.high:.2f}, {found.count} trainings)"


def _lost(each: Dimensions) -> float:
    return each.accuracy - each.cut_accuracies[f"{SHARES[-1]:g}"]


def _cost_sentence(by_arm: Mapping[str, Sequence[Dimensions]]) -> str:
    """Say by how many points less a cut costs with each variant, paired by seed."""
    parts = []
    for task, variants in VARIANTS.items():
        plain = {each.trial.seed: _lost(each) for each in by_arm[f"{task}, none"]}
        for variant in variants[1:]:
            gain = mean_interval(
                plain[each.trial.seed] - _lost(each) for each in by_arm[f"{task}, {variant}"]
            )
            parts.append(
                f"{task} `{variant}` {100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to "
                f"{100 * gain.high:+.1f})"
            )
    return f"What a cut to {SHARES[-1]:g} of the MACs costs less than without TPS: {'; '.join(parts)}."


def _protocol(setup: Setup) -> tuple[str, ...]:
    return (
        f"Tasks: recipe `{setup.recipe.name}` for {count(setup.cap_steps)} steps (weight decay "
        f"{WEIGHT_DECAYS['labels']:g} with `labels` and `moments`, {OTHER:g} else, what suited them best "
        f"elsewhere); recipe `{DIGITS}` over all its epochs; the parity of 2 of 40 bits, an MLP, 200 "
        "epochs. TPS in the loss, coupling λ = 1.",
        "A seed shares initial weights, split and order of data among its arms.",
        f"d_eff: effective rank of the covariance of what each group's consumers are fed, on {PROBE_ITEMS} "
        "training items, over the group's width.",
        "Cut: `tpsprune.extract` with its defaults on the same items, no retraining; accuracies are of the "
        "validation split.",
        f"Verdict: refuted where on one task the whole interval of trainings with TPS is at or above "
        f"{PREDICTED_SHARE:g}, confirmed where on every task it is wholly below, undecided else.",
    )


def _cut_table(by_arm: Mapping[str, Sequence[Dimensions]]) -> Table:
    rows = []
    for arm, trained in by_arm.items():
        cuts = [fmean(each.cut_accuracies[f"{share:g}"] for each in trained) for share in SHARES]
        accuracy = fmean(each.accuracy for each in trained)
        rows.append((arm, f"{accuracy:.3f}", *(f"{cut:.3f}" for cut in cuts)))
    return Table(
        title="Accuracy before and straight after a cut, mean over seeds",
        columns=("task, TPS", "dense", *(f"{share:g} of the MACs" for share in SHARES)),
        rows=tuple(rows),
    )


def _group_table(by_arm: Mapping[str, Sequence[Dimensions]]) -> Table:
    return Table(
        title="d_eff over the width by group, mean over seeds",
        columns=("task, TPS", "group", "d_eff / width"),
        rows=tuple(
            (arm, group, f"{fmean(each.shares[group] for each in trained):.3f}")
            for arm, trained in by_arm.items()
            for group in trained[0].shares
        ),
    )
