from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tpsprune.pruning.prunability import find_and_price_groups
from tpsprune.pruning.ties import Classes
from tpsprune.pruning.widths import Evidence
from tpsprune.recipe.prune import Macs, Prune

MODEL = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
BATCH = torch.randn(64, 6)
FOUND, _, COSTS = find_and_price_groups(MODEL, BATCH, Prune(target=Macs(0.5)))
PLAIN = [replace(FOUND.groups[0], name=name) for name in "abcd"]
TIED = [PLAIN[0], *(replace(each, tied_to="experts") for each in PLAIN[1:3]), PLAIN[3]]


def test_a_group_that_is_not_tied_is_a_class_of_its_own() -> None:
    classes = Classes.of(FOUND.groups)
    assert classes.names == tuple(group.name for group in FOUND.groups)
    same = classes.costs(COSTS)
    widths = [max(1, width - 1) for width in COSTS.widths]
    assert same.at(widths) == COSTS.at(widths)
    assert classes.spread(widths) == tuple(widths)


def test_tied_groups_have_one_width_in_the_order_of_the_first() -> None:
    classes = Classes.of(TIED)
    assert classes.names == ("a", "experts", "d")
    assert classes.spread((7, 5, 3)) == (7, 5, 5, 3)


@given(widths=st.lists(st.integers(1, 8), min_size=2, max_size=2), tied=st.booleans())
def test_a_class_costs_what_its_groups_cost_at_its_width(widths: list[int], tied: bool) -> None:
    classes = Classes.of([replace(each, tied_to="both" if tied else "") for each in FOUND.groups])
    chosen = widths[: len(classes.names)]
    assert len(chosen) == (1 if tied else 2)
    assert classes.costs(COSTS).at(chosen) == pytest.approx(COSTS.at(classes.spread(chosen)))


def test_evidence_of_a_class_weighs_each_group_as_loud_as_it_is() -> None:
    evidence = Evidence(
        ranks=(1.0, 2.0, 4.0, 8.0),
        residuals=([0.5, 0.0], [0.8, 0.0], [0.2, 0.0], [0.1, 0.0]),
        scores=[torch.tensor(each) for each in ([1.0, 2.0], [3.0, 1.0], [5.0, 9.0], [4.0, 4.0])],
        loudness=(1.0, 3.0, 1.0, 2.0),
    )
    found = Classes.of(TIED).evidence(evidence)
    assert found.ranks == [1.0, 3.0, 8.0]
    assert found.loudness == [1.0, 4.0, 2.0]
    assert found.residuals[1] == pytest.approx([0.65, 0.0])
    assert found.residuals[0] == [0.5, 0.0]
    assert [each.tolist() for each in found.scores] == [[1.0, 2.0], [6.0, 3.0], [4.0, 4.0]]
    nothing = Classes.of(TIED).evidence(Evidence())
    assert (nothing.ranks, nothing.residuals, nothing.scores, nothing.loudness) == ((), (), (), ())
