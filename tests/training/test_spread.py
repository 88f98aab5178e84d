"""Which parts of a model are blocks that open one after another."""

from __future__ import annotations

import pytest
from torch import nn

from tests.scale.nets import Residual, Tied, shared
from tpsprune.errors import ModelError
from tpsprune.models.architectures import ResNet
from tpsprune.training.spread import blocks_of, check_spread, largest_open


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_blocks_are_children_of_one_list_and_of_one_class() -> None:
    assert list(blocks_of(Residual(depth=2))) == ["blocks.0", "blocks.1"]
    assert list(blocks_of(nn.Sequential(pair(), nn.Linear(2, 2), pair()))) == ["0", "2"]


def test_a_list_of_lists_is_none_of_blocks_where_these_have_some() -> None:
    blocks = blocks_of(ResNet(1, 20, 8, 10))
    assert list(blocks) == [f"stages.{stage}.{place}" for stage in range(3) for place in range(3)]


def test_experts_open_with_the_block_that_holds_them() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(pair() for _ in range(3))

    assert list(blocks_of(nn.ModuleList(Mixture() for _ in range(2)))) == ["0", "1"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),  # single layers have no parts
        nn.Sequential(pair(), nn.Linear(2, 2)),  # one of its kind
        nn.ModuleDict({"a": pair(), "b": pair()}),  # no list
        nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())),  # nothing to spread
    ],
)
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="has no blocks that repeat"):
        blocks_of(model)


def test_what_two_blocks_share_is_refused_and_what_lies_outside_is_not() -> None:
    with pytest.raises(ModelError, match=r"'blocks.0.rise.weight' of block 'blocks.0' is shared"):
        check_spread(shared())
    net = Residual()
    net.head.weight = nn.Parameter(net.head.weight.detach())
    check_spread(Tied())
    net.blocks[1].fall.weight = net.stem.weight  # type: ignore[union-attr, assignment]
    with pytest.raises(ModelError, match="shared with a module outside of the blocks"):
        check_spread(net)


def test_what_lies_open_is_a_block_and_what_is_in_none() -> None:
    model = Residual(width=24, hidden=33, depth=3)
    block = sum(each.numel() for each in model.blocks[0].parameters())
    rest = sum(each.numel() for part in (model.stem, model.head) for each in part.parameters())
    assert largest_open(model) == block + rest
