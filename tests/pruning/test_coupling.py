"""What a unit is in nets with groups, turned weights, gates and bare parameters; that its cut is right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.nets_structure import (
    Bottlenecks,
    DrawnNet,
    Gated,
    LayerNorm2d,
    Plain,
    Stream,
    Twice,
    Unet,
    Vit,
    conv1d,
)
from tpsprune.pruning.groups import Attribute, Consumer, Group, PrunedGroup, Slice
from tpsprune.pruning.layers import consumer_weights, mixer, set_consumer_weights
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import mask_units, pruned_copy
from tpsprune.pruning.trial import randomised_copy

IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


def found_in(model: nn.Module, batch: Tensor) -> dict[str, Group]:
    return {group.name: group for group in find_groups(model, batch).groups}


def cut_and_silenced(
    model: nn.Module, batch: Tensor, seed: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a shaken model in double precision, the same silenced, and cut, every group at random."""
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(model, batch).groups
    model = randomised_copy(model).double()
    silenced = copy.deepcopy(model)
    cuts = []
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        cut = PrunedGroup.of(group, torch.randperm(group.width, generator=generator)[:count].tolist())
        mask_units(silenced, group, cut.removed)
        cuts.append(cut)
    return model, silenced, pruned_copy(model, cuts)


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "grouped, blocks": (lambda: Bottlenecks(4, 8, 12), IMAGES),
    "grouped, bundles": (lambda: Bottlenecks(2, 8, 12), IMAGES),
    "depthwise with two outputs each": (lambda: Bottlenecks(8, 8, 16), IMAGES),
    "grouped and transposed": (lambda: Bottlenecks(4, 8, 12, kind=nn.ConvTranspose2d), IMAGES),
    "grouped under group norms": (lambda: Bottlenecks(4, 8, 12, norm=lambda n: nn.GroupNorm(2, n)), IMAGES),
    "grouped right behind the stem": (lambda: Plain(nn.Conv2d(8, 8, 3, padding=1, groups=2)), IMAGES),
    "group norm": (lambda: Plain(nn.GroupNorm(4, 8)), IMAGES),
    "group norm without weights": (lambda: Plain(nn.GroupNorm(4, 8, affine=False)), IMAGES),
    "group norm of one group": (lambda: Plain(nn.GroupNorm(1, 8)), IMAGES),
    "instance norm without weights": (lambda: Plain(nn.InstanceNorm2d(8)), IMAGES),
    "layer norm over channels": (lambda: Plain(LayerNorm2d(8)), IMAGES),
    "Conv1D": (lambda: Stream(nn.LayerNorm, linear=conv1d), SERIES),
    "vision transformer": (Vit, IMAGES),
    "gated by chunk": (lambda: Gated(chunk=True), VECTORS),
    "gated by glu": (lambda: Gated(chunk=False), VECTORS),
    "twice beside itself": (Twice, VECTORS),
    "transposed convolution with a skip": (Unet, IMAGES),
}


@pytest.mark.parametrize("name", NETS)
def test_the_cut_model_equals_the_silenced_one(name: str) -> None:
    make, batch = NETS[name]
    torch.manual_seed(0)
    model, silenced, ticket = cut_and_silenced(make(), batch)
    batch = batch.double()
    torch.testing.assert_close(ticket(batch), silenced(batch), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model(batch), silenced(batch))
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
def test_so_it_is_on_networks_drawn_at_random(
    kinds: list[str], half_widths: list[int], norm: str, hidden: int, seed: int
) -> None:
    net = DrawnNet(kinds, [2 * half for half in half_widths], norm, hidden)
    assert "hidden" in found_in(net, IMAGES)
    _, silenced, ticket = cut_and_silenced(net, IMAGES, seed)
    torch.testing.assert_close(ticket(IMAGES.double()), silenced(IMAGES.double()), rtol=1e-8, atol=1e-8)


def test_many_groups_of_few_channels_go_as_groups() -> None:
    groups = found_in(Bottlenecks(4, 8, 12), IMAGES)
    block = groups["first"]
    assert (block.width, block.kind, block.members) == (4, "blocks", ("norm1", "grouped", "norm2"))
    assert block.consumers == (Consumer("last", 0, 3),)
    assert block.attributes == (Attribute("grouped", "groups", 1),)
    assert Slice("grouped.weight", 0, 0, 3) in block.slices


def test_few_groups_of_many_channels_keep_their_number_and_grow_narrow() -> None:
    groups = found_in(Bottlenecks(2, 8, 12), IMAGES)
    before, behind = groups["first"], groups["grouped"]
    assert (before.width, behind.width) == (4, 6)
    assert before.consumers == (
        Consumer("grouped", 0, 1, outputs=(0, 6)),
        Consumer("grouped", 4, 1, outputs=(6, 12)),
    )
    assert behind.consumers == (Consumer("last", 0, 1, repeat=2, stride=6),)


def test_a_group_norm_leaves_whole_groups() -> None:
    group = found_in(Plain(nn.GroupNorm(4, 8)), IMAGES)["stem"]
    assert (group.width, group.kind) == (4, "blocks")
    assert group.consumers == (Consumer("head", 0, 72, positions=36),)
    assert group.consumers[0].features == 2
    assert group.attributes == (Attribute("middle", "num_groups", 1),)


def test_layers_know_their_new_groups() -> None:
    model = Bottlenecks(4, 8, 12, norm=lambda n: nn.GroupNorm(4, n))
    cuts = [PrunedGroup.of(group, range(2)) for group in find_groups(model, IMAGES).groups]
    ticket = pruned_copy(model, cuts)
    grouped, norm = ticket.grouped, ticket.norm2
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 4, 6)
    assert (norm.num_groups, norm.num_channels) == (2, 6)


def test_parameters_that_no_layer_holds_go_with_the_stream() -> None:
    slices = found_in(Vit(), IMAGES)["patch"].slices
    assert {(each.tensor, each.axis) for each in slices} >= {
        ("token", 2),
        ("positions", 2),
        ("blocks.0.gamma1", 0),
        ("blocks.0.gamma2", 0),
    }


def test_the_halves_of_a_gate_go_together() -> None:
    group = found_in(Gated(chunk=True), VECTORS)["both"]
    assert group.width == 6
    assert Slice("both.weight", 0, 0, 1, repeat=2, stride=6) in group.slices


def test_a_depthwise_convolution_that_reads_more_than_it_puts_out_is_left_whole_and_named() -> None:
    left = {each.name: each.reason for each in find_groups(Bottlenecks(4, 16, 4), IMAGES).left_alone}
    assert "grouped reads and puts out channels of different numbers" in left["first"]


@pytest.mark.parametrize("name", ["grouped, bundles", "Conv1D", "transposed convolution with a skip"])
def test_what_a_consumer_hears_is_written_back_where_it_was(name: str) -> None:
    make, batch = NETS[name]
    model = make()
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


def test_a_survey_of_many_layers_calls_the_model_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Stream.forward

    def counted(self: Stream, x_btd: Tensor) -> Tensor:
        calls.append(self)
        return original(self, x_btd)

    monkeypatch.setattr(Stream, "forward", counted)
    assert len(find_groups(Stream(nn.LayerNorm, depth=12), SERIES).groups) == 13
    assert len(calls) <= 9
