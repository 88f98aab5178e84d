"""Several sizes from one look: nested, met, and out of reach before any is drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import Extraction, draw, extract, plan_sizes, shell_of
from tpsprune.pruning.planning import plan_size
from tpsprune.recipe.prune import Macs, Params, Prune, Share, Tolerance

SETTINGS = Prune(quality="fast", round_to=1)
BATCHES = list(torch.randn(256, 1, 10, 10, generator=torch.Generator().manual_seed(1)).split(64))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 36, 24), nn.Tanh(), nn.Linear(24, 5)),
    ).eval()


def draw_all(targets: list[Share], settings: Prune = SETTINGS) -> list[Extraction]:
    model = net()
    return [
        draw(model, BATCHES, replace(settings, target=plan.target), plan)
        for plan in plan_sizes(model, BATCHES, settings, targets)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, widths="uniform"),
        replace(SETTINGS, units="magnitude"),
        replace(SETTINGS, units="random", widths="global-magnitude"),
        replace(SETTINGS, units="pivoted-cholesky"),
        replace(SETTINGS, round_to="auto"),
    ],
    ids=lambda each: f"{each.units}, {each.widths}, {each.round_to}",
)
def test_a_smaller_size_has_some_of_the_units_of_a_larger_one(settings: Prune) -> None:
    shares = [0.3, 0.8, 0.5]
    found = draw_all([Macs(share) for share in shares], settings)
    dense = count_macs(net(), BATCHES[0]).total
    for target, each in zip(sorted(shares, reverse=True), found, strict=True):
        assert each.macs_share <= target
        assert count_macs(each.ticket, BATCHES[0]).total / dense == pytest.approx(each.macs_share)
    for larger, smaller in pairwise(found):
        for big, small in zip(larger.plan.groups, smaller.plan.groups, strict=True):
            assert set(small.kept) <= set(big.kept)


def test_no_group_is_wider_than_in_a_larger_size() -> None:
    (least,) = plan_sizes(net(), BATCHES, SETTINGS, [Macs(0.4)])
    wider = replace(SETTINGS, target=Macs(0.9))
    assert plan_size(least, net(), wider).widths != least.widths
    assert plan_size(least, net(), wider, within=least.widths).widths == least.widths


def test_no_group_is_narrower_than_in_a_smaller_size_and_others_make_room() -> None:
    (plan,) = plan_sizes(net(), BATCHES, SETTINGS, [Macs(0.4)])
    half = replace(SETTINGS, target=Macs(0.5))
    free = plan_size(plan, net(), half)
    # A smaller size that has the first group whole, as another order of cuts may leave it.
    beyond = (free.groups[0].width, 2, 2)
    assert free.widths[0] < beyond[0]
    found = plan_size(plan, net(), half, beyond=beyond)
    assert all(width >= least for width, least in zip(found.widths, beyond, strict=True))
    assert found.cost_share <= 0.5
    tight = replace(SETTINGS, target=Macs(replace(plan, widths=beyond).cost_share * 1.001))
    assert plan_size(plan, net(), tight, beyond=beyond).widths == beyond


def test_the_only_size_is_what_an_extraction_gives() -> None:
    (found,) = draw_all([Macs(0.5)])
    alone = extract(net(), BATCHES, replace(SETTINGS, target=Macs(0.5)))
    assert found.plan == alone.plan
    for name, value in alone.ticket.state_dict().items():
        assert torch.equal(value, found.ticket.state_dict()[name]), name


def test_sizes_of_parameters_and_of_tolerance_are_met_the_largest_model_first() -> None:
    found = draw_all([Params(0.3), Params(0.6)])
    sizes = [sum(each.numel() for each in one.ticket.parameters()) for one in found]
    dense = sum(each.numel() for each in net().parameters())
    assert 0.3 * dense >= sizes[1]
    assert 0.6 * dense >= sizes[0] > sizes[1]
    loose = draw_all([Tolerance(0.2), Tolerance(0.001)])
    assert [each.plan.target for each in loose] == ["tolerance=0.001", "tolerance=0.2"]
    assert loose[0].macs_share > loose[1].macs_share


def test_a_size_out_of_reach_is_refused_before_any_is_drawn() -> None:
    with pytest.raises(PruneError, match=r"macs=0\.0001 cannot be reached"):
        plan_sizes(net(), BATCHES, SETTINGS, [Macs(0.9), Macs(0.0001)])


def test_layers_of_low_rank_are_refused() -> None:
    with pytest.raises(PruneError, match="low_rank"):
        plan_sizes(net(), BATCHES, replace(SETTINGS, low_rank=True), [Macs(0.5)])


def test_a_shell_has_the_shapes_of_its_size_and_leaves_the_model_as_it_is() -> None:
    model = net()
    (plan,) = plan_sizes(model, BATCHES, SETTINGS, [Macs(0.5)])
    shell, found = shell_of(model, plan), draw(model, BATCHES, replace(SETTINGS, target=Macs(0.5)), plan)
    shapes = [
        {name: value.shape for name, value in each.state_dict().items()} for each in (shell, found.ticket)
    ]
    assert shapes[0] == shapes[1]
    assert [tuple(each.shape) for each in model.parameters()] == [
        tuple(each.shape) for each in net().parameters()
    ]
