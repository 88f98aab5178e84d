"""Edges of λ from steps made up."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import pytest

from tpsprune.studies.coupling_edges import HIGHEST, LOWEST, Outcome, coupling_of, due, lower, upper

WITHOUT = 600


def outcomes(steps: Mapping[int, int]) -> dict[int, Outcome]:
    """A negative number was given in vain."""
    return {rank: Outcome(abs(taken), taken > 0) for rank, taken in steps.items()}


def test_the_lower_edge_is_where_log_steps_cross_the_line_in_log_coupling() -> None:
    # The line is 400. Between 800 at λ = 0.1 and 200 at λ = 0.316 it is crossed half-way.
    assert lower(WITHOUT, outcomes({-2: 800, -1: 200})) == pytest.approx(10**-0.75)
    assert lower(WITHOUT, outcomes({-2: 401, -1: 200})) == pytest.approx(0.1, rel=0.01)
    assert lower(WITHOUT, outcomes({-2: 800, -1: 400})) == pytest.approx(coupling_of(-1))
    assert lower(WITHOUT, outcomes({-2: 600, -1: 200}), factor=3.0) == pytest.approx(coupling_of(-1))


def test_the_edge_is_sought_from_the_fastest_down_whatever_lies_below() -> None:
    lucky = outcomes({-4: 300, -3: 590, -2: 800, -1: 200, 0: 350})
    assert lower(WITHOUT, lucky) == lower(WITHOUT, outcomes({-2: 800, -1: 200}))


def test_one_given_up_counts_with_the_steps_it_was_given() -> None:
    assert lower(WITHOUT, outcomes({-2: -800, -1: 200})) == lower(WITHOUT, outcomes({-2: 800, -1: 200}))


@pytest.mark.parametrize("steps", [{-1: 500, 0: 450}, {-1: 300, 0: 200}, {-1: -1200, 0: -1200}, {}])
def test_where_none_speeds_up_or_all_do_there_is_no_lower_edge(steps: dict[int, int]) -> None:
    assert lower(WITHOUT, outcomes(steps)) is None


def test_the_upper_edge_is_midway_to_the_first_that_fails_above_the_fastest() -> None:
    found = outcomes({-1: -1200, 0: 300, 1: 900, 2: -1200, 3: 1100})
    assert upper(found) == pytest.approx(sqrt(coupling_of(1) * coupling_of(2)))
    assert upper(outcomes({0: 300, 1: 200})) is None
    assert upper(outcomes({0: -1200})) is None


def test_a_cell_is_walked_down_while_it_speeds_up_and_up_while_it_learns() -> None:
    steps = {-3: 590, -2: 390, -1: 300, 0: 200, 1: 700, 2: -1200}
    tried: dict[int, Outcome] = {}
    order = []
    while (rank := due(WITHOUT, tried, (-1, 0))) is not None:
        order.append(rank)
        tried |= outcomes({rank: steps[rank]})
    assert order == [-1, 0, -2, -3, 1, 2]


def test_a_walk_ends_at_the_ends_of_the_grid() -> None:
    tried: dict[int, Outcome] = {}
    while (rank := due(WITHOUT, tried, (0,))) is not None:
        tried |= outcomes({rank: 100})
    assert (min(tried), max(tried)) == (LOWEST, HIGHEST)
