"""Which units are picked: against solving again for every candidate, and what must change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import scipy.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.pruning.selection import Reading, pivoted_cholesky, select


def covariance(x_rn: Tensor) -> Tensor:
    return (x_rn - x_rn.mean(0)).T @ (x_rn - x_rn.mean(0)) / len(x_rn)


def reading(x_rn: Tensor, weights_on: Tensor) -> Reading:
    return Reading(covariance(x_rn), weights_on.T @ weights_on)


def signals_of(units: Sequence[int], features: int) -> Tensor:
    return torch.tensor([unit * features + each for unit in units for each in range(features)]).long()


def compensated_error(each: Reading, units: Sequence[int], features: int = 1) -> float:
    """Output error after the best compensation, by solving for it."""
    index = signals_of(units, features)
    inverse = torch.linalg.pinv(each.covariance_nn[index][:, index], hermitian=True)
    left = each.covariance_nn - each.covariance_nn[index].T @ inverse @ each.covariance_nn[index]
    return float((left * each.gram_nn).sum())


def greedily(readings: Sequence[Reading], count: int, features: int) -> tuple[tuple[int, ...], list[float]]:
    """Pick units by solving again for every candidate; return them and the shares of the error left."""
    units: tuple[int, ...] = ()
    shares = []
    whole = sum(compensated_error(each, (), features) for each in readings)
    for _ in range(count):
        candidates = [unit for unit in range(len(readings[0].covariance_nn) // features) if unit not in units]
        errors = [
            sum(compensated_error(each, (*units, unit), features) for each in readings) for unit in candidates
        ]
        units = (*units, candidates[errors.index(min(errors))])
        shares.append(min(errors) / whole)
    return units, shares


def mixed(rows: int, units: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x_rn = torch.randn(rows, units, generator=generator, dtype=torch.float64)
    return x_rn @ torch.randn(units, units, generator=generator, dtype=torch.float64)


def two_consumers(signals: int, seed: int) -> list[Reading]:
    """Of different inputs, the second far quieter."""
    x_rn, y_rn = mixed(60, signals, seed), mixed(60, signals, seed + 1)
    loud, quiet = mixed(4, signals, seed + 2), 0.1 * mixed(2, signals, seed + 3)
    return [reading(x_rn, loud), reading(y_rn, quiet)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), units=st.integers(2, 9))
def test_pivoted_cholesky_takes_the_pivots_of_a_pivoted_qr(seed: int, units: int) -> None:
    x_rn = mixed(40, units, seed)
    _, upper, pivots = scipy.linalg.qr((x_rn - x_rn.mean(0)).numpy(), mode="economic", pivoting=True)
    found = pivoted_cholesky(covariance(x_rn), units)
    assert found.units == tuple(pivots.tolist())
    left = (upper**2)[::-1].sum(1).cumsum()[::-1]
    shares = [*(left[1:] / left[0]).tolist(), 0.0]
    assert found.residual_shares == pytest.approx(shares, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), features=st.integers(1, 3))
def test_each_pick_is_the_best_single_one_by_brute_force(seed: int, features: int) -> None:
    readings = two_consumers(6 * features, seed)
    units, shares = greedily(readings, 4, features)
    found = select([replace(each, features=features) for each in readings], 4)
    assert found.units == units
    assert found.residual_shares == pytest.approx(shares, abs=1e-9)
    assert found.loudness == pytest.approx(sum(compensated_error(each, ()) for each in readings))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), features=st.integers(1, 3))
def test_of_units_picked_before_the_shares_left_are_returned(seed: int, features: int) -> None:
    readings = two_consumers(6 * features, seed)
    before = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
    found = select([replace(each, features=features) for each in readings], 5, picked=before)
    assert found.units == tuple(before[:5])
    whole = sum(compensated_error(each, (), features) for each in readings)
    shares = [
        sum(compensated_error(each, before[: rank + 1], features) for each in readings) / whole
        for rank in range(5)
    ]
    assert found.residual_shares == pytest.approx(shares, abs=1e-9)


def test_a_consumer_counts_by_its_loudness() -> None:
    x_rn = torch.randn(50, 2, dtype=torch.float64)
    to_first, to_second = (torch.diag(torch.tensor(each).double()) for each in ([1.0, 0.0], [0.0, 1.0]))
    for louder, gain in ((0, 0.01), (1, 100.0)):
        readings = [reading(x_rn, to_first), reading(x_rn, gain * to_second)]
        assert select(readings, 1).units == (louder,)


@pytest.mark.parametrize(("features", "units", "count"), [(1, 90, 80), (2, 75, 68), (3, 40, 35), (70, 3, 3)])
def test_what_is_pending_between_two_updates_of_the_whole_is_seen(
    features: int, units: int, count: int
) -> None:
    """More picks than are held back, or kept among the rest, against matrices brought up to date at each."""
    generator = torch.Generator().manual_seed(0)
    signals = features * units
    x_rn, y_rn, weight_qn = (
        torch.randn(each, signals, generator=generator, dtype=torch.float64) for each in (600, 600, signals)
    )
    x_rn = x_rn + 0.5 * x_rn.roll(1, 1)
    readings = [reading(x_rn + 0.3 * y_rn, weight_qn), reading(x_rn, 0.3 * weight_qn[:9])]
    found = select([replace(each, features=features) for each in readings], count)
    states = [
        (each.covariance_nn.clone(), each.covariance_nn @ each.gram_nn @ each.covariance_nn)
        for each in readings
    ]
    left = whole = sum(compensated_error(each, ()) for each in readings)
    expected, shares = [], []
    for _ in range(count):
        gains_u = torch.zeros(units, dtype=torch.float64)
        for r_nn, m_nn in states:
            for unit in set(range(units)).difference(expected):
                index = signals_of([unit], features)
                gains_u[unit] += torch.trace(torch.linalg.solve(r_nn[index][:, index], m_nn[index][:, index]))
        expected.append(int(gains_u.argmax()))
        left -= float(gains_u.max())
        shares.append(left / whole)
        index = signals_of([expected[-1]], features)
        for rank, (r_nn, m_nn) in enumerate(states):
            c_nf = torch.linalg.solve(r_nn[index][:, index], r_nn[index]).T
            away_nn = torch.eye(len(r_nn), dtype=torch.float64)
            away_nn[:, index] -= c_nf
            states[rank] = (away_nn @ r_nn @ away_nn.T, away_nn @ m_nn @ away_nn.T)
    assert found.units == tuple(expected)
    assert found.residual_shares == pytest.approx(shares, abs=1e-7)
    again = select([replace(each, features=features) for each in readings], count, picked=found.units)
    assert again.units == found.units
    assert again.residual_shares == pytest.approx(shares, abs=1e-7)


def test_pivots_beyond_those_dropped_on_the_way_are_still_those_of_a_qr() -> None:
    x_rn = mixed(300, 100, 0)
    *_, pivots = scipy.linalg.qr((x_rn - x_rn.mean(0)).numpy(), mode="economic", pivoting=True)
    assert pivoted_cholesky(covariance(x_rn), 90).units == tuple(pivots[:90].tolist())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), features=st.integers(1, 3))
@example(seed=653, features=1)
def test_pivoted_cholesky_takes_units_of_several_signals_as_blocks(seed: int, features: int) -> None:
    xx_nn = covariance(mixed(60, 5 * features, seed))
    units, shares = greedily_by_variance(xx_nn, features)
    found = pivoted_cholesky(xx_nn, 5, features=features)
    assert found.units == units
    # The twin inverts what can be all but singular, which costs it half of its digits.
    assert found.residual_shares == pytest.approx(shares, abs=1e-6)


def greedily_by_variance(xx_nn: Tensor, features: int) -> tuple[tuple[int, ...], list[float]]:
    units: tuple[int, ...] = ()
    shares = []
    left_nn = xx_nn
    for _ in range(len(xx_nn) // features):
        variances_u = left_nn.diagonal().reshape(-1, features).sum(1)
        variances_u[list(units)] = -1.0
        units = (*units, int(variances_u.argmax()))
        index = signals_of(units, features)
        inverse = torch.linalg.pinv(xx_nn[index][:, index], hermitian=True)
        left_nn = xx_nn - xx_nn[:, index] @ inverse @ xx_nn[index]
        shares.append(float(left_nn.trace() / xx_nn.trace()))
    return units, shares


def test_a_copy_is_never_picked_before_something_new() -> None:
    x_rn = torch.randn(50, 3, dtype=torch.float64)
    x_rn = torch.cat([x_rn, 2 * x_rn, x_rn], dim=1)
    found = select([reading(x_rn, torch.randn(5, 9, dtype=torch.float64))], 9)
    assert {unit % 3 for unit in found.units[:3]} == {0, 1, 2}
    assert found.residual_shares[2] == pytest.approx(0.0, abs=1e-9)
    assert sorted(found.units) == list(range(9))


def test_a_unit_that_no_consumer_reads_gains_nothing() -> None:
    x_rn = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1.0, 100.0, 1.0, 1.0], dtype=torch.float64)
    weights = torch.randn(3, 4, dtype=torch.float64)
    weights[:, 1] = 0.0
    assert 1 not in select([reading(x_rn, weights)], 3).units
    assert pivoted_cholesky(covariance(x_rn), 1).units == (1,)


def test_scaling_a_consumer_or_permuting_the_units_changes_nothing_but_names() -> None:
    x_rn, weights = torch.randn(50, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = select([reading(x_rn, weights)], 4)
    assert select([reading(x_rn, 7 * weights)], 4).units == found.units
    permuted = select([reading(x_rn[:, order], weights[:, order])], 4)
    assert tuple(order[list(permuted.units)].tolist()) == found.units


def test_dead_units_are_picked_last_and_without_harm() -> None:
    x_rn = torch.randn(50, 4, dtype=torch.float64)
    x_rn[:, [0, 2]] = 0.0
    found = select([reading(x_rn, torch.randn(3, 4, dtype=torch.float64))], 4)
    assert set(found.units[:2]) == {1, 3}
    assert sorted(found.units) == [0, 1, 2, 3]
    silent = torch.zeros(4, 4, dtype=torch.float64)
    assert select([Reading(silent, silent)], 2).units == (0, 1)


def test_greedy_is_close_to_the_best_of_all_subsets() -> None:
    x_rn = torch.randn(80, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    each = reading(x_rn, torch.randn(5, 7, dtype=torch.float64))
    best = min(compensated_error(each, subset) for subset in itertools.combinations(range(7), 3))
    assert compensated_error(each, select([each], 3).units) <= 2 * best
