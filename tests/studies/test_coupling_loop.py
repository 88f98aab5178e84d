"""Loops of order parameters made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.studies.coupling_loop import Loop, loop_of

UP = (0.01, 0.1, 1.0, 10.0, 100.0)
RAMP = (*UP, *UP[-2::-1])


def loop(up: list[float], down: list[float]) -> Loop:
    """Both from the lowest coupling to the highest; the top is one reading."""
    found = loop_of(RAMP, [*up, *down[-2::-1]])
    assert found is not None
    return found


def test_what_returns_the_way_it_came_has_no_loop() -> None:
    way = [0.0, 0.0, 0.5, 1.0, 1.0]
    found = loop(way, way)
    assert found.area == pytest.approx(0)
    assert (found.rise, found.fall) == pytest.approx((1.0, 1.0))
    assert found.width_decades == pytest.approx(1.6)
    assert found.jump_share == pytest.approx(0.5)


def test_a_jump_that_comes_back_two_decades_lower_encloses_them() -> None:
    found = loop([0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0])
    assert (found.rise, found.fall) == pytest.approx((10**0.5, 10**-1.5))
    assert found.area == pytest.approx(2 / 4)
    assert found.jump_share == pytest.approx(1.0)


def test_what_never_falls_below_half_has_no_fall() -> None:
    found = loop([0.0, 0.0, 0.0, 0.5, 1.0], [0.8, 0.9, 1.0, 1.0, 1.0])
    assert found.fall is None
    assert found.area > 0.5


def test_a_rise_too_small_to_time_is_no_loop() -> None:
    assert loop_of(RAMP, [0.60, 0.60, 0.61, 0.62, 0.63, 0.62, 0.61, 0.6, 0.6]) is None


@given(st.floats(0.5, 3.0), st.floats(-2.0, 2.0), st.floats(0.01, 100.0))
def test_scale_and_shift_of_the_order_do_not_matter_and_couplings_carry_over(
    scale: float, shift: float, factor: float
) -> None:
    orders = [0.1, 0.2, 0.5, 0.9, 1.0, 1.0, 0.8, 0.5, 0.2]
    one = loop_of(RAMP, orders)
    other = loop_of([factor * each for each in RAMP], [scale * each + shift for each in orders])
    assert one is not None
    assert other is not None
    assert other.area == pytest.approx(one.area, abs=1e-9)
    assert other.rise == pytest.approx(factor * (one.rise or 0))
    assert other.fall == pytest.approx(factor * (one.fall or 0))
    assert other.width_decades == pytest.approx(one.width_decades)
