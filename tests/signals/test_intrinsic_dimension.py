"""Dimension of the groups by neighbours, as a signal: curves, several groups, what has no figure and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.unchanged import unchanged
from tpsprune.models.architectures import TokenMlp
from tpsprune.numerics.intrinsic_dimension import levina_bickel, neighbour_distances, two_nn
from tpsprune.recipe.stop import ThresholdRule
from tpsprune.records.readings import Status
from tpsprune.signals.intrinsic_dimension import NAMES, IntrinsicDimension
from tpsprune.signals.signal import Readings, View

CONSUMERS = {"0": {"2": 8}, "2": {"4": 12}}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))


def read(model: nn.Module, consumers: Any, *batches: Tensor, blocks: Any = None) -> Readings:
    return IntrinsicDimension().read(View(model, batches, 3, 1.5, consumers, blocks=blocks or {}))


def value(readings: Readings, signal: str, group: str = "") -> float:
    (found,) = [each.value for each in readings if (each.signal, each.group) == (signal, group)]
    assert found is not None
    return found


def test_units_that_follow_one_number_have_one_dimension_however_curved() -> None:
    model = net()
    model[0].weight.data[:, 1:] = 0
    model[0].weight.data[:, 0] = torch.linspace(-4, 4, 8)
    readings = read(model, CONSUMERS, torch.randn(600, 6))
    for name, group, width in (
        (name, group, width) for name in NAMES for group, width in (("0", 8), ("2", 12))
    ):
        assert value(readings, name, group) == pytest.approx(1.0, rel=0.1)
        assert value(readings, f"{name}_share", group) == pytest.approx(value(readings, name, group) / width)


def test_figures_are_those_of_the_inputs_and_the_models_is_the_mean_share() -> None:
    model, inputs = net(), torch.randn(200, 6)
    with unchanged(model):
        readings = read(model, CONSUMERS, inputs[:90], inputs[90:])
    cloud = neighbour_distances(model[:2](inputs).detach())
    assert value(readings, "intrinsic_dimension", "0") == pytest.approx(levina_bickel(cloud), rel=1e-4)
    assert value(readings, "two_nn_dimension", "0") == pytest.approx(two_nn(cloud), rel=1e-3)
    for name in NAMES:
        shares = [value(readings, f"{name}_share", group) for group in CONSUMERS]
        assert value(readings, name) == pytest.approx(sum(shares) / 2)
    assert {(each.step, each.epoch, each.status) for each in readings} == {(3, 1.5, Status.OK)}


class Forked(nn.Module):
    def __init__(self, items: int) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.items = items

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.stem(x)
        return [self.left(hidden), self.right(hidden[: self.items].tanh())]


def test_of_several_consumers_the_mean_is_read_of_those_with_points_enough() -> None:
    inputs = torch.randn(100, 6)
    for items in (100, 30):
        model = Forked(items)
        both = value(read(model, {"stem": {"left": 8, "right": 8}}, inputs), "intrinsic_dimension", "stem")
        left = value(read(model, {"stem": {"left": 8}}, inputs), "intrinsic_dimension", "stem")
        if items == 30:
            assert both == left
        else:
            right = value(read(model, {"stem": {"right": 8}}, inputs), "intrinsic_dimension", "stem")
            assert both == pytest.approx((left + right) / 2)
            assert left != right


@pytest.mark.parametrize(
    ("consumers", "items", "status", "reason"),
    [
        ({"0": {"2": 8}}, 30, Status.NOT_APPLICABLE, "30 distinct points, and it takes 40"),
        ({"0": {"idle": 8}}, 90, Status.NOT_APPLICABLE, "no consumer is called"),
        ({}, 90, Status.NOT_APPLICABLE, "there is no prunable group with points enough"),
    ],
)
def test_what_has_no_figure_says_why(consumers: Any, items: int, status: Status, reason: str) -> None:
    model = net()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))  # type: ignore[method-assign]
    model.add_module("idle", nn.Linear(8, 8))
    readings = read(model, consumers, torch.randn(items, 6))
    assert {each.status for each in readings} == {status}
    assert readings[0].reason == reason
    assert [each.signal for each in readings[-2:]] == list(NAMES)


def test_activations_that_are_not_finite_make_readings_that_say_so() -> None:
    model = net()
    model[0].weight.data[0, 0] = torch.nan
    readings = read(model, {"0": {"2": 8}}, torch.randn(50, 6))
    assert {(each.status, each.value) for each in readings} == {(Status.NOT_FINITE, None)}


def test_a_watch_reads_embeddings_side_by_side_each_by_itself_and_rules_see_both_names() -> None:
    model = TokenMlp(60, 2, 4, (80,), 3)
    model.embedding.weight.data = torch.rand(60, 1) @ torch.randn(1, 4)
    rule = ThresholdRule(monitor="two_nn_dimension", threshold=0.0, min_adjusted_accuracy=0.0)
    pairs = torch.randint(0, 60, (200, 2))
    with tpsprune.Watch(model, pairs, signals=["intrinsic_dimension"], every_steps=1, draw=rule) as watch:
        (verdict,) = watch.step(0)
    assert verdict.act
    (found,) = [
        each.value
        for each in watch.readings
        if (each.signal, each.group) == ("intrinsic_dimension", "embedding")
    ]
    assert found == pytest.approx(1.0, rel=0.25), "two numbers on a line, not a pair of them"
