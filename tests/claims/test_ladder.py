"""The ladder: each rung refuses what it is there for, in its order, and what passes mirrors."""

from __future__ import annotations

import re
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.claims import Evidence, change_of, standing_of
from tpsprune.claims.change import log_ratios
from tpsprune.numerics.small_samples import fewest_without_long_runs, mean_interval
from tpsprune.records import MISSED_AT_MOST, Accuracy, BandPoint, Reason, Standing

KEPT = Accuracy(
    arm="ticket",
    baseline="dense",
    pairs=6,
    mean=0.9,
    baseline_mean=0.9,
    difference_share=0.0,
    lower_share=-0.001,
    tolerance_share=0.01,
    preserved=True,
)
HALF = [(1.0, 2.0), (1.1, 2.0), (0.9, 2.0), (1.0, 2.1), (1.0, 1.9), (1.05, 2.0)]


def evidence(pairs: list[tuple[float, float]], **changes: Any) -> Evidence:
    base = Evidence(
        pairs=len(pairs),
        pairs_ended=len(pairs),
        pairs_asked=len(pairs),
        change=change_of(pairs),
        accuracy=KEPT,
        band=(),
        grade="B",
    )
    return replace(base, **changes)


def codes(found: Evidence) -> tuple[Standing, list[str]]:
    standing, reasons = standing_of(found)
    return standing, [reason.code for reason in reasons]


@pytest.mark.parametrize(
    ("grade", "standing"),
    [
        ("A", Standing.SAVING_MEASURED),
        ("B", Standing.SAVING_MEASURED),
        ("C", Standing.SAVING_MODELLED),
        ("D", Standing.SAVING_MODELLED),
        ("E", Standing.SAVING_MODELLED),
        ("S", Standing.SAVING_SIMULATED),
    ],
)
def test_a_saving_is_called_by_how_it_was_obtained(grade: str, standing: Standing) -> None:
    assert codes(evidence(HALF, grade=grade)) == (standing, ["ALL_RUNGS_HELD"])
    assert standing.is_saving is (grade != "S")


FAILED = Reason("RUN_FAILED", "'ticket', seed 3: the loss is not finite")
NOISY = [(1.0, 1.1), (1.2, 1.0), (0.9, 1.1), (1.0, 1.05), (1.1, 1.0), (1.0, 1.0)]
UNLIKE = [(0.79, 1.0), (0.8, 1.0), (0.81, 1.0), (0.8, 1.0), (0.79, 1.0), (96.0, 100.0)]
"""Five small trainings save a fifth and a large one hardly anything."""
TENTH = [(0.9, 1.0), (0.901, 1.0), (0.899, 1.0), (0.902, 1.0), (0.898, 1.0), (0.9, 1.0)]
WORST = {
    "faults": (Reason("INVALID_WINDOW", "…"),),
    "broken_off": (Reason("RUNS_BROKEN_OFF", "…"),),
    "losses": (FAILED,),
    "accuracy": replace(KEPT, preserved=False),
}


@pytest.mark.parametrize(
    ("found", "standing", "reasons"),
    [
        (evidence([(base, arm) for arm, base in HALF]), Standing.COST_INCREASE_MEASURED, ["ALL_RUNGS_HELD"]),
        (evidence(HALF[:3]), Standing.INSUFFICIENT_RUNS, ["TOO_FEW_PAIRS"]),
        (evidence(HALF[:5]), Standing.WITHIN_NOISE, ["SIGN_FLIP"]),
        (evidence(HALF, pairs_asked=8), Standing.INSUFFICIENT_RUNS, ["INCOMPLETE"]),
        (evidence(HALF, accuracy=None), Standing.ACCURACY_NOT_PRESERVED, ["ACCURACY_UNKNOWN"]),
        (evidence(HALF, losses=(FAILED,)), Standing.ACCURACY_NOT_PRESERVED, ["RUN_FAILED"]),
        (
            evidence(NOISY),
            Standing.WITHIN_NOISE,
            ["INTERVAL_INCLUDES_ZERO", "SIGN_FLIP", "SEVERAL_CLAIMS", "RARE_LONG_RUNS", "BELOW_DETECTABLE"],
        ),
        (
            evidence(HALF, change=replace(change_of(HALF), p_holm=0.06)),
            Standing.WITHIN_NOISE,
            ["SEVERAL_CLAIMS"],
        ),
        (
            evidence(HALF, band=(BandPoint("one", 0.4), BandPoint("another", 0.1)), grade="E"),
            Standing.SAVING_MODELLED,
            ["ALL_RUNGS_HELD"],
        ),
        (evidence(UNLIKE), Standing.WITHIN_NOISE, ["MEANS_DISAGREE", "RARE_LONG_RUNS"]),
        (evidence(TENTH), Standing.WITHIN_NOISE, ["RARE_LONG_RUNS"]),
        (evidence(TENTH, of_training=False), Standing.SAVING_MEASURED, ["ALL_RUNGS_HELD"]),
        (evidence(4 * TENTH + TENTH[:2]), Standing.SAVING_MEASURED, ["ALL_RUNGS_HELD"]),
        (evidence(HALF[:3], **WORST), Standing.INVALID_MEASUREMENT, ["INVALID_WINDOW"]),
        (evidence(HALF[:3], **{**WORST, "faults": ()}), Standing.RUNS_BROKEN_OFF, ["RUNS_BROKEN_OFF"]),
    ],
    ids=[
        "what costs more stands by the same rungs",
        "three pairs are too few however clear they look",
        "five pairs are allowed and cannot reach the sign flip",
        "looking before all pairs are done is no test",
        "accuracy that nobody knows",
        "a run that failed though the rest is well",
        "noise names every test that does not hold",
        "a claim among several needs its corrected p",
        "a band on one side lets pass",
        "the arithmetic mean must lie in the interval of the geometric one",
        "long runs that six pairs may lack would reverse a tenth",
        "which windows of inference are not",
        "and six-and-twenty pairs lack none so frequent",
        "a broken measurement comes before everything else",
        "runs broken off come before pairs that are missing",
    ],
)
def test_each_rung_refuses_what_it_is_there_for(
    found: Evidence, standing: Standing, reasons: list[str]
) -> None:
    assert codes(found) == (standing, reasons)
    assert standing.is_saving is str(standing).startswith("SAVING")


def test_accuracy_that_is_lost_or_not_shown_to_be_kept_refuses() -> None:
    lost = replace(KEPT, preserved=False, difference_share=-0.03, lower_share=-0.04)
    standing, reasons = standing_of(evidence(HALF, accuracy=lost))
    assert standing is Standing.ACCURACY_NOT_PRESERVED
    assert "−3.00 points" in reasons[0].detail
    assert "−4.00 points" in reasons[0].detail


def test_a_sign_that_hangs_on_the_power_model_refuses() -> None:
    band = (BandPoint("one model", 0.4), BandPoint("another", -0.1))
    standing, reasons = standing_of(evidence(HALF, band=band, grade="E"))
    assert standing is Standing.MODEL_SENSITIVE
    assert "−10.0 % with another" in reasons[0].detail


@given(st.lists(st.floats(0.2, 5.0), min_size=6, max_size=9))
def test_swapped_arms_give_the_mirrored_number_and_the_mirrored_word(ratios: list[float]) -> None:
    there = change_of([(ratio, 1.0) for ratio in ratios])
    back = change_of([(1.0, ratio) for ratio in ratios])
    assert there is not None
    assert back is not None
    assert (1 - there.saving_share) * (1 - back.saving_share) == pytest.approx(1.0)
    assert (1 - there.low) * (1 - back.high) == pytest.approx(1.0)
    assert there.p_t == pytest.approx(back.p_t)
    assert there.p_sign_flip == back.p_sign_flip
    one = standing_of(evidence([(ratio, 1.0) for ratio in ratios]))[0]
    other = standing_of(evidence([(1.0, ratio) for ratio in ratios]))[0]
    assert len({re.sub("SAVING|COST_INCREASE", "X", str(each)) for each in (one, other)}) == 1
    if "MEASURED" in str(one):
        assert one is not other


def test_the_change_is_its_closed_form_and_a_common_factor_changes_nothing() -> None:
    pairs = [(1.0, 2.0), (1.0, 2.0), (1.0, 4.0)]
    change, scaled = change_of(pairs), change_of([(3.6e6 * arm, 3.6e6 * base) for arm, base in pairs])
    assert change is not None
    assert scaled is not None
    assert change.saving_share == pytest.approx(1 - exp(-(np.log(2) * 4 / 3)))
    assert (scaled.saving_share, scaled.p_t) == pytest.approx((change.saving_share, change.p_t))
    assert change_of([(1.0, 2.0)]) is None


def test_the_arithmetic_mean_is_of_sums_and_long_runs_are_of_the_side_that_took_less() -> None:
    less, more = change_of([(1.0, 2.0), (5.0, 10.0)]), change_of([(2.0, 1.0), (10.0, 5.0)])
    assert less is not None
    assert more is not None
    assert (less.arithmetic_share, more.arithmetic_share) == (0.5, -1.0)
    # Were all runs twice as long, half would be the whole.
    assert less.reversing_share == more.reversing_share == pytest.approx(1.0)
    assert (1 - less.missing_share) ** 2 == pytest.approx(0.05)
    assert less.means_agree, "equal ratios have an interval without width"


@given(st.floats(0.01, 0.9))
def test_so_many_pairs_are_needed_that_long_runs_which_would_reverse_a_saving_are_not_missing(
    saving: float,
) -> None:
    fewest = fewest_without_long_runs(saving, MISSED_AT_MOST)
    stands = {}
    for pairs in (fewest - 1, fewest):
        change = change_of([(1.0 - saving, 1.0)] * max(pairs, 2))
        assert change is not None
        stands[pairs] = change.reversing_share >= change.missing_share * (1 - 1e-9)
    assert stands[fewest]
    assert fewest <= 2 or not stands[fewest - 1]


def worlds(pairs: int, saving: float, cv: float, count: int) -> list[list[tuple[float, float]]]:
    """Return made-up comparisons whose runs scatter by ``cv``, about normally in their logarithms."""
    random = np.random.default_rng(7)
    dense = np.exp(cv * random.standard_normal((count, pairs)))
    ticket = (1 - saving) * np.exp(cv * random.standard_normal((count, pairs)))
    return [list(zip(t, d, strict=True)) for t, d in zip(ticket.tolist(), dense.tolist(), strict=True)]


@pytest.mark.parametrize("pairs", [6, 10])
def test_in_two_thousand_null_worlds_at_most_three_in_a_hundred_claims_are_false(pairs: int) -> None:
    standings = [standing_of(evidence(found))[0] for found in worlds(pairs, 0.0, 0.08, 2000)]
    false = sum(standing is not Standing.WITHIN_NOISE for standing in standings)
    assert false / len(standings) <= 0.03
    seen = [standing_of(evidence(found))[0].is_saving for found in worlds(pairs, 0.4, 0.08, 2000)]
    assert np.mean(seen) > 0.9, "the ladder claims nothing at all"


@pytest.mark.parametrize(
    ("cv", "saving", "pairs", "expected"),
    [
        (0.08, 0.1, 10, 0.74),
        (0.08, 0.1, 20, 0.98),
        (0.08, 0.2, 5, 0.91),
        (0.02, 0.05, 5, 0.86),
        (0.15, 0.2, 10, 0.85),
    ],
)
def test_a_known_effect_is_seen_as_often_as_the_table_says(
    cv: float, saving: float, pairs: int, expected: float
) -> None:
    intervals = [mean_interval(log_ratios(found)) for found in worlds(pairs, saving, cv, 2000)]
    assert np.mean([interval.high < 0 for interval in intervals]) == pytest.approx(expected, abs=0.03)
