"""Distances, landmarks and the sketch of point clouds: slow twins, invariances, closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpsprune.numerics.geometry import (
    column_permuted,
    condensed,
    maxmin_landmarks,
    scaled_distances,
    signed_fold,
)


def test_distances_equal_those_taken_pair_by_pair(generator: torch.Generator) -> None:
    points_nd = torch.randn(15, 7, generator=generator, dtype=torch.float64)
    slow_nn = torch.tensor([[float((a - b).norm()) for b in points_nd] for a in points_nd])
    slow_nn /= slow_nn.sum() / (15 * 14)
    found_nn = scaled_distances(points_nd)
    torch.testing.assert_close(found_nn, slow_nn, check_dtype=False, rtol=1e-6, atol=1e-7)
    assert torch.equal(found_nn, found_nn.T)
    assert not found_nn.diagonal().any()


def test_distances_ignore_shift_turn_and_scale(generator: torch.Generator) -> None:
    points_nd = torch.randn(15, 6, generator=generator, dtype=torch.float64)
    turn_dd = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(
        scaled_distances(3.0 * points_nd @ turn_dd + 50.0), scaled_distances(points_nd)
    )


def test_a_small_cloud_far_from_the_origin_keeps_its_distances(generator: torch.Generator) -> None:
    points_nd = torch.randn(30, 64, generator=generator, dtype=torch.float64)
    far_nd = scaled_distances(points_nd + 1e7)
    torch.testing.assert_close(far_nd, scaled_distances(points_nd), rtol=1e-6, atol=1e-8)
    near_nd = (5.0 + 1e-2 * points_nd).float()
    exact_nn = torch.cdist(near_nd.double(), near_nd.double(), compute_mode="donot_use_mm_for_euclid_dist")
    exact_nn /= exact_nn.sum() / (30 * 29)
    torch.testing.assert_close(scaled_distances(near_nd), exact_nn, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_in_one_place_have_distance_zero(count: int) -> None:
    assert not scaled_distances(torch.full((count, 3), 0.7)).any()


def test_condensed_is_the_upper_triangle_row_by_row() -> None:
    distances_nn = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]], dtype=torch.float64)
    found_m = condensed(distances_nn)
    assert found_m.tolist() == [1.0, 2.0, 3.0]
    assert found_m.dtype == torch.float32


def slow_landmarks(points_nd: torch.Tensor, count: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        nearest = torch.cdist(points_nd, points_nd[chosen]).min(1).values
        chosen.append(int(nearest.argmax()))
    return chosen


def test_landmarks_equal_those_of_the_textbook_algorithm(generator: torch.Generator) -> None:
    points_nd = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    assert maxmin_landmarks(points_nd, 20, 7).tolist() == slow_landmarks(points_nd, 20, 7)


def test_on_a_line_landmarks_are_the_ends_then_the_middle() -> None:
    assert maxmin_landmarks(torch.arange(9.0)[:, None], 3, 0).tolist() == [0, 8, 4]


def test_landmarks_are_distinct_even_among_duplicates() -> None:
    assert len(set(maxmin_landmarks(torch.ones(10, 2), 6, 3).tolist())) == 6


@pytest.mark.parametrize("count", [5, 9])
def test_as_many_landmarks_as_points_or_more_are_all_points(count: int) -> None:
    assert maxmin_landmarks(torch.randn(5, 2), count, 3).tolist() == [0, 1, 2, 3, 4]


def test_a_permuted_cloud_keeps_each_column_and_loses_what_binds_them(generator: torch.Generator) -> None:
    angles = torch.linspace(0, 6.2, 50)
    ring_nd = torch.stack([angles.cos(), angles.sin()], dim=1)
    null_nd = column_permuted(ring_nd, generator)
    assert torch.equal(null_nd.sort(0).values, ring_nd.sort(0).values)
    torch.testing.assert_close(ring_nd.norm(dim=1), torch.ones(50))
    assert float(null_nd.norm(dim=1).std()) > 0.2


def test_one_seed_gives_one_permuted_cloud() -> None:
    points_nd = torch.randn(12, 3)
    first, second, other = (
        column_permuted(points_nd, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def tensors(generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator) for shape in [(7,), (30, 40), (1,), (5, 5, 3), (64,)]]


def slow_fold(parts: list[Tensor], seed: int, size: int, buckets: int) -> Tensor:
    flat = torch.cat([part.reshape(-1) for part in parts])
    rows = -(-len(flat) // buckets)
    generator = torch.Generator().manual_seed(seed)
    row_signs = torch.randint(0, 2, (rows + 1,), generator=generator) * 2 - 1
    bucket_signs = torch.randint(0, 2, (buckets,), generator=generator) * 2 - 1
    sketch = torch.zeros(size)
    for index, value in enumerate(flat.tolist()):
        row, bucket = divmod(index, buckets)
        sketch[bucket % size] += row_signs[row] * bucket_signs[bucket] * value
    return sketch


@pytest.mark.parametrize("buckets", [8, 64, 512, 4096])
def test_the_sketch_equals_one_coordinate_at_a_time(buckets: int, generator: torch.Generator) -> None:
    parts = tensors(generator)
    found = signed_fold(parts, seed=3, size=8, buckets=buckets)
    torch.testing.assert_close(found, slow_fold(parts, 3, 8, buckets), rtol=1e-4, atol=1e-4)


def test_inner_products_are_kept_on_average(generator: torch.Generator) -> None:
    x = torch.randn(500, generator=generator)
    y = x + torch.randn(500, generator=generator)
    folds = [[signed_fold([each], seed=seed, size=32, buckets=128) for each in (x, y)] for seed in range(600)]
    products = torch.stack([one @ other for one, other in folds])
    error = products.std() / 600**0.5
    assert abs(products.mean() - x @ y) < 4 * error


def test_lengths_err_by_a_few_percent_at_the_default_size(generator: torch.Generator) -> None:
    parts = [torch.randn(1_100_000, generator=generator), torch.randn(300, 70, generator=generator)]
    length = torch.cat([part.reshape(-1) for part in parts]).norm()
    assert float(signed_fold(parts, seed=0).norm() / length) == pytest.approx(1.0, abs=0.05)
