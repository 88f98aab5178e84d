"""The libraries of the adapters import torchvision where it is installed, which may have to be helped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import small_data, small_net
from tpsprune.models.libraries import help_torchvision

help_torchvision()

BATCH = 12
PLATEAU = tpsprune.Plateau(monitor="norm", tolerance=1.0, patience=2, min_adjusted_accuracy=0.0)


def settings_of(variant: str, **more: Any) -> dict[str, Any]:
    """Return how TPS is set up: a variant, or ``weights`` as a part of the loss."""
    if variant == "in the loss":
        return {"variant": "weights", "apply": "loss", **more}
    return {"variant": variant, "data": small_data(), **more}


def assert_trained_as_by_hand(net: nn.Module, settings: dict[str, Any], accumulated: int) -> None:
    """Assert that a net has the weights of three epochs in a loop of the user's own."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tps = tpsprune.TPS(model, optimizer, **settings)
    for _ in range(3):
        for number, (x, y) in enumerate(zip(*(part.split(BATCH) for part in small_data()), strict=True), 1):
            with tps.listening():
                loss = cross_entropy(model(x), y)
            ((loss + tps(y, loss)) / accumulated).backward()
            if number % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
    for mine, theirs in zip(net.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


variants = pytest.mark.parametrize("variant", ["weights", "neurons", "moments", "in the loss"])
accumulations = pytest.mark.parametrize("accumulated", [1, 2])
