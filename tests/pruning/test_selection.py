from __future__ import annotations

import itertools

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.pruning.selection import Reading, pivoted_cholesky, select


def covariance(x_rn: Tensor, y_rn: Tensor | None = None) -> Tensor:
    y_rn = x_rn if y_rn is None else y_rn
    return (x_rn - x_rn.mean(0)).T @ (y_rn - y_rn.mean(0)) / len(x_rn)


def reading(x_rn: Tensor, weights_on: Tensor, y_rn: Tensor | None = None) -> Reading:
    y_rn = x_rn if y_rn is None else y_rn
    gram = weights_on.T @ weights_on
    return Reading(covariance(x_rn), covariance(x_rn, y_rn), covariance(y_rn), gram)


def folded_share(each: Reading, units: tuple[int, ...]) -> float:
    """Output error after the best linear fold, by solving for it, as a share."""
    index = torch.tensor(units)
    inverse = torch.linalg.pinv(each.xx_nn[index][:, index])
    left = each.yy_nn - each.xy_nn[index].T @ inverse @ each.xy_nn[index]
    return float((left * each.gram_nn).sum() / (each.yy_nn * each.gram_nn).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), units=st.integers(2, 9))
def test_pivoted_cholesky_takes_the_pivots_of_a_pivoted_qr(seed: int, units: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_rn = torch.randn(40, units, generator=generator, dtype=torch.float64)
    x_rn = x_rn @ torch.randn(units, units, generator=generator, dtype=torch.float64)
    _, upper, pivots = scipy.linalg.qr((x_rn - x_rn.mean(0)).numpy(), mode="economic", pivoting=True)
    found = pivoted_cholesky(covariance(x_rn), units)
    assert found.units == tuple(pivots.tolist())
    left = (upper**2)[::-1].sum(1).cumsum()[::-1]
    shares = [*(left[1:] / left[0]).tolist(), 0.0]
    assert found.residual_shares == pytest.approx(shares, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_pick_is_the_best_single_one_by_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_rn = torch.randn(60, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, dtype=torch.float64
    )
    y_rn = x_rn + 0.3 * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    readings = [
        reading(x_rn, torch.randn(4, 6, generator=generator, dtype=torch.float64), y_rn),
        reading(x_rn, torch.randn(2, 6, generator=generator, dtype=torch.float64)),
    ]
    found = select(readings, 4)
    for count in range(4):
        before = found.units[:count]
        best = min(
            (unit for unit in range(6) if unit not in before),
            key=lambda unit: sum(folded_share(each, (*before, unit)) for each in readings),
        )
        assert found.units[count] == best
        mean = sum(folded_share(each, found.units[: count + 1]) for each in readings) / 2
        assert found.residual_shares[count] == pytest.approx(mean, abs=1e-9)


def test_a_copy_is_never_picked_before_something_new() -> None:
    x_rn = torch.randn(50, 3, dtype=torch.float64)
    x_rn = torch.cat([x_rn, 2 * x_rn, x_rn], dim=1)
    found = select([reading(x_rn, torch.randn(5, 9, dtype=torch.float64))], 9)
    assert {unit % 3 for unit in found.units[:3]} == {0, 1, 2}
    assert found.residual_shares[2] == pytest.approx(0.0, abs=1e-9)
    assert sorted(found.units) == list(range(9))


def test_a_unit_nobody_listens_to_weighs_nothing() -> None:
    x_rn = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1.0, 100.0, 1.0, 1.0], dtype=torch.float64)
    weights = torch.randn(3, 4, dtype=torch.float64)
    weights[:, 1] = 0.0
    assert 1 not in select([reading(x_rn, weights)], 3).units
    assert pivoted_cholesky(covariance(x_rn), 1).units == (1,)


def test_scaling_a_consumer_or_permuting_the_units_changes_nothing_but_names() -> None:
    x_rn, weights = torch.randn(50, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    plain = select([reading(x_rn, weights)], 4)
    assert select([reading(x_rn, 7 * weights)], 4).units == plain.units
    permuted = select([reading(x_rn[:, order], weights[:, order])], 4)
    assert tuple(order[list(permuted.units)].tolist()) == plain.units


def test_dead_units_are_picked_last_and_without_harm() -> None:
    x_rn = torch.randn(50, 4, dtype=torch.float64)
    x_rn[:, [0, 2]] = 0.0
    found = select([reading(x_rn, torch.randn(3, 4, dtype=torch.float64))], 4)
    assert set(found.units[:2]) == {1, 3}
    assert sorted(found.units) == [0, 1, 2, 3]
    silent = torch.zeros(4, 4, dtype=torch.float64)
    assert select([Reading(silent, silent, silent, silent)], 2).units == (0, 1)


def test_greedy_is_close_to_the_best_of_all_subsets() -> None:
    x_rn = torch.randn(80, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    each = reading(x_rn, torch.randn(5, 7, dtype=torch.float64))
    best = min(folded_share(each, subset) for subset in itertools.combinations(range(7), 3))
    assert folded_share(each, select([each], 3).units) <= 2 * best
