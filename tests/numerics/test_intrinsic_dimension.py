"""Dimension by neighbours: balls of known dimension, invariances, a slow twin, what too few points give."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from torch import Tensor

from tpsprune.numerics.intrinsic_dimension import (
    DISCARDED,
    levina_bickel,
    neighbour_distances,
    two_nn,
)


def ball(points: int, dimensions: int, coordinates: int, seed: int = 0) -> Tensor:
    """Points spread evenly in a ball that lies askew in more coordinates."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(points, dimensions, generator=generator, dtype=torch.float64)
    radius = torch.rand(points, 1, generator=generator, dtype=torch.float64) ** (1 / dimensions)
    frame = torch.randn(coordinates, dimensions, generator=generator, dtype=torch.float64)
    return radius * inner / inner.norm(dim=1, keepdim=True) @ torch.linalg.qr(frame).Q.T


def sphere(points: int, seed: int) -> Tensor:
    """Points spread evenly on a sphere: two dimensions, curved, without an edge."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(points, 3, generator=generator, dtype=torch.float64)
    return inner / inner.norm(dim=1, keepdim=True)


def test_a_ball_of_five_dimensions_in_64_coordinates_has_five() -> None:
    clouds = [neighbour_distances(ball(1000, 5, 64, seed)) for seed in range(4)]
    assert fmean(map(levina_bickel, clouds)) == pytest.approx(5.0, rel=0.1)
    assert fmean(map(two_nn, clouds)) == pytest.approx(5.0, rel=0.1)


def test_more_points_come_nearer_to_the_truth() -> None:
    for estimate in (levina_bickel, two_nn):
        errors = [
            fmean(abs(estimate(neighbour_distances(sphere(points, seed))) - 2.0) for seed in range(4))
            for points in (50, 1000)
        ]
        assert errors[1] < errors[0] / 2
        assert errors[1] < 0.06


@pytest.mark.parametrize("estimate", [levina_bickel, two_nn])
def test_shift_scale_turn_and_order_change_nothing(estimate) -> None:
    points_nd = ball(200, 3, 6)
    turn_dd = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved_nd = (100.0 + 1e-3 * points_nd @ turn_dd)[torch.randperm(200)]
    expected = estimate(neighbour_distances(points_nd))
    assert estimate(neighbour_distances(moved_nd)) == pytest.approx(expected, rel=1e-5)


def slow(points_nd: Tensor, neighbours: int) -> tuple[float, float]:
    """Both estimates by their formulas, point by point."""
    near = [
        sorted(float((one - other).norm()) for rank, other in enumerate(points_nd) if rank != place)
        for place, one in enumerate(points_nd)
    ]
    near = [each[:neighbours] for each in near]
    inverses = [
        1 / ((neighbours - 1) / sum(math.log(each[-1] / nearer) for nearer in each[:-1])) for each in near
    ]
    ratios = sorted(math.log(each[1] / each[0]) for each in near)[: int((1 - DISCARDED) * len(near))]
    heights = [-math.log(1 - rank / len(near)) for rank in range(1, len(ratios) + 1)]
    slope = sum(x * y for x, y in zip(ratios, heights, strict=True)) / sum(x * x for x in ratios)
    return 1 / fmean(inverses), slope


def test_both_are_those_of_their_formulas() -> None:
    points_nd = ball(60, 4, 5)
    distances_nk = neighbour_distances(points_nd, 7)
    assert (levina_bickel(distances_nk), two_nn(distances_nk)) == pytest.approx(slow(points_nd, 7), rel=1e-9)


def test_a_curve_through_many_directions_has_one_dimension() -> None:
    turn_n = 2 * math.pi * torch.rand(1000, 1, generator=torch.Generator().manual_seed(1)).double()
    curve_nd = torch.cat(
        [part(turn_n * turns) for turns in range(1, 9) for part in (torch.sin, torch.cos)], 1
    )
    cloud_nk = neighbour_distances(curve_nd)
    assert levina_bickel(cloud_nk) == pytest.approx(1.0, rel=0.1)
    assert two_nn(cloud_nk) == pytest.approx(1.0, rel=0.1)


def test_points_in_one_place_count_once_rounding_or_not() -> None:
    points_nd = ball(100, 3, 5)
    rounded_nd = points_nd * (1 + 1e-12)
    twice_nd = torch.cat([points_nd, rounded_nd])[torch.randperm(200)]
    assert len(neighbour_distances(twice_nd)) == 100
    expected = levina_bickel(neighbour_distances(points_nd))
    assert levina_bickel(neighbour_distances(twice_nd)) == pytest.approx(expected, rel=1e-6)


def test_few_points_have_few_neighbours_and_what_is_not_finite_is_nan() -> None:
    assert neighbour_distances(ball(5, 2, 3)).shape == (5, 4)
    assert neighbour_distances(torch.ones(30, 4)).shape == (1, 0)
    points_nd = ball(50, 2, 3)
    points_nd[3, 1] = torch.inf
    assert math.isnan(levina_bickel(neighbour_distances(points_nd)))
    assert math.isnan(two_nn(neighbour_distances(points_nd)))
