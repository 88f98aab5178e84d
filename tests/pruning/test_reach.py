"""A target out of reach is refused before any training, with what the model can reach."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.pruning import check_target
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs

BATCH = torch.randn(4, 8)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def test_a_target_within_reach_returns_what_can_be_cut_and_what_it_costs() -> None:
    found, count = check_target(net(), BATCH, Prune(target=Macs(0.5)))
    assert [group.width for group in found.groups] == [32, 32]
    assert count.total == 8 * 32 + 32 * 32 + 32 * 3


def test_a_target_out_of_reach_is_refused_with_the_least_there_is() -> None:
    least = (8 * 8 + 8 * 8 + 8 * 3) / (8 * 32 + 32 * 32 + 32 * 3)
    assert check_target(net(), BATCH, Prune(target=Macs(least + 1e-4), max_cut_share=0.75))
    with pytest.raises(PruneError, match=r"prune.target macs=0.05 cannot be reached: .* the least is 0.111"):
        check_target(net(), BATCH, Prune(target=Macs(0.05), max_cut_share=0.75))


def test_a_model_with_nothing_to_cut_is_refused_with_the_reasons() -> None:
    model = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(
        PruneError, match=r"the model holds nothing that can be cut\n  0: it is the model's output"
    ):
        check_target(model, BATCH, Prune())
