"""A loss over two directions: its basins, and the directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tpsprune.numerics.landscape import filter_normalised, total_persistence

AXIS = torch.linspace(-2, 2, 25)
X, Y = torch.meshgrid(AXIS, AXIS, indexing="ij")


def test_a_bowl_has_one_basin_and_two_wells_the_rim_between_them() -> None:
    assert total_persistence(X**2 + Y**2) == 0.0
    # Wells at x = ±1 of depth 0, a rim of height 1 between them.
    assert total_persistence((X**2 - 1) ** 2 + Y**2) == pytest.approx(1.0, abs=1e-6)
    # One of them shallower by a half: it dies where the rim is, half a unit less above it.
    tilted = (X**2 - 1) ** 2 + Y**2 + torch.where(X > 0, 0.5 * X.clamp(0, 1), torch.zeros(()))
    assert total_persistence(tilted) == pytest.approx(0.6, abs=0.1)
    assert total_persistence(3 * ((X**2 - 1) ** 2 + Y**2) + 7) == pytest.approx(3.0, abs=1e-5)


def test_a_direction_is_as_long_as_the_weights_row_by_row_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    state = net.state_dict()
    found = filter_normalised(state, torch.Generator().manual_seed(1))
    for name in ("0.weight", "3.weight"):
        for row, drawn in zip(state[name], found[name], strict=True):
            assert float(row.norm()) == pytest.approx(float(drawn.norm()), rel=1e-5)
    assert all(not found[name].any() for name in state if name not in {"0.weight", "3.weight"})
    again = filter_normalised(state, torch.Generator().manual_seed(1))
    assert all(torch.equal(each, again[name]) for name, each in found.items())
