"""The cost of a model as a function of its widths is that of the model pruned to them; time is measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import prod

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.helpers import pruned_to
from tests.pruning.nets_attention import ATTENTIONS, net, sequences
from tests.pruning.nets_structure import STRUCTURES, ZOO, case
from tpsprune.numerics.macs import MacCount, Product, count_macs
from tpsprune.pruning import extract, find_groups
from tpsprune.pruning.costs import CostModel, bytes_of, cost_model, measured_shares
from tpsprune.pruning.groups import Group, PrunedGroup, Slice
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.surgery import add_biases, pruned_copy
from tpsprune.recipe.prune import Bytes, Macs, Params, Prune


def sizes(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", [*ZOO, *STRUCTURES, *ATTENTIONS])
def test_the_cost_of_widths_is_what_is_counted_on_the_model_pruned_to_them(name: str) -> None:
    opened, batch = (open_layers(net(name))[0], sequences(2)) if name in ATTENTIONS else case(name)
    model, batch = opened, batch[:2]
    model.eval()
    groups = find_groups(model, batch).groups
    count = count_macs(model, batch)
    macs = cost_model(model, groups, count, Prune(target=Macs(0.5)))
    params = cost_model(model, groups, count, Prune(target=Params(0.5)))
    assert (macs.total, params.total) == (count.total, sizes(model))
    assert (macs.at(macs.widths), params.at(params.widths)) == (count.total, sizes(model))
    generator = random.Random(name)
    for _ in range(2):
        widths = [generator.randint(1, group.width) for group in groups]
        ticket = pruned_copy(model, pruned_to(groups, widths))
        assert macs.at(widths) == pytest.approx(count_macs(ticket, batch).total, abs=1e-6)
        assert params.at(widths) == pytest.approx(sizes(ticket), abs=1e-6)


class GraphConvolutions(nn.Module):
    """Two layers, each followed by a product with the adjacency of five nodes, and one among the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 10)
        self.last = nn.Linear(10, 3)
        self.register_buffer("adjacency", torch.rand(5, 5))

    def forward(self, x_bnd: Tensor) -> Tensor:
        nodes = torch.relu(self.adjacency @ self.first(x_bnd))
        nodes = torch.relu(self.adjacency @ self.second(nodes))
        return self.last(nodes).mean(1)


def test_products_with_an_adjacency_follow_the_widths_and_half_asked_is_half_pruned() -> None:
    model, batch = GraphConvolutions().eval(), torch.randn(64, 5, 4)
    groups = find_groups(model, batch).groups
    costs = cost_model(model, groups, count_macs(model, batch[:2]), Prune(), batch=batch[:2])
    assert (costs.constant, costs.unpriced) == (0, ())
    for widths in ((12, 10), (6, 9), (1, 1)):
        ticket = pruned_copy(model, pruned_to(groups, widths))
        assert costs.at(widths) == pytest.approx(count_macs(ticket, batch[:2]).total)
    asked = extract(model, [batch], Prune(target=Macs(0.5), round_to=1))
    assert 0.42 < asked.macs_share <= 0.5


def test_the_square_of_a_width_is_priced_and_what_is_no_sum_over_groups_is_named() -> None:
    groups = [Group(name, 8, (name,), (), (), (Slice(f"{name}.weight", 0, 0, 1),)) for name in "fg"]

    def recount(pruned: Sequence[PrunedGroup]) -> MacCount:
        kept = {"f": 8, "g": 8} | {each.name: len(each.kept) for each in pruned}
        odd = min(kept.values())
        products = (Product("", (kept["f"], kept["f"], 3)), Product("odd", (odd, 8)))
        return MacCount(sum(prod(each.lengths) for each in products), {}, products=products)

    costs = CostModel.of_macs(groups, {}, recount([]), recount)
    assert costs.at((5, 8)) == 5 * 5 * 3 + 8 * 8
    assert costs.unpriced == ("odd",)


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


def test_several_sets_of_widths_cost_what_each_costs() -> None:
    model, batch = case("residual")
    groups = find_groups(model, batch).groups
    costs = cost_model(model, groups, count_macs(model, batch), Prune())
    widths = torch.tensor([[1] * len(groups), [group.width for group in groups]])
    assert costs.at_each(widths).tolist() == [costs.at(row) for row in widths.tolist()]


def test_biases_that_compensation_adds_are_parameters_of_the_ticket_and_not_of_the_dense_model() -> None:
    model, batch = case("cnn")
    groups = find_groups(model, batch).groups
    added = ("body.3",)
    costs = cost_model(model, groups, count_macs(model, batch), Prune(target=Params(0.5)), added)
    assert costs.total == sizes(model)
    assert costs.at(costs.widths) == sizes(model) + 8
    add_biases(model, added)
    widths = [group.width - 2 for group in groups]
    assert costs.at(widths) == sizes(pruned_copy(model, pruned_to(groups, widths)))


def test_a_parameter_with_two_names_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[4].weight = model[3].weight
    groups = find_groups(model, torch.randn(2, 4)).groups
    costs = cost_model(model, groups, count_macs(model, torch.randn(2, 4)), Prune(target=Params(0.5)))
    assert costs.total == sizes(model) == costs.at(costs.widths)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_bytes_are_those_of_the_pruned_models_tensors_buffers_too(name: str) -> None:
    model, batch = case(name)
    groups = find_groups(model, batch).groups
    costs = cost_model(model, groups, count_macs(model, batch), Prune(target=Bytes(0.5)))
    assert costs.total == costs.at(costs.widths) == bytes_of(model.state_dict())
    widths = [group.width - 2 for group in groups]
    found = bytes_of(pruned_copy(model, pruned_to(groups, widths)).state_dict())
    assert costs.at(widths) == found


def test_tensors_of_two_names_and_of_half_precision_are_bytes_as_the_file_has_them() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 4)
    ).half()
    model[3].weight = model[0].weight
    tensors = model.state_dict(keep_vars=True)
    places = [Slice(name, 0, 0, 1) for name in ("0.weight", "0.bias", "3.bias")]
    group = Group("0", 6, (), (), (), tuple(places))
    costs = CostModel.of_bytes([group], tensors, {})
    assert costs.total == bytes_of(tensors)
    assert costs.total - costs.at((4,)) == 2 * (2 * 4 + 2 + 2 * 4 + 2)


def test_what_no_group_touches_is_constant() -> None:
    model, batch = case("mlp")
    count = count_macs(model, batch)
    costs = cost_model(model, find_groups(model, batch, ["0"]).groups, count, Prune())
    assert costs.constant == count.by_module["0"]


def test_the_share_is_that_of_a_model_pruned_to_these_widths() -> None:
    model, batch = case("mlp")
    share = measured_shares(model, find_groups(model, batch).groups, sizes, dense=model)
    assert share((9, 7)) == 1.0
    assert share((4, 3)) == (6 * 4 + 5 * 3 + 4 * 3) / sizes(model)


def test_a_machine_that_slows_down_slows_both_and_one_slip_of_the_clock_counts_for_nothing() -> None:
    model, batch = case("mlp")
    calls = 0

    def clock(timed: nn.Module) -> float:
        nonlocal calls
        calls += 1
        # It takes twice as long from one pair to the next, and slips once.
        return sizes(timed) * 2.0 ** (-(-calls // 2)) * (50.0 if calls == 3 else 1.0)

    share = measured_shares(model, find_groups(model, batch).groups, clock, dense=model)
    assert share((4, 3)) == (6 * 4 + 5 * 3 + 4 * 3) / sizes(model)
