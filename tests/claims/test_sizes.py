"""A family beside a training of each size: every size must be kept, and shorter trainings be beaten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.claims.conftest import design, run
from tests.claims.test_opponents import SCATTER
from tpsprune.claims import assess
from tpsprune.records import ArmRun, ComparisonRecord, SizedModel, Standing
from tpsprune.report.savings.terms import accuracy_of

EACH = (100.0, 103.0, 98.0, 101.0, 99.0, 102.0)
FAMILY = (51.0, 50.0, 49.0, 50.5, 50.0, 51.5)
SIZES = (0.75, 0.5, 0.25)
ALIKE, BELOW = (0.0, 0.0, 0.0), (-0.004, -0.004, -0.006)


def sized(arm: str, pair: int, joules: float, differences: Sequence[float]) -> ArmRun:
    accuracies = [0.9 + each + SCATTER[pair] * (1 if arm == "dense-each" else -1) for each in differences]
    sizes = tuple(
        SizedModel(size=size, accuracy=found, parameters=10, macs=100, folder="", weights_sha256="")
        for size, found in zip(SIZES, accuracies, strict=True)
    )
    return replace(run(arm, pair, joules, sum(accuracies) / len(accuracies), macs=None), sizes=sizes)


def comparison(
    family: Sequence[float] = ALIKE,
    short: Sequence[float] | None = BELOW,
    joules: Sequence[float] = FAMILY,
) -> ComparisonRecord:
    """Return a training of each size, a family and shorter trainings, by what each size differs by."""
    runs = []
    for pair, (each, mine) in enumerate(zip(EACH, joules, strict=True)):
        runs += [sized("dense-each", pair, each, ALIKE), sized("family", pair, mine, family)]
        runs += [] if short is None else [sized("each-joules", pair, mine, short)]
    arms = ("dense-each", "family", *(() if short is None else ("each-joules",)))
    return ComparisonRecord(design=design(*arms), runs=tuple(runs), pairs_asked=len(joules))


def test_a_family_that_keeps_every_size_and_beats_shorter_trainings_is_a_saving() -> None:
    verdict = assess(comparison()).verdict
    assert (verdict.standing, verdict.arm) == (Standing.SAVING_MEASURED, "family")
    assert verdict.statement.endswith("than 'dense-each', and no shorter trainings of its shapes do as well.")


def test_one_size_that_loses_refuses_the_saving_and_is_named() -> None:
    found = assess(comparison((0.004, 0.004, -0.02)))
    assert found.accuracies[0].preserved, "the mean over the sizes is kept"
    assert found.verdict.standing is Standing.ACCURACY_NOT_PRESERVED
    (reason,) = found.verdict.reasons
    assert reason.code == "ACCURACY_BOUND"
    assert reason.detail.startswith("test accuracy of 'family/0.25' changed by −2.00 points")
    worst = accuracy_of(found)
    assert worst is not None
    assert (worst.arm, worst.baseline) == ("family/0.25", "dense-each/0.25")


def test_accuracies_are_told_size_by_size_after_their_mean() -> None:
    told = [(each.arm, each.baseline, each.pairs) for each in assess(comparison(short=None)).accuracies]
    assert told == [
        ("family", "dense-each", 6),
        *((f"family/{size:g}", f"dense-each/{size:g}", 6) for size in SIZES),
    ]


@pytest.mark.parametrize(
    ("short", "standing", "code"),
    [
        (None, Standing.INSUFFICIENT_RUNS, "OPPONENT_NOT_RUN"),
        (ALIKE, Standing.SMALLER_NET_DOES_AS_WELL, "NOT_BETTER"),
        ((0.002, 0.002, -0.003), Standing.SMALLER_NET_DOES_AS_WELL, "NOT_BETTER"),
    ],
)
def test_shorter_trainings_that_do_as_well_or_were_not_run_refuse_the_saving(
    short: Sequence[float] | None, standing: Standing, code: str
) -> None:
    verdict = assess(comparison(short=short)).verdict
    assert (verdict.standing, verdict.reasons[0].code) == (standing, code)
    assert "each-joules" in verdict.reasons[0].detail


def test_a_family_that_costs_more_is_an_increase_and_needs_no_opponent() -> None:
    dearer = [2.2 * joules for joules in EACH]
    assert assess(comparison(short=None, joules=dearer)).verdict.standing is Standing.COST_INCREASE_MEASURED


def test_a_size_that_was_not_learned_is_named() -> None:
    found = comparison(short=None)
    asked = replace(found, design=replace(found.design, required_accuracy=0.95))
    details = [each.detail for each in assess(asked).verdict.reasons if each.code == "NOT_LEARNED"]
    assert len(details) == len(SIZES)
    assert "of 'family/0.25' and 0.900 of 'dense-each/0.25'" in details[-1]


def test_the_answer_is_of_the_mean_over_the_sizes() -> None:
    assert assess(comparison()).answer.statement.startswith(
        "For the energy of 'family', 'family' gave the best models (mean test accuracy 0.9000, 6 pairs)"
    )


def test_the_claim_is_the_familys_wherever_it_stands() -> None:
    assert design("dense-each", "each-joules", "family").primary == "family"
