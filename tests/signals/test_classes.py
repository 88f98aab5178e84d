"""The signal of neural collapse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tpsprune.numerics.neural_collapse import neural_collapse
from tpsprune.records.readings import Status
from tpsprune.signals.classes import NeuralCollapse
from tpsprune.signals.signal import View


def view(model: nn.Module, *pairs: tuple[torch.Tensor, torch.Tensor]) -> View:
    return View(model, tuple(x for x, _ in pairs), 3, 1.5, {}, labels=tuple(y for _, y in pairs))


def test_it_reads_what_the_last_layer_reads_over_all_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
    readings = NeuralCollapse().read(view(model, (inputs[:20], labels[:20]), (inputs[20:], labels[20:])))
    states = model[1](model[0](inputs))
    weight = model[2].weight.detach()
    wanted = neural_collapse(states.detach(), labels, model(inputs).argmax(1), weight)
    found = {each.signal: each.value for each in readings}
    assert found["nc1"] == pytest.approx(wanted.nc1, rel=1e-5)
    assert found["nc3"] == pytest.approx(wanted.nc3, rel=1e-5)
    assert set(found) == {"nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"}
    # Not the outputs: another layer comes behind, so its weight is nobody's readout.
    behind = nn.Sequential(*model, nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.ZeroPad1d((0, 1)))
    assert "nc3" not in {each.signal for each in NeuralCollapse().read(view(behind, (inputs, labels)))}


@pytest.mark.parametrize(
    ("model", "labels", "reason"),
    [
        (nn.Linear(4, 3), torch.rand(12), "the labels are not classes"),
        (nn.Linear(4, 3), torch.zeros(12, dtype=torch.int64), "all items are of one class"),
        (nn.Identity(), torch.arange(12) % 2, "no linear layer comes last"),
    ],
)
def test_what_has_no_classes_or_layer_has_no_collapse(
    model: nn.Module, labels: torch.Tensor, reason: str
) -> None:
    (reading,) = NeuralCollapse().read(view(model, (torch.randn(12, 4), labels)))
    assert (reading.signal, reading.status) == ("nc1", Status.NOT_APPLICABLE)
    assert reading.reason.startswith(reason)


def test_weights_that_are_not_finite_are_marked() -> None:
    model = nn.Linear(4, 3)
    model.weight.data[0, 0] = torch.nan
    (reading,) = NeuralCollapse().read(view(model, (torch.randn(12, 4), torch.arange(12) % 3)))
    assert reading.status is Status.NOT_FINITE
