"""The width of heads: the basis in which the last dimensions can be pruned, its groups, plans and costs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.helpers import assert_same, plan_of, pruned_to
from tests.pruning.nets_attention import (
    LENGTH,
    NARROWED,
    SCALE_STAYS,
    WIDTH,
    Attend,
    FusedByPart,
    Net,
    Normed,
    Remembers,
    Rotary,
    attend,
    by_head,
    found_in,
    masked,
    moments_of,
    narrowed,
    of,
    products,
    sequences,
    the_width,
    ticket_of,
    width_of,
)
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning.costs import cost_model
from tpsprune.pruning.groups import Attribute, Group, PrunedGroup, Slice
from tpsprune.pruning.head_width import ScoreMoments, residual_shares, rotate_heads, score_rank
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.prunability import find_and_price_groups, find_groups
from tpsprune.pruning.replay import compose, replay
from tpsprune.pruning.surgery import copy_model, hold_scale, mask_units, pruned_copy
from tpsprune.pruning.verification import verify
from tpsprune.recipe.prune import Macs, Params, Prune


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NARROWED)
def test_a_rotation_at_full_rank_leaves_the_outputs_equal_on_any_input(name: str, weighted: bool) -> None:
    model, batch = narrowed(name), sequences()
    group = width_of(name)
    rotated = copy_model(model).double()
    rotate_heads(rotated, group, moments_of(model, group, sequences(1)[:, :2]) if weighted else None)
    weights = [each.get_submodule(of(group).query).weight for each in (model, rotated)]
    assert not torch.allclose(weights[0].double(), weights[1], atol=1e-2)
    expected = copy.deepcopy(model).double()(batch.double())
    assert torch.allclose(rotated(batch.double()), expected, atol=1e-9)


@pytest.mark.parametrize("name", NARROWED)
def test_the_ticket_is_the_model_with_the_last_dimensions_masked(name: str) -> None:
    model, batch = narrowed(name), sequences()
    group = width_of(name)
    rotate_heads(model, group)
    for kept in (1, 3):
        ticket = ticket_of(model, group, kept)
        assert torch.allclose(ticket(batch), masked(model, group, kept)(batch), atol=1e-5)
        assert not torch.allclose(ticket(batch), model(batch), atol=1e-5)
        assert ticket.get_submodule(of(group).key).out_features == kept * of(group).keys
        ticket(batch).sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in ticket.parameters())


def low_rank(model: nn.Module, group: Group, rank: int) -> None:
    """Give every head scores of a low rank, its queries and keys alone being of full rank."""
    scores = of(group)
    query, key = model.get_submodule(scores.query), model.get_submodule(scores.key)
    width = key.in_features
    with torch.no_grad():
        for head in range(scores.keys):
            rows = slice(head * group.width, (head + 1) * group.width)
            mix_dd = torch.linalg.qr(torch.randn(group.width, group.width))[0]
            key.weight[rows] = mix_dd @ torch.randn(group.width, width)
            key.bias[rows] = 0.0
            query.weight[rows] = mix_dd[:, :rank] @ torch.randn(rank, WIDTH)
            query.bias[rows] = mix_dd[:, :rank] @ torch.randn(rank)


def test_scores_of_a_low_rank_are_pruned_to_it_without_loss() -> None:
    model, batch = narrowed("opened"), sequences()
    group = width_of("opened")
    low_rank(model, group, 2)
    expected = model(batch)
    assert not torch.allclose(ticket_of(model, group, 2)(batch), expected, atol=1e-2)
    energy_d = rotate_heads(model, group)
    assert residual_shares(energy_d)[1] < 1e-12
    assert 1.0 < score_rank(energy_d) <= 2.0 + 1e-6
    assert torch.allclose(ticket_of(model, group, 2)(batch), expected, atol=1e-4)
    assert not torch.allclose(ticket_of(model, group, 1)(batch), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["opened", "separate without biases", "keys from elsewhere", "one head"])
def test_the_share_left_is_the_error_of_the_scores_and_no_rank_can_do_better(name: str) -> None:
    model = narrowed(name)
    group = width_of(name)
    before = products(model, group)
    energy_d = rotate_heads(model, group)
    assert energy_d.tolist() == sorted(energy_d.tolist(), reverse=True)
    assert float(energy_d.sum()) == pytest.approx(1.0)
    for kept, share in enumerate(residual_shares(energy_d), start=1):
        after = products(masked(model, group, kept), group)
        lost = [float((a - b).square().sum() / a.square().sum()) for a, b in zip(before, after, strict=True)]
        best = [torch.linalg.svdvals(each).square() for each in before]
        eckart_young = [float(each[kept:].sum() / each.sum()) for each in best]
        assert lost == pytest.approx(eckart_young, abs=1e-6)
        assert sum(lost) / len(lost) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("tiled", [False, True])
def test_query_heads_that_share_keys_share_the_basis_that_is_best_for_them_together(tiled: bool) -> None:
    model = narrowed("grouped queries, tiled" if tiled else "grouped queries")
    group = the_width(model)
    assert (of(group).queries, of(group).keys, of(group).tiled) == (6, 3, tiled)
    before = products(model, group)
    shares = residual_shares(rotate_heads(model, group))
    after = products(masked(model, group, 2), group)
    together = [[g, g + 3] if tiled else [2 * g, 2 * g + 1] for g in range(3)]
    lost = []
    for heads in together:
        own, left = (torch.cat([each[head] for head in heads]) for each in (before, after))
        values = torch.linalg.svdvals(own).square()
        lost.append(float((own - left).square().sum() / own.square().sum()))
        assert lost[-1] == pytest.approx(float(values[2:].sum() / values.sum()), abs=1e-6)
    assert sum(lost) / 3 == pytest.approx(shares[1], abs=1e-6)


def scores_on(model: nn.Module, group: Group, batch: Tensor) -> Tensor:
    """Return what every row of queries scores with every row of keys of each head: (h, rows, rows)."""
    outputs: dict[str, Tensor] = {}
    names = (of(group).query, of(group).key)
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, out, name=name: outputs.update({name: out})
        )
        for name in names
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    q_hrd, k_hrd = (
        outputs[name].double().flatten(0, 1).unflatten(1, (3, -1)).transpose(0, 1) for name in names
    )
    return q_hrd @ k_hrd.mT


@pytest.mark.parametrize("name", ["opened", "separate without biases", "keys from elsewhere"])
def test_weighted_by_the_data_the_error_on_it_is_the_share_left_and_below_that_without_data(
    name: str,
) -> None:
    model, batch = narrowed(name), sequences(12)
    with torch.no_grad():
        model.norm.weight.copy_(torch.logspace(0.5, -1.5, WIDTH))
        model.norm.bias.normal_()
    group = the_width(model)
    whole = scores_on(model, group, batch)

    def error(moments: ScoreMoments | None, kept: int) -> tuple[float, float]:
        rotated = copy_model(model)
        shares = residual_shares(rotate_heads(rotated, group, moments))
        lost = (scores_on(masked(rotated, group, kept), group, batch) - whole).square().sum((1, 2))
        return float((lost / whole.square().sum((1, 2))).mean()), shares[kept - 1]

    for kept in (1, 2, 3):
        lost, share = error(moments_of(model, group, batch), kept)
        assert lost == pytest.approx(share, rel=1e-3, abs=1e-7)
        assert lost < 0.9 * error(None, kept)[0]


def test_a_direction_that_no_row_showed_comes_last_and_a_head_that_scores_nothing_counts_for_nothing() -> (
    None
):
    model = narrowed("opened")
    group = width_of("opened")
    moment = torch.zeros(WIDTH + 1, WIDTH + 1)
    moment[0, 0] = 1.0
    assert score_rank(rotate_heads(copy_model(model), group, ScoreMoments(moment, moment))) < 1.01
    with torch.no_grad():
        model.attention.attn.q_proj.weight[:8] = 0.0
        model.attention.attn.q_proj.bias[:8] = 0.0
    alone = products(model, group)[2]
    values = torch.linalg.svdvals(alone)[:4].square()
    energy_d = rotate_heads(model, group)
    assert torch.allclose(energy_d, values / values.sum(), atol=1e-6)
    with torch.no_grad():
        model.attention.attn.q_proj.weight.zero_()
        model.attention.attn.q_proj.bias.zero_()
    assert residual_shares(rotate_heads(model, group)) == (0.0,) * 4
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_a_group_of_another_kind_is_not_rotated() -> None:
    model = narrowed("opened")
    heads = next(each for each in found_in(model).groups if each.kind == "heads")
    before = copy_model(model)
    hold_scale(model, heads, 1)
    assert_same(model, before)
    with pytest.raises(TypeError, match="no group of head width"):
        rotate_heads(model, heads)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_numbers_follow_the_width_where_they_are_of_queries_and_keys(own: bool, inner: bool) -> None:
    torch.manual_seed(0)
    model, batch = Net(Remembers(own=own, inner=inner)).eval(), sequences()
    group = the_width(model)
    assert [each.name for each in group.attributes] == ["head_dim"] * own + ["qk_proj_dim"] * inner
    assert torch.allclose(ticket_of(model, group, 3)(batch), masked(model, group, 3)(batch), atol=1e-5)


@pytest.mark.parametrize("name", NARROWED)
def test_whether_the_scale_follows_the_width_is_found_out(name: str) -> None:
    assert of(width_of(name)).scale_follows == (name not in SCALE_STAYS)


def test_a_scale_that_follows_is_held_on_the_ticket_and_nothing_else_is_touched() -> None:
    model, batch = narrowed("separate"), sequences()
    group = width_of("separate")
    unscaled = pruned_copy(model, (PrunedGroup.of(group, range(2)),))
    held = ticket_of(model, group, 2)
    assert not torch.allclose(unscaled(batch), masked(model, group, 2)(batch), atol=1e-4)
    query = held.attention.to_q
    assert torch.allclose(query.weight, unscaled.attention.to_q.weight * 0.5**0.5)
    assert torch.allclose(query.bias, unscaled.attention.to_q.bias * 0.5**0.5)
    whole = copy_model(model)
    hold_scale(whole, group, 4)
    assert_same(whole, model)


def test_one_layer_of_queries_keys_and_values_has_no_head_width() -> None:
    torch.manual_seed(0)
    model = Net(FusedByPart())
    assert found_in(model) == find_groups(model, sequences(2))


class OneWidth(Attend):
    """Queries are split by the number that splits the values."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4

    def forward(self, x_btd: Tensor) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        sizes = (self.num_heads, self.head_dim)
        return self.o_proj(attend(*(by_head(layer(x_btd), *sizes) for layer in layers)))


class PerWidth(Attend):
    """The scale falls otherwise than by the root of the width."""

    def forward(self, x_btd: Tensor) -> Tensor:
        self.scale = 8.0 * self.num_heads / self.q_proj.out_features
        return super().forward(x_btd)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (lambda: Rotary(3, 3), "turned by position (rotary) or normed"),
        (lambda: Rotary(tiled=True), "turned by position (rotary) or normed"),
        (Normed, "turned by position (rotary) or normed"),
        (OneWidth, "does not run without some of its units"),
        (PerWidth, "narrower heads give other scores, and no scale of d^(−1/2) explains it"),
    ],
)
def test_heads_that_must_keep_their_width_are_left_alone_with_the_reason(
    attention: Callable[[], nn.Module], message: str
) -> None:
    torch.manual_seed(0)
    found = find_groups(Net(attention()), sequences(2), head_width=True)
    assert {each.kind for each in found.groups} == {"heads", "units"}
    assert message in {each.name: each.reason for each in found.unpruned}["attention.q_proj.head-width"]


@pytest.mark.parametrize("name", ["opened", "grouped queries", "remembers widths"])
def test_widths_of_heads_are_found_only_with_head_width(name: str) -> None:
    model = narrowed(name)
    without, found = find_groups(model, sequences(2)), found_in(model)
    assert [each for each in found.groups if each.kind != "head-width"] == [*without.groups]
    assert found.unpruned == without.unpruned
    settings = Prune()
    assert find_and_price_groups(model, sequences(2), settings)[0] == without
    assert find_and_price_groups(model, sequences(2), replace(settings, head_width=True))[0] == found


def test_a_layer_that_is_to_be_left_alone_keeps_its_width() -> None:
    found = find_groups(narrowed("opened"), sequences(2), ["*.k_proj"], head_width=True)
    reasons = {each.name: each.reason for each in found.unpruned}
    assert reasons["attention.attn.q_proj.head-width"] == "excluded by '*.k_proj'"


def test_the_layout_is_that_of_the_closed_form() -> None:
    group = width_of("grouped queries")
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
    model, batch = narrowed("remembers widths"), sequences()
    heads, width = both(model)
    assert Attribute("attention", "qk_proj_dim", 4) in heads.attributes
    assert Attribute("attention", "qk_proj_dim", 3) in width.attributes
    for order in ((heads, width), (width, heads)):
        ticket = pruned_copy(model, [PrunedGroup.of(each, range(2)) for each in order])
        numbers = [getattr(ticket.attention, each) for each in ("n_heads", "head_dim", "qk_proj_dim")]
        assert numbers == [2, 2, 4]
        both_masked = masked(model, width, 2)
        mask_units(both_masked, heads, [2])
        assert torch.allclose(ticket(batch), both_masked(batch), atol=1e-5)


SHARED = ["opened", "separate", "values of another width", "grouped queries", "grouped queries, tiled"]
SHARED += ["keys from elsewhere", "remembers widths", "multi-query"]


@pytest.mark.parametrize("name", SHARED)
def test_heads_and_their_width_pruned_together_are_masked_together_and_cost_what_is_counted(
    name: str,
) -> None:
    model, batch = narrowed(name), sequences(2)
    groups = found_in(model).groups
    assert {"heads", "head-width"} <= {each.kind for each in groups}
    dense = count_macs(model, batch)
    macs = cost_model(model, groups, dense, Prune(target=Macs(0.5)))
    params = cost_model(model, groups, dense, Prune(target=Params(0.5)))
    assert macs.at(macs.widths) == pytest.approx(dense.total, abs=1e-6)
    for widths in ([2] * len(groups), [max(1, each.width - 1) for each in groups]):
        pruned = pruned_to(groups, widths)
        work = copy_model(model)
        for group, each in zip(groups, pruned, strict=True):
            mask_units(work, group, each.removed)
        ticket = pruned_copy(work, pruned)
        for group, width in zip(groups, widths, strict=True):
            hold_scale(ticket, group, width)
        assert macs.at(widths) == pytest.approx(count_macs(ticket, batch).total, abs=1e-6)
        assert params.at(widths) == pytest.approx(sum(p.numel() for p in ticket.parameters()), abs=1e-6)
        verify(ticket, work, model, [batch], groups, widths, dense, Prune(target=Macs(0.99)))


def test_the_width_alone_is_counted_as_exactly_as_with_the_heads() -> None:
    model, batch = narrowed("one head"), sequences(2)
    group = width_of("one head")
    costs = cost_model(model, [group], count_macs(model, batch), Prune(target=Macs(0.5)))
    for kept in (1, 3):
        assert costs.at([kept]) == pytest.approx(count_macs(ticket_of(model, group, kept), batch).total)
    assert costs.at([3]) - costs.at([2]) == 2 * LENGTH * WIDTH + LENGTH**2


@pytest.mark.parametrize("name", ["opened", "grouped queries", "remembers widths"])
def test_a_plan_of_heads_and_widths_replays_bit_for_bit_without_the_rotation(name: str) -> None:
    torch.manual_seed(0)
    closed = Net(NARROWED[name]()).eval()
    model, opened = open_layers(closed)
    heads, width = both(model)
    pruned = (PrunedGroup.of(heads, [0, 2]), PrunedGroup.of(width, range(3)))
    plan = plan_of(closed, pruned, opened=opened)
    assert_same(replay(closed, type(plan).from_json(plan.to_json())), pruned_copy(model, pruned))
    weight = model.get_submodule(of(width).key).weight.detach()
    replayed = replay(closed, plan).get_submodule(of(width).key).weight
    assert torch.equal(replayed, weight.unflatten(0, (3, 4))[[0, 2], :3].flatten(0, 1))


BOTH = ("heads", "head-width")
SETS = (BOTH[:1], BOTH[1:], BOTH)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *itertools.product(
            ["remembers widths"], [BOTH[:1], BOTH[1:], BOTH], [BOTH[:1], BOTH[1:], BOTH[::-1]]
        ),
        ("separate", BOTH, BOTH[::-1]),
        ("grouped queries, tiled", BOTH, BOTH[::-1]),
        ("grouped queries, tiled", BOTH[1:], BOTH[:1]),
    ],
)
def test_heads_and_widths_pruned_one_after_the_other_are_one_plan(
    name: str, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    def plan(model: nn.Module, kinds: tuple[str, ...], kept: dict[str, Any]) -> Any:
        groups = {each.kind: each for each in found_in(model).groups}
        return plan_of(model, tuple(PrunedGroup.of(groups[kind], kept[kind]) for kind in kinds))

    model, batch = narrowed(name), sequences()
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


def test_half_precision_is_traced_rotated_and_pruned() -> None:
    model, batch = narrowed("opened"), sequences()
    group = width_of("opened")
    half = copy_model(model).bfloat16()
    assert find_groups(half, batch[:2].bfloat16(), head_width=True).groups == found_in(model).groups
    rotate_heads(half, group, moments_of(half, group, batch.bfloat16()))
    spread = float(model(batch).detach().std())
    difference = half(batch.bfloat16()).float() - model(batch)
    assert float(difference.detach().abs().max()) < 0.1 * spread
    assert ticket_of(half, group, 3)(batch.bfloat16()).dtype == torch.bfloat16
    assert half.attention.attn.q_proj.weight.requires_grad
