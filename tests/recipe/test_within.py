"""Limits of a family: read, or refused with what would do."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.errors import RecipeError
from tpsprune.recipe.within import UNITS, read_within


@pytest.mark.parametrize(
    ("text", "found", "dense", "holds"),
    [
        ("latency<=5ms", 0.005, 1.0, True),
        ("latency<=5ms", 0.0051, 1.0, False),
        ("size <= 2MB", 2e6, 1.0, True),
        ("joules<=300uJ", 3.1e-4, 1.0, False),
        ("joules<=300µJ", None, 1.0, False),
        ("parameters<=1.5k", 1500, 1.0, True),
        ("macs<=1e6", 1e6, 1.0, True),
        ("accuracy>=0.9", 0.89, 0.95, False),
        ("accuracy>=-1pt", 0.941, 0.95, True),
        ("accuracy>=-1pt", 0.939, 0.95, False),
    ],
)
def test_a_limit_holds_or_not(text: str, found: float | None, dense: float, holds: bool) -> None:
    assert read_within(text).holds(found, dense) is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency", "is no limit"),
        ("latency<5ms", "is no limit"),
        ("latncy<=5ms", "did you mean 'latency'"),
        ("latency<=5", "latency needs a unit"),
        ("latency<=5m", "latency has no unit 'm'"),
        ("latency>=5ms", "latency is limited by <="),
        ("accuracy<=0.9", "accuracy is limited by >="),
        ("size<=2 MB or so", "is no limit"),
    ],
)
def test_what_is_no_limit_is_refused_with_examples(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_within(text)
    assert "latency<=5ms" in str(caught.value)


@given(st.sampled_from([(figure, unit) for figure in UNITS for unit in UNITS[figure]]), st.floats(0.001, 1e6))
def test_every_unit_is_read_in_its_own_size(of: tuple[str, str], number: float) -> None:
    figure, unit = of
    sign = ">=" if figure == "accuracy" else "<="
    found = read_within(f"{figure}{sign}{number!r}{unit}")
    assert (found.figure, found.value) == (figure, number * UNITS[figure][unit])


@given(st.text(max_size=30))
def test_any_text_is_a_limit_or_a_fault(text: str) -> None:
    with suppress(RecipeError):
        read_within(text)
