"""Pairs of several machines: their number, what each found, and each at rest by its own watts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.claims.conftest import comparison, idle
from tpsprune.claims import assess
from tpsprune.claims.machines import MachinePairs, by_machine
from tpsprune.records import ComparisonRecord

ONE, TWO = "1" * 12, "2" * 12


def on(machines: list[str], found: ComparisonRecord) -> ComparisonRecord:
    runs = tuple(replace(run, machine=machines[run.pair]) for run in found.runs)
    return replace(found, runs=runs)


def test_each_machine_has_the_geometric_mean_of_its_own_pairs() -> None:
    found = on([TWO, ONE, TWO], comparison([100.0, 300.0, 100.0], [50.0, 270.0, 32.0]))
    first, second = by_machine(found)
    assert (first.pairs, second.pairs) == (2, 1)
    assert first.saving_share == pytest.approx(1.0 - math.sqrt(0.5 * 0.32))
    assert second.saving_share == pytest.approx(0.1)


def test_pairs_made_without_a_cluster_are_of_one_machine_and_change_nothing() -> None:
    found = comparison([100.0, 110.0], [50.0, 55.0])
    assert by_machine(found) == (MachinePairs(2, pytest.approx(0.5)),)
    assert len(by_machine(on(["", ONE], found))) == 2
    assert by_machine(comparison([], [], asked=3)) == ()


def test_a_pair_without_joules_leaves_no_figure_of_its_machine() -> None:
    found = comparison([100.0, 110.0], [50.0, 55.0])
    bare = tuple(replace(window, joules={}, classes={}) for window in found.runs[0].windows)
    found = replace(found, runs=(replace(found.runs[0], windows=bare), *found.runs[1:]))
    assert by_machine(on([ONE, TWO], found)) == (MachinePairs(1, None), MachinePairs(1, pytest.approx(0.5)))


def test_a_machine_that_draws_more_at_rest_has_its_own_watts_taken_off() -> None:
    """Windows are 20 s: 100 J with 1 W at rest is 80 J of work, and 140 J with 3 W is too."""
    found = comparison([100.0, 140.0, 100.0, 140.0], [60.0, 100.0, 60.0, 100.0])
    found = replace(found, idle=tuple(idle(pair, 1.0 + 2.0 * (pair % 2)) for pair in range(4)))
    change = assess(on([ONE, TWO, ONE, TWO], found)).verdict.idle_subtracted
    assert change is not None
    assert change.saving_share == pytest.approx(0.5)
    assert change.deviation == pytest.approx(0.0, abs=1e-12)
    pooled = assess(found).verdict.idle_subtracted
    assert pooled is not None
    assert pooled.deviation > 0.01
