"""The width of heads in the survey, and its cut: alone, with the heads, after them, replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.nets_attention import LENGTH, WIDTH, FusedByPart, Net, Rotary, sequences
from tests.pruning.nets_heads import (
    NARROWED,
    SCALE_STAYS,
    Attend,
    Normed,
    Remembers,
    found_in,
    moments_of,
    net,
    of,
    silenced,
    the_width,
    ticket_of,
)
from tests.pruning.test_compose import assert_same, plan_of
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning.compose import compose
from tpsprune.pruning.cutting import cut_copy, fresh_copy, silence
from tpsprune.pruning.groups import Attribute, Group, GroupCut, Slice
from tpsprune.pruning.head_width import (
    hold_scale,
    rotated,
)
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.reach import cost_model, surveyed
from tpsprune.pruning.replay import replay
from tpsprune.pruning.survey import survey
from tpsprune.pruning.verify import verify
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs, Params


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_numbers_follow_the_width_where_they_are_of_queries_and_keys(own: bool, inner: bool) -> None:
    torch.manual_seed(0)
    model, batch = Net(Remembers(own=own, inner=inner)).eval(), sequences()
    group = the_width(model)
    assert [each.name for each in group.attributes] == ["head_dim"] * own + ["qk_proj_dim"] * inner
    assert torch.allclose(ticket_of(model, group, 3)(batch), silenced(model, group, 3)(batch), atol=1e-5)


@pytest.mark.parametrize("name", NARROWED)
def test_whether_the_scale_follows_the_width_is_found_out(name: str) -> None:
    assert of(the_width(net(name))).scale_follows == (name not in SCALE_STAYS)


def test_a_scale_that_follows_is_held_on_the_ticket_and_nothing_else_is_touched() -> None:
    model, batch = net("separate"), sequences()
    group = the_width(model)
    bare = cut_copy(model, (GroupCut.of(group, range(2)),))
    held = ticket_of(model, group, 2)
    assert not torch.allclose(bare(batch), silenced(model, group, 2)(batch), atol=1e-4)
    query = held.attention.to_q
    assert torch.allclose(query.weight, bare.attention.to_q.weight * 0.5**0.5)
    assert torch.allclose(query.bias, bare.attention.to_q.bias * 0.5**0.5)
    whole = fresh_copy(model)
    hold_scale(whole, group, 4)
    assert_same(whole, model)


@pytest.mark.parametrize("attention", [lambda: Rotary(3, 3), lambda: Rotary(tiled=True), Normed])
def test_queries_and_keys_that_are_turned_or_normed_are_left_alone_with_the_reason(
    attention: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    found = found_in(Net(attention()))
    assert {each.kind for each in found.groups} == {"heads", "units"}
    reasons = {each.name: each.reason for each in found.left_alone}
    assert "turned by position (rotary) or normed" in reasons["attention.q_proj.head-width"]


def test_one_layer_of_queries_keys_and_values_has_no_head_width() -> None:
    torch.manual_seed(0)
    model = Net(FusedByPart())
    assert found_in(model) == survey(model, sequences(2))


def test_queries_split_by_the_number_that_splits_the_values_stay_as_wide_as_they_are() -> None:
    class Shared(Attend):
        def __init__(self) -> None:
            super().__init__()
            self.head_dim = 4

        def forward(self, x_btd: Tensor) -> Tensor:
            q, k, v = (
                layer(x_btd).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
                for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v)
            return self.o_proj(mixed.transpose(1, 2).flatten(2))

    found = found_in(Net(Shared()))
    assert all(each.kind != "head-width" for each in found.groups)
    (reason,) = (each.reason for each in found.left_alone if each.name == "attention.q_proj.head-width")
    assert "does not run without some of its units" in reason


def test_a_scale_that_falls_otherwise_than_by_the_root_keeps_the_width() -> None:
    class PerWidth(Attend):
        def forward(self, x_btd: Tensor) -> Tensor:
            self.scale = 8.0 * self.num_heads / self.q_proj.out_features
            return super().forward(x_btd)

    (reason,) = (
        each.reason for each in found_in(Net(PerWidth())).left_alone if each.name.endswith(".head-width")
    )
    assert reason == "narrower heads give other scores, and no scale of d^(−1/2) explains it"


@pytest.mark.parametrize("name", ["opened", "grouped queries", "remembers widths"])
def test_nothing_is_found_that_was_not_asked_for(name: str) -> None:
    model = net(name)
    plain, found = survey(model, sequences(2)), found_in(model)
    assert [each for each in found.groups if each.kind != "head-width"] == [*plain.groups]
    assert found.left_alone == plain.left_alone
    settings = Prune()
    assert surveyed(model, sequences(2), settings)[0] == plain
    assert surveyed(model, sequences(2), replace(settings, head_width=True))[0] == found


def test_a_layer_that_is_to_be_left_alone_keeps_its_width() -> None:
    found = survey(net("opened"), sequences(2), ["*.k_proj"], head_width=True)
    reasons = {each.name: each.reason for each in found.left_alone}
    assert reasons["attention.attn.q_proj.head-width"] == "left alone as asked by '*.k_proj'"


def test_the_layout_is_that_of_the_closed_form() -> None:
    group = the_width(net("grouped queries"))
    assert group.name == "attention.q_proj.head-width"
    assert group.producers == ("attention.q_proj", "attention.k_proj")
    assert (group.width, group.consumers, group.cores) == (4, (), ("attention",))
    assert set(group.slices) == {
        Slice(f"attention.{part}_proj.{tensor}", 0, 0, 1, heads, 4)
        for part, heads in (("q", 6), ("k", 3))
        for tensor in ("weight", "bias")
    }


def both(model: nn.Module) -> tuple[Group, Group]:
    groups = {each.kind: each for each in found_in(model).groups}
    return groups["heads"], groups["head-width"]


def test_a_number_that_follows_heads_and_their_width_falls_by_both() -> None:
    model, batch = net("remembers widths"), sequences()
    heads, width = both(model)
    assert Attribute("attention", "qk_proj_dim", 4) in heads.attributes
    assert Attribute("attention", "qk_proj_dim", 3) in width.attributes
    for order in ((heads, width), (width, heads)):
        ticket = cut_copy(model, [GroupCut.of(each, range(2)) for each in order])
        assert (ticket.attention.n_heads, ticket.attention.head_dim, ticket.attention.qk_proj_dim) == (
            2,
            2,
            4,
        )
        deaf = fresh_copy(model)
        silence(deaf, heads, [2])
        silence(deaf, width, [2, 3])
        assert torch.allclose(ticket(batch), deaf(batch), atol=1e-5)


SHARED = ["opened", "separate", "values of another width", "grouped queries", "grouped queries, tiled"]
SHARED += ["keys from elsewhere", "remembers widths", "multi-query"]


@pytest.mark.parametrize("name", SHARED)
def test_heads_and_their_width_cut_together_are_the_model_silenced_and_cost_what_is_counted(
    name: str,
) -> None:
    model, batch = net(name), sequences(2)
    groups = found_in(model).groups
    assert {"heads", "head-width"} <= {each.kind for each in groups}
    dense = count_macs(model, batch)
    macs = cost_model(model, groups, dense, Prune(target=Macs(0.5)))
    params = cost_model(model, groups, dense, Prune(target=Params(0.5)))
    assert macs.at(macs.widths) == pytest.approx(dense.total, abs=1e-6)
    for widths in ([2] * len(groups), [max(1, each.width - 1) for each in groups]):
        cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
        work = fresh_copy(model)
        for group, cut in zip(groups, cuts, strict=True):
            silence(work, group, cut.removed)
        ticket = cut_copy(work, cuts)
        for group, width in zip(groups, widths, strict=True):
            hold_scale(ticket, group, width)
        assert macs.at(widths) == pytest.approx(count_macs(ticket, batch).total, abs=1e-6)
        assert params.at(widths) == pytest.approx(sum(p.numel() for p in ticket.parameters()), abs=1e-6)
        verify(ticket, work, model, [batch], groups, widths, dense, Prune(target=Macs(0.99)))


def test_the_width_alone_is_counted_as_exactly_as_with_the_heads() -> None:
    model, batch = net("one head"), sequences(2)
    group = the_width(model)
    costs = cost_model(model, [group], count_macs(model, batch), Prune(target=Macs(0.5)))
    for kept in (1, 3):
        assert costs.at([kept]) == pytest.approx(count_macs(ticket_of(model, group, kept), batch).total)
    assert costs.at([3]) - costs.at([2]) == 2 * LENGTH * WIDTH + LENGTH**2


@pytest.mark.parametrize("name", ["opened", "grouped queries", "remembers widths"])
def test_a_plan_of_heads_and_widths_replays_bit_for_bit_without_the_rotation(name: str) -> None:
    torch.manual_seed(0)
    closed = Net(NARROWED[name]()).eval()
    model, opened = open_attention(closed)
    heads, width = both(model)
    cuts = (GroupCut.of(heads, [0, 2]), GroupCut.of(width, range(3)))
    plan = plan_of(closed, cuts, opened=opened)
    assert_same(replay(closed, type(plan).from_json(plan.to_json())), cut_copy(model, cuts))
    weight = model.get_submodule(of(width).key).weight.detach()
    replayed = replay(closed, plan).get_submodule(of(width).key).weight
    assert torch.equal(replayed, weight.unflatten(0, (3, 4))[[0, 2], :3].flatten(0, 1))


@pytest.mark.parametrize("first", [("heads",), ("head-width",), ("heads", "head-width")])
@pytest.mark.parametrize("second", [("heads",), ("head-width",), ("head-width", "heads")])
@pytest.mark.parametrize("name", ["separate", "grouped queries, tiled", "remembers widths"])
def test_cuts_of_heads_and_widths_one_after_the_other_are_one_plan(
    name: str, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    def plan(model: nn.Module, kinds: tuple[str, ...], kept: dict[str, Any]) -> Any:
        groups = {each.kind: each for each in found_in(model).groups}
        return plan_of(model, tuple(GroupCut.of(groups[kind], kept[kind]) for kind in kinds))

    model, batch = net(name), sequences()
    one = plan(model, first, {"heads": [0, 2], "head-width": range(3)})
    ticket = replay(model, one)
    two = plan(ticket, second, {"heads": [1], "head-width": range(2)})
    together = compose(one, two)
    assert_same(replay(model, together), replay(ticket, two))
    numbers = [
        [value for value in vars(each.attention).values() if type(value) is int]
        for each in (replay(model, together), replay(ticket, two))
    ]
    assert numbers[0] == numbers[1]
    assert replay(model, together)(batch).shape == (8, 3)
    assert type(together).from_json(together.to_json()) == together


def test_half_precision_is_surveyed_turned_and_cut() -> None:
    model, batch = net("opened"), sequences()
    group = the_width(model)
    half = fresh_copy(model).bfloat16()
    assert survey(half, batch[:2].bfloat16(), head_width=True).groups == found_in(model).groups
    rotated(half, group, moments_of(half, group, batch.bfloat16()))
    spread = float(model(batch).detach().std())
    difference = half(batch.bfloat16()).float() - model(batch)
    assert float(difference.detach().abs().max()) < 0.1 * spread
    assert ticket_of(half, group, 3)(batch.bfloat16()).dtype == torch.bfloat16
    assert half.attention.attn.q_proj.weight.requires_grad
