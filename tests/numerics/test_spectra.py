from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.numerics.spectra import (
    Edge,
    corrected_participation_ratio,
    edge,
    edge_stability,
    effective_rank,
    gap_23,
    participation_ratio,
    row_spectrum,
)

SPECTRA = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@pytest.mark.parametrize("directions", [1, 2, 5])
@pytest.mark.parametrize("dimension", [effective_rank, participation_ratio])
def test_variance_spread_evenly_over_k_directions_counts_k(dimension, directions: int) -> None:
    eigenvalues_k = torch.zeros(7)
    eigenvalues_k[:directions] = 3.0
    assert float(dimension(eigenvalues_k)) == pytest.approx(directions)


@pytest.mark.parametrize("dimension", [effective_rank, participation_ratio])
def test_a_zero_spectrum_has_dimension_zero_next_to_one_that_has_not(dimension) -> None:
    assert dimension(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == pytest.approx([0.0, 2.0])


def test_two_unequal_eigenvalues_have_the_dimensions_worked_out_by_hand() -> None:
    eigenvalues_k = torch.tensor([3.0, 1.0])
    assert float(effective_rank(eigenvalues_k)) == pytest.approx(4 / 3**0.75)
    assert float(participation_ratio(eigenvalues_k)) == pytest.approx(16 / 10)


def test_negative_eigenvalues_from_rounding_count_as_zero() -> None:
    assert float(effective_rank(torch.tensor([1.0, 1.0, -1e-9]))) == pytest.approx(2.0)


def test_eigenvalues_that_are_not_a_number_give_no_number() -> None:
    assert effective_rank(torch.tensor([1.0, torch.nan])).isnan()
    assert participation_ratio(torch.tensor([1.0, torch.nan])).isnan()


@given(SPECTRA, st.floats(1e-3, 1e3))
def test_dimensions_do_not_change_with_scale_and_are_ordered(spectrum_k, scale: float) -> None:
    rank = float(effective_rank(spectrum_k))
    ratio = float(participation_ratio(spectrum_k))
    assert 1.0 - 1e-9 <= ratio <= rank + 1e-9 <= len(spectrum_k) + 2e-9
    assert float(effective_rank(scale * spectrum_k)) == pytest.approx(rank)
    assert float(participation_ratio(scale * spectrum_k)) == pytest.approx(ratio)


def test_the_correction_finds_the_population_ratio_from_few_rows(generator: torch.Generator) -> None:
    scale_n = torch.linspace(1.0, 0.1, 400, dtype=torch.float64)
    truth = float(participation_ratio(scale_n.square()))
    rows_rn = torch.randn(128, 400, generator=generator, dtype=torch.float64) * scale_n
    found = float(participation_ratio(torch.linalg.eigvalsh(torch.cov(rows_rn.T, correction=0))))
    assert found < 0.5 * truth
    assert corrected_participation_ratio(found, 128, at_most=400.0) == pytest.approx(truth, rel=0.05)


def test_the_correction_stops_at_the_number_of_units() -> None:
    assert corrected_participation_ratio(99.9, 100, at_most=64.0) == 64.0
    assert corrected_participation_ratio(100.5, 100, at_most=64.0) == 64.0
    assert corrected_participation_ratio(0.0, 100, at_most=64.0) == 0.0


def test_row_spectrum_equals_a_singular_value_decomposition(generator: torch.Generator) -> None:
    rows_wp = torch.randn(6, 50, generator=generator)
    torch.testing.assert_close(row_spectrum(rows_wp), torch.linalg.svdvals(rows_wp.double()))


def test_row_spectrum_of_what_is_not_finite_is_not_a_number() -> None:
    assert row_spectrum(torch.tensor([[1.0, 2.0], [torch.inf, 0.0]])).isnan().all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_planted_rank_is_where_the_edge_is(rank: int, generator: torch.Generator) -> None:
    strong_wp = torch.randn(10, rank, generator=generator) @ torch.randn(rank, 300, generator=generator)
    rows_wp = 10.0 * strong_wp + 0.1 * torch.randn(10, 300, generator=generator)
    found = edge(row_spectrum(rows_wp), 5)
    assert found.k == rank
    assert found.ratio > 5.0


def test_the_edge_is_the_largest_ratio_and_not_in_the_tail() -> None:
    assert edge(torch.tensor([8.0, 4.0, 1.0, 1.0, 1e-3]), 3) == Edge(2, 4.0)
    assert edge(torch.tensor([8.0, 4.0, 1.0, 1.0, 1e-3]), 1) == Edge(1, 2.0)


def test_an_exactly_low_rank_has_a_large_edge_and_a_zero_spectrum_none() -> None:
    found = edge(torch.tensor([2.0, 2.0, 0.0, 0.0]), 2)
    assert found.k == 2
    assert found.ratio == pytest.approx(1e8)
    assert edge(torch.zeros(4), 2) == Edge(0, 1.0)


def test_stability_of_an_edge_worked_out_by_hand() -> None:
    # Squares 9, 4, 1: the second is 3 from its nearest.
    sigma, moved = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([9.0, 5.0, 2.0]).sqrt()
    assert edge_stability(sigma, sigma, 2) == 1.0
    assert edge_stability(sigma, moved, 2) == pytest.approx(1 - 2 / 9)
    assert edge_stability(sigma, moved, 1) == pytest.approx(1 - 2 / 25)
    assert edge_stability(10 * sigma, 10 * moved, 2) == pytest.approx(1 - 2 / 9)
    assert edge_stability(sigma, 3 * sigma, 2) == 0.0
    assert edge_stability(torch.ones(3), torch.ones(3), 1) == 0.0


def test_gap_23_is_a_gap_of_squares() -> None:
    assert float(gap_23(torch.tensor([9.0, 3.0, 2.0, 1.0]))) == 5.0
