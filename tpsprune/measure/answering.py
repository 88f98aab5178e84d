"""A model that answers for so many seconds: what a window of energy is divided by."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import torch
from torch import nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import Tree, item_count, tensors_of

__all__ = ["answer_for"]

SYNCHRONISED_EVERY_SECONDS: Final = 0.2
CLOCK_SECONDS: Final = 1e-9


def answer_for(seconds: float, model: nn.Module, batch_n: Tree) -> int:
    """Answer the same batch again and again for at least ``seconds``; return the items answered.

    One pass at least. In evaluation and inference mode; the device is waited for at both edges and five
    times a second between, so that what was queued is done when the window closes. It sees neither loading
    nor copying: the batch lies on the model's device. The model's mode is as it was.
    """
    passes, group = 0, 1
    device = next(tensors_of(batch_n)).device
    with torch.inference_mode(), evaluation_mode(model):
        _wait_for(device)
        start = perf_counter()
        while True:
            for _ in range(group):
                call_model(model, batch_n)
            _wait_for(device)
            passes += group
            spent = perf_counter() - start
            if spent >= seconds:
                return passes * item_count(batch_n)
            left = min(SYNCHRONISED_EVERY_SECONDS, seconds - spent)
            group = max(1, int(left * passes / max(spent, CLOCK_SECONDS)))


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
