from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tpsprune.numerics.moments import Moments
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.representations import DEff, group_dimension
from tpsprune.signals.signal import View


def planted(width: int, directions: int) -> nn.Sequential:
    """Hidden units that span ``directions`` dimensions evenly, whatever whitened input comes in."""
    model = nn.Sequential(nn.Linear(directions, width), nn.Linear(width, 2))
    model[0].weight.data = torch.linalg.qr(torch.randn(width, directions)).Q
    return model


def whitened(rows: int, directions: int) -> Tensor:
    return rows**0.5 * torch.linalg.qr(torch.randn(rows, directions) - 0.0).Q


def read(model: nn.Module, consumers: dict[str, dict[str, int]], *probe: Tensor) -> tuple[Reading, ...]:
    return DEff().step(None, View(model, probe, 3, 1.5, consumers))[1]


def value(readings: tuple[Reading, ...], signal: str, group: str = "") -> float:
    (found,) = [each.value for each in readings if (each.signal, each.group) == (signal, group)]
    assert found is not None
    return found


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_units_that_span_k_directions_evenly_have_dimension_k(directions: int) -> None:
    rows = whitened(500, directions + 1)
    centred = torch.linalg.qr(rows[:, :directions] - rows[:, :directions].mean(0)).Q
    readings = read(planted(16, directions), {"0": {"1": 16}}, centred)
    assert value(readings, "d_eff", "0") == pytest.approx(directions, rel=1e-4)
    assert value(readings, "d_eff_share", "0") == pytest.approx(directions / 16, rel=1e-4)
    corrected = 1 / (1 / directions - 1 / 500)
    assert value(readings, "participation_ratio", "0") == pytest.approx(min(16, corrected), rel=1e-4)


def test_the_models_figure_is_the_mean_of_the_groups_shares() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    readings = read(model, {"0": {"2": 8}, "2": {"4": 12}}, torch.randn(40, 6), torch.randn(30, 6))
    shares = [value(readings, "d_eff_share", group) for group in ("0", "2")]
    assert value(readings, "d_eff") == pytest.approx(sum(shares) / 2)
    assert readings[-1].unit == "share"
    assert {(each.step, each.epoch) for each in readings} == {(3, 1.5)}


def test_every_consumer_weighs_alike_however_large_its_input() -> None:
    one, two = torch.diag(torch.tensor([1.0, 0.0])), 1e6 * torch.diag(torch.tensor([0.0, 1.0]))
    moments = [Moments(10**9, torch.zeros(2), covariance.double()) for covariance in (one, two)]
    assert group_dimension(moments).effective_rank == pytest.approx(2.0)


def test_units_that_never_vary_have_dimension_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight.data.zero_()
    assert value(read(model, {"0": {"1": 8}}, torch.randn(20, 4)), "d_eff", "0") == 0.0


def test_duplicated_units_add_no_dimension() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight.data[4:] = model[0].weight.data[:4]
    twice = value(
        read(model, {"0": {"1": 8}}, torch.ones(1, 4).expand(50, 4) + torch.randn(50, 4)), "d_eff", "0"
    )
    assert twice < 4.001


def test_activations_that_are_not_finite_make_readings_that_say_so() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight.data[0, 0] = torch.inf
    readings = read(model, {"0": {"1": 8}}, torch.randn(20, 4))
    assert {each.status for each in readings} == {Status.NOT_FINITE}
    assert {each.value for each in readings} == {None}


def test_without_a_group_the_reading_says_why_there_is_none() -> None:
    (reading,) = read(nn.Linear(2, 2), {}, torch.randn(4, 2))
    assert reading.status is Status.NOT_APPLICABLE
    assert reading.reason == "there is no prunable group to read"


def test_a_group_whose_consumers_are_not_called_is_passed_over_with_a_reason() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.idle = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = nn.Sequential(nn.Linear(3, 4), Idle())
    readings = read(model, {"0": {"1.idle": 4}, "1": {"1.used": 4}}, torch.randn(9, 3))
    assert readings[0].reason == "no consumer of its units is called"
    assert readings[-1].status is Status.OK


def test_consumers_of_different_width_are_not_pooled() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    readings = read(model, {"0": {"1": 4, "2": 5}}, torch.randn(9, 3))
    assert readings[0].reason == "its consumers are fed different numbers of units"
