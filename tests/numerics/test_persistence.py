from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from tpsprune.numerics.persistence import H1Summary, h1_bars, summary


def bars_of(points: np.ndarray) -> np.ndarray:
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    bars = h1_bars(distances[np.triu_indices(len(points), 1)], len(points))
    return bars[np.lexsort(bars.T)]


def polygon(corners: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def by_boundary_reduction(points: np.ndarray) -> np.ndarray:
    """Textbook column reduction of the Z/2 boundary matrix, all simplices up to triangles."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    simplices = [
        (max((distances[a, b] for a, b in combinations(s, 2)), default=0.0), len(s), s)
        for size in (1, 2, 3)
        for s in combinations(range(len(points)), size)
    ]
    simplices.sort()
    index = {s: at for at, (_, _, s) in enumerate(simplices)}
    reduced: dict[int, set[int]] = {}
    bars = []
    for _at, (death, size, s) in enumerate(simplices):
        column = {index[face] for face in combinations(s, size - 1)} if size > 1 else set()
        while column and max(column) in reduced:
            column ^= reduced[max(column)]
        if column:
            low = max(column)
            reduced[low] = column
            birth = simplices[low][0]
            if size == 3 and death > birth + 1e-6:
                bars.append((birth, death))
    found = np.array(bars).reshape(-1, 2)
    return found[np.lexsort(found.T)]


@pytest.mark.parametrize("corners", [4, 5, 6, 7, 9, 12, 31, 60])
def test_a_regular_polygon_has_one_loop_with_births_and_deaths_in_closed_form(corners: int) -> None:
    birth = 2 * np.sin(np.pi / corners)
    death = 2 * np.sin(np.pi * np.ceil(corners / 3) / corners)
    np.testing.assert_allclose(bars_of(polygon(corners)), [[birth, death]], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_four_points_have_no_loop(count: int) -> None:
    assert bars_of(polygon(count)).shape == (0, 2)


def test_a_flat_torus_has_two_loops_that_stand_out() -> None:
    turns = polygon(12)
    torus = np.array([[*a, *b] for a in turns for b in turns])
    lifetimes = np.sort(np.diff(bars_of(torus), axis=1)[:, 0])[::-1]
    np.testing.assert_allclose(lifetimes[:2], 1.7321 - 0.5176, atol=1e-3)
    assert lifetimes[2] < 0.25


def test_identical_points_have_no_loop() -> None:
    assert len(bars_of(np.ones((9, 3)))) == 0


@given(st.integers(0, 2**32 - 1), st.integers(4, 11), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_bars_equal_those_of_boundary_reduction(seed: int, count: int, dimension: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, dimension))
    np.testing.assert_allclose(bars_of(points), by_boundary_reduction(points), atol=1e-5)


def test_the_order_of_points_does_not_matter() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    shuffled = np.random.default_rng(1).permutation(points)
    np.testing.assert_allclose(bars_of(shuffled), bars_of(points), atol=1e-6)


@pytest.mark.parametrize("shift", [0.01, 0.05, 0.2])
def test_moving_points_by_epsilon_moves_the_longest_loop_by_at_most_four(shift: float) -> None:
    generator = np.random.default_rng(0)
    points = polygon(24)
    moves = generator.normal(size=points.shape)
    moved = points + shift * moves / np.linalg.norm(moves, axis=1, keepdims=True)
    before, after = summary(bars_of(points)), summary(bars_of(moved))
    assert abs(before.max_lifetime - after.max_lifetime) <= 4 * shift


def within(first: np.ndarray, second: np.ndarray, reach: float) -> bool:
    """Whether a matching of two diagrams exists in which no bar, and no end of one, moves further.

    A bar may also be matched with the diagonal, half its length away.
    """
    size = len(first) + len(second)
    allowed = np.zeros((size, size), dtype=bool)
    gaps = np.abs(first[:, None] - second[None]).max(-1)
    allowed[: len(first), : len(second)] = gaps <= reach
    allowed[: len(first), len(second) :] = (np.diff(first, axis=1) / 2 <= reach) & np.eye(
        len(first), dtype=bool
    )
    allowed[len(first) :, : len(second)] = (reach >= np.diff(second, axis=1).T / 2) & np.eye(
        len(second), dtype=bool
    )
    allowed[len(first) :, len(second) :] = True
    return bool((maximum_bipartite_matching(csr_matrix(allowed)) >= 0).all())


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.5))
@settings(max_examples=30, deadline=None)
def test_the_whole_diagram_moves_by_no_more_than_any_distance_did(seed: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(24, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(24, 1)]
    moved = distances + generator.uniform(-size, size, size=len(distances)).clip(-distances, None)
    first, second = h1_bars(distances, 24), h1_bars(moved, 24)
    furthest = float(np.abs(moved - distances).max()) + 1e-5
    assert within(first, second, furthest)
    # The matching is no formality: bars of nothing at all are further away than the longest bar's half.
    nothing = np.empty((0, 2))
    assert not len(first) or not within(first, nothing, float(np.diff(first, axis=1).max()) / 2 - 1e-6)


def test_a_summary_is_worked_out_by_hand() -> None:
    found = summary(np.array([[1.0, 3.0], [0.5, 1.0]]))
    assert found == H1Summary(max_lifetime=2.0, total=2.5, sum_of_squares=4.25, bars=2)
    assert summary(np.empty((0, 2))) == H1Summary(0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(("value", "points"), [(np.nan, 4), (np.inf, 4), (1.0, 5)])
def test_distances_that_are_not_finite_or_too_few_are_refused(value: float, points: int) -> None:
    condensed = np.array([1.0, 1.0, value, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="not finite" if points == 4 else "do not belong to 5 points"):
        h1_bars(condensed, points)


def test_counting_loops_loads_neither_torch_nor_scikit_learn() -> None:
    script = (
        "import sys, tpsprune.numerics.persistence; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
