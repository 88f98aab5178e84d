"""The verdict's table: where the interval lies, and which way stopped runs let it move."""

from __future__ import annotations

import pytest

from tpsprune.studies.verdict import Bound, judge

EXACT, LOWER, UPPER, EITHER = Bound(), Bound(True, False), Bound(False, True), Bound(True, True)


@pytest.mark.parametrize(
    ("low", "high", "bound", "ruling"),
    [
        (2.0, 3.0, EXACT, "confirmed"),
        (6.0, 9.0, EXACT, "confirmed"),
        (1.99, 3.0, EXACT, "undecided"),
        (1.0, 2.0, EXACT, "undecided"),
        (1.0, 1.99, EXACT, "refuted"),
        (0.5, 0.9, EXACT, "refuted"),
        (2.1, 3.0, LOWER, "confirmed"),
        (1.0, 1.9, LOWER, "undecided"),
        (2.1, 3.0, UPPER, "undecided"),
        (1.0, 1.9, UPPER, "refuted"),
        (2.1, 3.0, EITHER, "undecided"),
        (1.0, 1.0, EITHER, "undecided"),
    ],
)
def test_the_ruling_is_the_tables(low: float, high: float, bound: Bound, ruling: str) -> None:
    assert judge(low, high, 2.0, bound) == ruling


def test_a_bound_says_which_way_it_is_open() -> None:
    assert [bound.words for bound in (EXACT, LOWER, UPPER, EITHER)] == [
        "",
        "at least",
        "at most",
        "nominally",
    ]
