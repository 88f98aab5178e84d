"""The cost of a model as a function of its widths is the cost of the model that is really cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.pruning import nets_attention, nets_structure
from tpsprune.numerics.forward import MacCount, count_macs
from tpsprune.pruning import GroupCut, survey
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.cutting import cut_copy
from tpsprune.pruning.groups import Group, Slice
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.reach import cost_model
from tpsprune.pruning.replay import add_biases
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs, Params

ZOO = ("cnn", "residual", "mixed", "mlp", "token-mlp", "transformer")
ATTENTION = ("separate", "fused-by-part", "fused-by-head", "rotary", "one-key", "packed")


def case(zoo: SimpleNamespace, name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name in ZOO:
        model, batch = zoo.case(name)
        return model, batch[:2]
    if name in nets_attention.ATTENTIONS:
        return open_attention(nets_attention.net(name))[0], nets_attention.sequences(2)
    models: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: nets_structure.Vit(width=8, heads=4),
        "grouped": nets_structure.Bottlenecks,
        "depthwise": lambda: nets_structure.Plain(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        "blocks": lambda: nets_structure.Plain(nn.Conv2d(8, 8, 3, padding=1, groups=4)),
        "unet": nets_structure.Unet,
    }
    return models[name](), zoo.images(2)


def sizes(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


NAMES = [*ZOO, "vit", "grouped", "depthwise", "blocks", "unet", *nets_attention.ATTENTIONS]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_widths_is_what_is_counted_on_the_model_cut_to_them(
    zoo: SimpleNamespace, name: str
) -> None:
    model, batch = case(zoo, name)
    model.eval()
    groups = survey(model, batch).groups
    count = count_macs(model, batch)
    macs = cost_model(model, groups, count, Prune(target=Macs(0.5)))
    params = cost_model(model, groups, count, Prune(target=Params(0.5)))
    assert (macs.total, params.total) == (count.total, sizes(model))
    assert (macs.at(macs.widths), params.at(params.widths)) == (count.total, sizes(model))
    drawn = random.Random(name)
    for _ in range(2):
        widths = [drawn.randint(1, group.width) for group in groups]
        cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
        ticket = cut_copy(model, cuts)
        assert macs.at(widths) == pytest.approx(count_macs(ticket, batch).total, abs=1e-6)
        assert params.at(widths) == pytest.approx(sizes(ticket), abs=1e-6)


def test_a_concatenation_loses_what_each_of_its_parts_loses() -> None:
    parts = [
        Group(name, 3, (), (), (), (Slice("f.weight", 1, 3 * rank, 1),)) for rank, name in enumerate("ab")
    ]
    costs = CostModel.of_macs(parts, {"f.weight": (4, 6)}, MacCount(240, {"f": 240}))
    assert costs.at((3, 3)) == 240
    assert costs.at((1, 2)) == 240 * (6 - 2 - 1) / 6


def test_a_unit_of_several_elements_takes_all_of_them_along_both_axes() -> None:
    group = Group("f", 3, (), (), (), (Slice("f.weight", 1, 0, 2, 2, 6), Slice("f.weight", 0, 0, 1)))
    costs = CostModel.of_macs([group], {"f.weight": (3, 12)}, MacCount(36, {"f": 36}))
    assert costs.at((2,)) == 2 * 8


def test_several_sets_of_widths_cost_what_each_costs(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    groups = survey(model, batch).groups
    costs = cost_model(model, groups, count_macs(model, batch), Prune())
    widths = torch.tensor([[1] * len(groups), [group.width for group in groups]])
    assert costs.at_each(widths).tolist() == [costs.at(row) for row in widths.tolist()]


def test_biases_that_the_fold_adds_are_parameters_of_the_ticket_and_not_of_the_dense_model(
    zoo: SimpleNamespace,
) -> None:
    model, batch = zoo.case("cnn")
    groups = survey(model, batch).groups
    added = ("body.3",)
    costs = cost_model(model, groups, count_macs(model, batch), Prune(target=Params(0.5)), added)
    assert costs.total == sizes(model)
    assert costs.at(costs.widths) == sizes(model) + 8
    add_biases(model, added)
    cuts = [GroupCut.of(group, range(group.width - 2)) for group in groups]
    assert costs.at([len(cut.kept) for cut in cuts]) == sizes(cut_copy(model, cuts))


def test_a_parameter_with_two_names_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[4].weight = model[3].weight
    groups = survey(model, torch.randn(2, 4)).groups
    costs = cost_model(model, groups, count_macs(model, torch.randn(2, 4)), Prune(target=Params(0.5)))
    assert costs.total == sizes(model) == costs.at(costs.widths)


def test_what_no_group_touches_is_constant(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mlp")
    count = count_macs(model, batch)
    costs = cost_model(model, survey(model, batch, ["0"]).groups, count, Prune())
    assert costs.constant == count.by_module["0"]
