"""What a unit is in nets with groups, turned weights, gates and unwrapped parameters, and that it is one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.helpers import groups_of, halved, pruned_and_masked, reasons
from tests.pruning.nets_attention import attend, by_head
from tests.pruning.nets_structure import (
    IMAGES,
    SERIES,
    STRUCTURES,
    VECTORS,
    ZOO,
    Bottlenecks,
    DrawnNet,
    Gated,
    Plain,
    Stream,
    Vit,
    case,
)
from tpsprune.pruning.coupling import trace_couplings
from tpsprune.pruning.groups import Attribute, Consumer, PrunedGroup, Slice
from tpsprune.pruning.layers import consumer_weights, mixer, set_consumer_weights
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import pruned_copy


@pytest.mark.parametrize("name", [*STRUCTURES, *ZOO])
def test_a_pruned_model_equals_the_masked_one(name: str) -> None:
    model, batch = case(name)
    model, masked, ticket = pruned_and_masked(model, batch[:3])
    batch = batch[:3].double() if batch.is_floating_point() else batch[:3]
    torch.testing.assert_close(ticket(batch), masked(batch), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model(batch), masked(batch))
    sizes = [sum(p.numel() for p in each.parameters()) for each in (ticket, model)]
    assert sizes[0] < sizes[1]


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["plain", "grouped", "depthwise", "residual"]), min_size=1, max_size=3),
    half_widths=st.lists(st.integers(2, 4), min_size=4, max_size=4),
    norm=st.sampled_from(["batch", "group", "one-group", "layer", "none"]),
    hidden=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_so_it_is_on_random_networks(
    kinds: list[str], half_widths: list[int], norm: str, hidden: int, seed: int
) -> None:
    net = DrawnNet(kinds, [2 * half for half in half_widths], norm, hidden)
    assert "hidden" in groups_of(net, IMAGES)
    _, masked, ticket = pruned_and_masked(net, IMAGES, seed)
    batch = IMAGES[:3].double()
    torch.testing.assert_close(ticket(batch), masked(batch), rtol=1e-8, atol=1e-8)


def test_many_groups_of_few_channels_are_pruned_as_groups() -> None:
    groups = groups_of(Bottlenecks(4, 8, 12), IMAGES)
    block = groups["first"]
    assert (block.width, block.kind, block.members) == (4, "blocks", ("norm1", "grouped", "norm2"))
    assert block.consumers == (Consumer("last", 0, 3),)
    assert block.attributes == (Attribute("grouped", "groups", 1),)
    assert Slice("grouped.weight", 0, 0, 3) in block.slices


def test_few_groups_of_many_channels_keep_their_number_and_grow_narrow() -> None:
    groups = groups_of(Bottlenecks(2, 8, 12), IMAGES)
    before, behind = groups["first"], groups["grouped"]
    assert (before.width, behind.width) == (4, 6)
    assert before.consumers == (
        Consumer("grouped", 0, 1, outputs=(0, 6)),
        Consumer("grouped", 4, 1, outputs=(6, 12)),
    )
    assert behind.consumers == (Consumer("last", 0, 1, repeat=2, stride=6),)


def test_a_group_norm_leaves_whole_groups() -> None:
    group = groups_of(Plain(nn.GroupNorm(4, 8)), IMAGES)["stem"]
    assert (group.width, group.kind) == (4, "blocks")
    assert group.consumers == (Consumer("head", 0, 72, positions=36),)
    assert group.consumers[0].features == 2
    assert group.attributes == (Attribute("middle", "num_groups", 1),)


def test_layers_know_their_new_groups() -> None:
    model = Bottlenecks(4, 8, 12, norm=lambda n: nn.GroupNorm(4, n))
    pruned = [PrunedGroup.of(group, range(2)) for group in find_groups(model, IMAGES).groups]
    ticket = pruned_copy(model, pruned)
    grouped, norm = ticket.grouped, ticket.norm2
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 4, 6)
    assert (norm.num_groups, norm.num_channels) == (2, 6)


def test_parameters_that_no_layer_holds_are_pruned_with_the_stream() -> None:
    slices = groups_of(Vit(), IMAGES)["patch"].slices
    assert {(each.tensor, each.axis) for each in slices} >= {
        ("token", 2),
        ("positions", 2),
        ("blocks.0.gamma1", 0),
        ("blocks.0.gamma2", 0),
    }


def test_the_halves_of_a_gate_are_pruned_together() -> None:
    group = groups_of(Gated(chunk=True), VECTORS)["both"]
    assert group.width == 6
    assert Slice("both.weight", 0, 0, 1, repeat=2, stride=6) in group.slices


def test_a_depthwise_convolution_of_more_inputs_than_outputs_is_left_alone_and_named() -> None:
    why = reasons(Bottlenecks(4, 16, 4), IMAGES)["first"]
    assert "grouped has different numbers of inputs and outputs" in why


@pytest.mark.parametrize("name", ["grouped, bundles", "Conv1D", "skip and transposed convolution"])
def test_a_consumers_weights_are_written_back_where_they_were(name: str) -> None:
    model, batch = case(name)
    for group in find_groups(model, batch).groups:
        for consumer in group.consumers:
            module = mixer(model, consumer.module)
            before = module.weight.detach().clone()
            rows = consumer_weights(module, consumer, group.width)
            assert rows.shape[:2] == (group.width * consumer.features, consumer.positions)
            set_consumer_weights(module, consumer, group.width, 2.0 * rows)
            changed = module.weight.detach() != before
            assert torch.equal(module.weight[changed], 2.0 * before[changed])
            assert int(changed.sum()) == rows.numel()


def test_the_groups_of_many_layers_take_a_few_calls_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Stream.forward

    def counted(self: Stream, x_btd: Tensor) -> Tensor:
        calls.append(self)
        return original(self, x_btd)

    monkeypatch.setattr(Stream, "forward", counted)
    assert len(find_groups(Stream(nn.LayerNorm, depth=12), SERIES).groups) == 13
    assert len(calls) <= 10


class Chunked(nn.Module):
    """Fused q, k and v taken apart by chunk, under positions that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.positions = nn.Parameter(torch.randn(1, 3, 8))
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.num_heads = 2

    def forward(self, x_btd: Tensor) -> Tensor:
        x_btd = self.embed(x_btd) + self.positions
        mixed = attend(*(by_head(part, self.num_heads) for part in self.qkv(x_btd).chunk(3, dim=-1)))
        return self.head(x_btd + self.o(mixed))


def test_q_k_and_v_apart_by_chunk_under_positions_lose_heads_and_stream() -> None:
    batch = torch.randn(2, 3, 5)
    ticket, names = halved(Chunked(), batch)
    assert names == ["embed", "qkv"]
    assert ticket.positions.shape == (1, 3, 4)
    assert ticket(batch).shape == (2, 3, 3)


def test_the_trace_gives_each_root_once_and_leaves_the_model_as_it_was() -> None:
    model, batch = case("cnn")
    assert [each.root for each in trace_couplings(model, batch)] == ["body.0", "body.3", "head"]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
