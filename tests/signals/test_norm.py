from __future__ import annotations

import pytest
import torch
from torch import nn

from tpsprune.records.readings import Status
from tpsprune.signals.norm import Norm, parameter_norm
from tpsprune.signals.signal import View


def read_norm(model: nn.Module):
    _, (reading,) = Norm().step(None, View(model, (), 7, 0.5, {}))
    return reading


def test_the_norm_is_the_length_of_all_parameters_in_one_vector() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    reading = read_norm(model)
    assert reading.value == pytest.approx(float(flat.norm()))
    assert (reading.signal, reading.group, reading.step, reading.epoch) == ("norm", "", 7, 0.5)


def test_frozen_parameters_do_not_count_and_shared_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(3.0)
    model[1].weight = model[0].weight
    assert float(parameter_norm(model)) == 3.0
    model[0].weight.requires_grad_(False)
    assert float(parameter_norm(model)) == 0.0


def test_a_weight_that_is_not_a_number_makes_the_reading_say_so() -> None:
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = torch.nan
    reading = read_norm(model)
    assert reading.status is Status.NOT_FINITE
    assert reading.value is None
