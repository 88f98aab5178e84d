"""A target out of reach is refused before any training, with what the model can reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.pruning.reach import check_target, surveyed
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths

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


def test_a_target_of_parameters_counts_the_biases_that_stay() -> None:
    least = (9 * 8 + 9 * 8 + 9 * 3) / (9 * 32 + 33 * 32 + 33 * 3)
    assert check_target(net(), BATCH, Prune(target=Params(least + 1e-4), max_cut_share=0.75))
    with pytest.raises(PruneError, match=r"prune.target params=0.1 cannot be reached: .* the least is 0.119"):
        check_target(net(), BATCH, Prune(target=Params(0.1), max_cut_share=0.75))


def test_the_cost_is_in_the_unit_of_the_target_and_foresees_biases_of_the_fold() -> None:
    model = nn.Sequential(nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 3, bias=False))
    macs = surveyed(model, BATCH, Prune(target=Macs(0.5)))[2]
    folded = surveyed(model, BATCH, Prune(target=Params(0.5)))[2]
    plain = surveyed(model, BATCH, Prune(target=Params(0.5), fold=False))[2]
    assert macs.total == folded.total == plain.total == 11 * 32
    assert folded.at((10,)) == plain.at((10,)) + 3 == 113


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Prune(target=Widths({"0": 33})), r"prune.target.widths:\n  '0' can keep 1 to 32 units \(found 33\)"),
        (Prune(target=Widths({"head": 3})), r"'head' is no group that can be pruned; groups are 0, 2"),
        (Prune(target=Tolerance(0.1), max_cut_shares={"q*": 0.5}), r"max_cut_shares: 'q\*' matches no group"),
        (Prune(leave_alone=("q*",)), r"q\*"),
    ],
)
def test_names_that_are_not_there_are_refused_before_any_training(settings: Prune, words: str) -> None:
    with pytest.raises(PruneError, match=words):
        check_target(net(), BATCH, settings)


@pytest.mark.parametrize("target", [Latency(0.01), Tolerance(0.5), Widths({"2": 1})])
def test_what_only_data_or_a_clock_can_tell_is_not_refused(target: Any) -> None:
    assert check_target(net(), BATCH, Prune(target=target))


def test_heads_of_packed_attention_are_found_without_changing_the_model() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
    )
    found, _ = check_target(model, torch.randn(4, 5, 8), Prune())
    assert "heads" in {group.kind for group in found.groups}
    assert isinstance(model[1].self_attn, nn.MultiheadAttention)


def test_a_model_with_nothing_to_cut_is_refused_with_the_reasons() -> None:
    model = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(
        PruneError, match=r"the model holds nothing that can be cut\n  0: it is the model's output"
    ):
        check_target(model, BATCH, Prune())
