"""What the model makes of calibration data: dimension, collapse, logit rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.moments import Moments
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.representations import (
    Collapse,
    DEff,
    LogitRank,
    group_dimension,
    mean_cosine,
    numerical_rank,
)
from tpsprune.signals.signal import AbstractMemoryless, Readings, View


def read(signal: AbstractMemoryless, model: nn.Module, *batches: Any, consumers: Any = None) -> Readings:
    return signal.read(View(model, batches, 3, 1.5, consumers or {}))


def dimension(model: nn.Module, consumers: dict[str, dict[str, int]], *batches: Tensor) -> Readings:
    return read(DEff(), model, *batches, consumers=consumers)


def value(readings: Readings, signal: str, group: str = "") -> float:
    (found,) = [each.value for each in readings if (each.signal, each.group) == (signal, group)]
    assert found is not None
    return found


def two_layers(inputs: int = 4, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.Linear(width, 2))


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_units_that_span_k_directions_evenly_have_dimension_k(directions: int) -> None:
    model = two_layers(directions, 16)
    model[0].weight.data = torch.linalg.qr(torch.randn(16, directions)).Q
    inputs = torch.randn(500, directions)
    whitened = torch.linalg.qr(inputs - inputs.mean(0)).Q
    readings = dimension(model, {"0": {"1": 16}}, whitened)
    assert value(readings, "d_eff", "0") == pytest.approx(directions, rel=1e-4)
    assert value(readings, "d_eff_share", "0") == pytest.approx(directions / 16, rel=1e-4)
    corrected = 1 / (1 / directions - 1 / 500)
    assert value(readings, "participation_ratio", "0") == pytest.approx(min(16, corrected), rel=1e-4)


def test_the_models_figure_is_the_mean_of_the_groups_shares() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    readings = dimension(model, {"0": {"2": 8}, "2": {"4": 12}}, torch.randn(40, 6), torch.randn(30, 6))
    shares = [value(readings, "d_eff_share", group) for group in ("0", "2")]
    assert value(readings, "d_eff") == pytest.approx(sum(shares) / 2)
    assert readings[-1].unit == "share"
    assert {(each.step, each.epoch) for each in readings} == {(3, 1.5)}


def test_every_consumer_counts_alike_however_large_its_input() -> None:
    one, two = torch.diag(torch.tensor([1.0, 0.0])), 1e6 * torch.diag(torch.tensor([0.0, 1.0]))
    moments = [Moments(10**9, torch.zeros(2), covariance.double()) for covariance in (one, two)]
    assert group_dimension(moments).effective_rank == pytest.approx(2.0)


def test_units_that_never_vary_have_dimension_zero_and_copies_add_none() -> None:
    model = two_layers()
    model[0].weight.data[4:] = model[0].weight.data[:4]
    assert value(dimension(model, {"0": {"1": 8}}, 1 + torch.randn(50, 4)), "d_eff", "0") < 4.001
    model[0].weight.data.zero_()
    assert value(dimension(model, {"0": {"1": 8}}, torch.randn(20, 4)), "d_eff", "0") == 0.0


def test_activations_that_are_not_finite_make_readings_that_say_so() -> None:
    model = two_layers()
    model[0].weight.data[0, 0] = torch.inf
    readings = dimension(model, {"0": {"1": 8}}, torch.randn(20, 4))
    assert {(each.status, each.value) for each in readings} == {(Status.NOT_FINITE, None)}


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("consumers", "reason", "last"),
    [
        ({}, "there is no prunable group to read", Status.NOT_APPLICABLE),
        ({"0": {"1.idle": 4}, "1": {"1.used": 4}}, "no consumer is called", Status.OK),
        ({"0": {"0": 3, "1.used": 4}}, "its consumers read different numbers", Status.NOT_APPLICABLE),
    ],
)
def test_a_group_without_a_dimension_says_why(consumers: Any, reason: str, last: Status) -> None:
    readings = dimension(nn.Sequential(nn.Linear(3, 4), Idle()), consumers, torch.randn(9, 3))
    assert readings[0].reason.startswith(reason)
    assert readings[-1].status is last


def test_items_of_one_direction_are_at_one_and_opposite_ones_cancel() -> None:
    item = torch.randn(5)
    assert mean_cosine(torch.stack([item, 2 * item, 7 * item])) == pytest.approx(1.0)
    assert mean_cosine(torch.stack([item, -item])) == pytest.approx(-1.0)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0.0)


def test_the_mean_is_that_of_all_pairs_and_turning_changes_nothing() -> None:
    items_bn = torch.randn(7, 4)
    pairs = [functional.cosine_similarity(items_bn[i], items_bn[j], 0) for i in range(7) for j in range(i)]
    assert mean_cosine(items_bn) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    assert mean_cosine(3 * items_bn @ turn) == pytest.approx(mean_cosine(items_bn), abs=1e-6)


def test_the_input_of_the_last_linear_layer_is_read_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(9, 3)
    (reading,) = read(Collapse(), model, inputs[:5], inputs[5:])
    assert reading.value == pytest.approx(mean_cosine(model[:2](inputs).detach()), abs=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_of_a_sequence_the_last_position_counts() -> None:
    model = two_layers(3, 4)
    inputs = torch.randn(6, 5, 3)
    (reading,) = read(Collapse(), model, inputs)
    assert reading.value == pytest.approx(mean_cosine(model[0](inputs[:, -1]).detach()), abs=1e-6)


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.1, 2), (0.005, 3), (1e-5, 4)])
def test_singular_values_above_the_share_of_the_largest_are_counted(share: float, rank: int) -> None:
    left, right = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64)).Q for n in (20, 6))
    logits_bc = left * torch.tensor([10.0, 4.0, 0.2, 0.001], dtype=torch.float64) @ right.T
    assert numerical_rank(logits_bc, share) == rank
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert numerical_rank(-300 * logits_bc[torch.randperm(20)] @ turn, share) == rank
    assert numerical_rank(torch.zeros(4, 3), share) == 0


class Wrapped(nn.Module):
    """Returns its logits as many libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4, bias=False)

    def forward(self, x_bd: Tensor) -> dict[str, Tensor]:
        return {"hidden": x_bd, "logits": self.head(x_bd)}


def test_the_outputs_of_all_batches_are_one_table_however_they_are_wrapped() -> None:
    model = nn.Linear(5, 4, bias=False)
    assert read(LogitRank(share=0.01), model, torch.eye(5)[:1])[0].value == 1
    assert read(LogitRank(share=0.01), model, torch.eye(5)[:2], torch.eye(5)[2:])[0].value == 4
    assert model.training
    assert read(LogitRank(share=0.01), Wrapped(), torch.eye(5))[0].value == 4


NOT_FINITE = torch.full((3, 2), torch.inf)


@pytest.mark.parametrize(
    ("signal", "model", "batch", "reason"),
    [
        (Collapse(), nn.Conv2d(1, 1, 1), torch.ones(2, 1, 3, 3), "no linear layer is called"),
        (Collapse(), nn.Linear(2, 2), torch.ones(1, 2), "a single item has no pair"),
        (Collapse(), nn.Linear(2, 2), NOT_FINITE, "came out as nan"),
        (LogitRank(share=0.01), nn.Flatten(0), torch.ones(2, 2), "is not a table of logits"),
        (LogitRank(share=0.01), nn.Identity(), NOT_FINITE, "a logit is not finite"),
    ],
)
def test_without_a_value_the_reading_says_why(
    signal: AbstractMemoryless, model: nn.Module, batch: Tensor, reason: str
) -> None:
    reading: Reading
    (reading,) = read(signal, model, batch)
    assert reading.status is (Status.NOT_FINITE if batch is NOT_FINITE else Status.NOT_APPLICABLE)
    assert reason in reading.reason
