"""Straight lines between weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tpsprune.numerics.paths import barrier, state_between


def test_a_barrier_is_what_rises_above_the_line() -> None:
    assert barrier([1.0, 0.5, 0.2]) == 0.0
    assert barrier([0.0, 0.7, 0.9, 0.3]) == pytest.approx(0.7)
    assert barrier([0.1] * 10 + [0.1 + 1e-17, 0.1]) == 0.0
    assert barrier([0.3, 0.2 + 1e-16, 0.1]) == 0.0
    assert barrier([0.3, 0.2 + 1e-9, 0.1]) == pytest.approx(1e-9, rel=1e-3)


def test_a_state_half_way_is_the_mean_and_counters_are_the_ends() -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second(torch.randn(8, 3))
    half = state_between(first.state_dict(), second.state_dict(), 0.5)
    assert torch.allclose(half["running_mean"], second.running_mean / 2)
    assert int(half["num_batches_tracked"]) == 1
    for share, model in ((0.0, first), (1.0, second)):
        found = state_between(first.state_dict(), second.state_dict(), share)
        assert torch.equal(found["running_var"], model.running_var)


@pytest.mark.parametrize("values", [[0.0, math.nan, 1.0], [math.inf, 1.0, math.inf]])
def test_a_curve_that_is_not_finite_has_no_barrier(values: list[float]) -> None:
    assert math.isnan(barrier(values))
