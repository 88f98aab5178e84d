"""Sizes are exact: closed forms, shared weights once, bytes as written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tpsprune.measure import size
from tpsprune.runs.tensors import save_tensors

WIDTHS = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(n_in=WIDTHS, hidden=WIDTHS, n_out=WIDTHS, batch=st.integers(1, 4))
def test_a_two_layer_network_has_the_closed_form(n_in: int, hidden: int, n_out: int, batch: int) -> None:
    model = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, n_out))
    found = size(model, torch.randn(batch, n_in))
    assert found.parameters == n_in * hidden + hidden + hidden * n_out + n_out
    assert found.macs == n_in * hidden + hidden * n_out


def test_a_convolution_has_the_closed_form() -> None:
    model = nn.Conv2d(3, 8, kernel_size=3, padding=1)
    found = size(model, torch.randn(2, 3, 10, 12))
    assert found.parameters == 3 * 8 * 9 + 8
    assert found.macs == 3 * 8 * 9 * 10 * 12


def test_bytes_are_those_of_the_file_on_disk(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / "model.safetensors"
    save_tensors(path, model.state_dict(), {})
    assert size(model, torch.randn(1, 1, 8, 8)).bytes == path.stat().st_size


def test_a_shared_parameter_is_counted_once() -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    apart = size(nn.Sequential(first, second), torch.randn(1, 5)).parameters
    second.weight = first.weight
    assert size(nn.Sequential(first, second), torch.randn(1, 5)).parameters == apart - 25


def test_zeros_weigh_as_much_as_any_other_number() -> None:
    model, batch = nn.Linear(6, 4), torch.randn(3, 6)
    before = size(model, batch)
    nn.init.zeros_(model.weight)
    assert size(model, batch) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size(model, torch.randn(3, 4))
    assert model.training is training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
