from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tpsprune
from tests.pruning import nets_structure as zoo
from tests.unchanged import unchanged
from tpsprune.pruning.measured_cuts import measure_cuts
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.planning import plan_widths
from tpsprune.recipe.prune import Macs, Prune


def plan(model: nn.Module, batch: torch.Tensor) -> tpsprune.pruning.WidthPlan:
    return plan_widths(model, [batch], Prune(target=Macs(0.6), round_to=1))


def cuts(model: nn.Module, batch: torch.Tensor, share: float) -> dict[str, float]:
    """Return what is measured with each group alone at a share of its units."""
    planned = plan(model, batch)
    orders = {
        group.name: [(group, planned.orders[group.name].units[: math.ceil(share * group.width)])]
        for group in planned.groups
    }
    return measure_cuts(model, [batch], orders, planned.statistics.moments)


@pytest.mark.parametrize("name", ["cnn", "residual", "mlp"])
def test_it_is_about_the_error_of_a_ticket_in_which_that_group_alone_is_cut(name: str) -> None:
    model, batch = zoo.case(name)
    batch = torch.cat([batch] * 2) if len(batch) < 256 else batch
    planned = plan(model, batch)
    with unchanged(model):
        measured = cuts(model, batch, 0.5)
    held = batch[-len(batch) // 4 :]
    for group in planned.groups:
        kept = math.ceil(0.5 * group.width)
        ticket = tpsprune.extract(
            model,
            [batch],
            tpsprune.Widths({group.name: kept}),
            quality="fast",
            reconstruct=False,
            recalibrate=False,
        ).ticket
        assert measured[group.name] == pytest.approx(output_error(ticket, model, [held]), rel=0.5, abs=1e-2)


def test_nothing_is_lost_where_all_units_are_kept_or_the_rest_are_copies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batch = torch.randn(256, 6)
    with torch.no_grad():
        model[0].weight[4:] = model[0].weight[:4]
        model[0].bias[4:] = model[0].bias[:4]
    assert cuts(model, batch, 1.0)["0"] == 0.0
    assert cuts(model, batch, 0.5)["0"] < 1e-6


def test_where_slopes_see_nothing_the_measured_error_makes_a_group_worth_more() -> None:
    class Saturated(nn.Module):
        """One branch as it is, and one behind a steep tanh: flat nearly everywhere, and all that matters."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 32), nn.Linear(8, 32)
            self.out_one, self.out_two = nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            plain = self.out_one(torch.relu(self.one(x)))
            return plain + torch.tanh(1e4 * self.out_two(torch.relu(self.two(x))))

    torch.manual_seed(0)
    model, batch = Saturated().eval(), torch.randn(512, 8)
    planned = plan(model, batch)
    names = [group.name for group in planned.groups]
    worth = dict(zip(names, planned.evidence.loudness, strict=True))
    by_slopes = planned.orders["two"].loudness / planned.orders["one"].loudness
    assert worth["two"] / worth["one"] > 2 * by_slopes


def test_whatever_is_measured_as_nothing_still_has_a_price() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[4].weight.zero_()
    planned = plan(model, torch.randn(256, 6))
    assert all(math.isfinite(each) and each > 0 for each in planned.evidence.loudness)
    assert planned.cost_share <= 0.6


def test_dead_units_are_estimated_as_what_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    assert cuts(model, torch.randn(256, 6), 0.5) == {"0": 0.0, "2": 0.0}


def test_a_layer_that_is_called_on_a_single_item_is_measured_alike() -> None:
    class Alone(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, items: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.inner(item) for item in items])

    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.Flatten(-3)).eval()
    batch = torch.randn(64, 2, 6, 6)
    ours, theirs = (cuts(model, batch, 0.5) for model in (Alone(inner).eval(), inner))
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-3)
