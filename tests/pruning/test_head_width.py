"""The basis in which the last dimensions of queries and keys can go: exact, and best for the scores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets_attention import WIDTH, sequences
from tests.pruning.nets_heads import (
    NARROWED,
    found_in,
    moments_of,
    net,
    of,
    products,
    silenced,
    the_width,
    ticket_of,
)
from tests.pruning.test_compose import assert_same
from tpsprune.pruning.groups import Group
from tpsprune.pruning.head_width import ScoreMoments, residual_shares, rotate_heads, score_rank
from tpsprune.pruning.surgery import copy_model, hold_scale


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NARROWED)
def test_a_rotation_at_full_rank_leaves_the_outputs_equal_on_any_input(name: str, weighted: bool) -> None:
    model, batch = net(name), sequences()
    group = the_width(model)
    turned = copy_model(model).double()
    rotate_heads(turned, group, moments_of(model, group, sequences(1)[:, :2]) if weighted else None)
    weights = [each.get_submodule(of(group).query).weight for each in (model, turned)]
    assert not torch.allclose(weights[0].double(), weights[1], atol=1e-2)
    expected = copy.deepcopy(model).double()(batch.double())
    assert torch.allclose(turned(batch.double()), expected, atol=1e-9)


@pytest.mark.parametrize("name", NARROWED)
def test_the_ticket_is_the_model_with_the_last_dimensions_silenced(name: str) -> None:
    model, batch = net(name), sequences()
    group = the_width(model)
    rotate_heads(model, group)
    for kept in (1, 3):
        ticket = ticket_of(model, group, kept)
        assert torch.allclose(ticket(batch), silenced(model, group, kept)(batch), atol=1e-5)
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


def test_scores_of_a_low_rank_are_cut_to_it_without_loss() -> None:
    model, batch = net("opened"), sequences()
    group = the_width(model)
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
    model = net(name)
    group = the_width(model)
    before = products(model, group)
    energy_d = rotate_heads(model, group)
    assert energy_d.tolist() == sorted(energy_d.tolist(), reverse=True)
    assert float(energy_d.sum()) == pytest.approx(1.0)
    for kept, share in enumerate(residual_shares(energy_d), start=1):
        after = products(silenced(model, group, kept), group)
        lost = [float((a - b).square().sum() / a.square().sum()) for a, b in zip(before, after, strict=True)]
        best = [torch.linalg.svdvals(each).square() for each in before]
        eckart_young = [float(each[kept:].sum() / each.sum()) for each in best]
        assert lost == pytest.approx(eckart_young, abs=1e-6)
        assert sum(lost) / len(lost) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("tiled", [False, True])
def test_query_heads_that_share_keys_share_the_basis_that_is_best_for_them_together(tiled: bool) -> None:
    model = net("grouped queries, tiled" if tiled else "grouped queries")
    group = the_width(model)
    assert (of(group).queries, of(group).keys, of(group).tiled) == (6, 3, tiled)
    before = products(model, group)
    shares = residual_shares(rotate_heads(model, group))
    after = products(silenced(model, group, 2), group)
    together = [[g, g + 3] if tiled else [2 * g, 2 * g + 1] for g in range(3)]
    lost = []
    for heads in together:
        own, cut = (torch.cat([each[head] for head in heads]) for each in (before, after))
        values = torch.linalg.svdvals(own).square()
        lost.append(float((own - cut).square().sum() / own.square().sum()))
        assert lost[-1] == pytest.approx(float(values[2:].sum() / values.sum()), abs=1e-6)
    assert sum(lost) / 3 == pytest.approx(shares[1], abs=1e-6)


def scores_on(model: nn.Module, group: Group, batch: Tensor) -> Tensor:
    """Return what every row of queries scores with every row of keys of each head: (h, rows, rows)."""
    fed: dict[str, Tensor] = {}
    names = (of(group).query, of(group).key)
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, out, name=name: fed.update({name: out})
        )
        for name in names
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    q_hrd, k_hrd = (fed[name].double().flatten(0, 1).unflatten(1, (3, -1)).transpose(0, 1) for name in names)
    return q_hrd @ k_hrd.mT


@pytest.mark.parametrize("name", ["opened", "separate without biases", "keys from elsewhere"])
def test_weighted_by_the_data_the_error_on_it_is_the_share_left_and_below_that_of_plain_weights(
    name: str,
) -> None:
    model, batch = net(name), sequences(12)
    with torch.no_grad():
        model.norm.weight.copy_(torch.logspace(0.5, -1.5, WIDTH))
        model.norm.bias.normal_()
    group = the_width(model)
    whole = scores_on(model, group, batch)

    def error(moments: ScoreMoments | None, kept: int) -> tuple[float, float]:
        turned = copy_model(model)
        shares = residual_shares(rotate_heads(turned, group, moments))
        lost = (scores_on(silenced(turned, group, kept), group, batch) - whole).square().sum((1, 2))
        return float((lost / whole.square().sum((1, 2))).mean()), shares[kept - 1]

    for kept in (1, 2, 3):
        lost, share = error(moments_of(model, group, batch), kept)
        assert lost == pytest.approx(share, rel=1e-3, abs=1e-7)
        assert lost < 0.9 * error(None, kept)[0]


def test_a_direction_that_no_row_showed_comes_last_and_a_head_that_scores_nothing_counts_for_nothing() -> (
    None
):
    model = net("opened")
    group = the_width(model)
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


def test_a_group_of_another_kind_is_not_turned() -> None:
    model = net("opened")
    heads = next(each for each in found_in(model).groups if each.kind == "heads")
    before = copy_model(model)
    hold_scale(model, heads, 1)
    assert_same(model, before)
    with pytest.raises(TypeError, match="no group of head width"):
        rotate_heads(model, heads)
