from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.records.readings import Status
from tpsprune.signals.collapse import Collapse, mean_cosine
from tpsprune.signals.signal import Readings, View


def read(model: nn.Module, *probe: Tensor) -> Readings:
    return Collapse().step(None, View(model, probe, 2, 1.0, {}))[1]


def test_rows_of_one_direction_are_at_one_and_opposite_ones_cancel() -> None:
    row = torch.randn(5)
    assert mean_cosine(torch.stack([row, 2 * row, 7 * row])) == pytest.approx(1.0)
    assert mean_cosine(torch.stack([row, -row])) == pytest.approx(-1.0)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0.0)


def test_the_mean_is_that_of_all_pairs_and_turning_changes_nothing() -> None:
    rows_bn = torch.randn(7, 4)
    pairs = [functional.cosine_similarity(rows_bn[i], rows_bn[j], 0) for i in range(7) for j in range(i)]
    assert mean_cosine(rows_bn) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    assert mean_cosine(3 * rows_bn @ turn) == pytest.approx(mean_cosine(rows_bn), abs=1e-6)


def test_what_the_last_linear_layer_is_fed_is_read_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(9, 3)
    (reading,) = read(model, inputs[:5], inputs[5:])
    assert reading.value == pytest.approx(mean_cosine(model[:2](inputs).detach()), abs=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_of_a_sequence_the_last_place_counts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    inputs = torch.randn(6, 5, 3)
    (reading,) = read(model, inputs)
    assert reading.value == pytest.approx(mean_cosine(model[0](inputs[:, -1]).detach()), abs=1e-6)


def test_a_model_without_a_linear_layer_and_a_single_item_have_no_reading() -> None:
    (reading,) = read(nn.Conv2d(1, 1, 1), torch.randn(2, 1, 3, 3))
    assert (reading.status, reading.reason) == (Status.NOT_APPLICABLE, "no linear layer is called")
    (reading,) = read(nn.Linear(2, 2), torch.randn(1, 2))
    assert reading.reason == "one item has no other to be like"


def test_what_is_not_a_number_says_so() -> None:
    (reading,) = read(nn.Linear(2, 2), torch.full((3, 2), torch.nan))
    assert reading.status is Status.NOT_FINITE
