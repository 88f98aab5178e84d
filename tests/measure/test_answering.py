"""A model that answers for so long: what is counted is what was answered."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch
from torch import Tensor, nn

from tpsprune.measure import answer_for


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = 0
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, batch: Tensor) -> Tensor:
        self.items += len(batch)
        self.modes.add((self.training, torch.is_inference_mode_enabled()))
        return batch


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_every_item_that_was_answered_is_counted(batch: int, seconds: float) -> None:
    model = Counting().train()
    started = perf_counter()
    counted = answer_for(seconds, model, torch.zeros(batch, 3))
    assert counted == model.items >= batch
    assert perf_counter() - started >= seconds
    assert model.modes == {(False, True)}
    assert model.training, "the mode is as it was"


def test_no_seconds_are_one_pass() -> None:
    assert answer_for(0.0, Counting(), torch.zeros(4, 3)) == 4
