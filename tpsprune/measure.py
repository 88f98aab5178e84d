"""How large a model is, how long a forward pass takes, and how many items it predicts in a window of time.

Shape letters: n items of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.macs import count_macs
from tpsprune.numerics.trees import Tree, item_count, map_tensors, tensors_of
from tpsprune.records import Latency, Size
from tpsprune.runs.tensors import file_bytes

TIMED_ITEMS: Final = 32
"""The items of a batch on which layers of low rank are timed."""


def size(model: nn.Module, batch: Any, file: Path | None = None) -> Size:
    """Measure a model: parameters, multiply-accumulates per item of ``batch``, bytes on disk.

    A parameter that several modules share is counted once. Bytes are those of the state dict as
    safetensors, to the byte: there shared tensors are written in full, once a name, and buffers count.
    Weights set to zero count as any other; only pruned units make a model smaller.

    Cost: one forward pass without data, and a copy of the weights, unless ``file`` has them already.
    """
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=count_macs(model, batch).total,
        bytes=file_bytes(model.state_dict()) if file is None else file.stat().st_size,
    )


_WARM_UP_PASSES: Final = 5


def latency(model: nn.Module, item: Tree, batch: int, *, seconds: float = 0.5, repeats: int = 20) -> Latency:
    """Time the forward pass of ``model`` over ``batch`` copies of ``item``.

    ``item`` is one input without the batch axis, on the model's device (of several parts, each without it).
    Passes go on until there are ``repeats`` of them and ``seconds`` have gone by, after five that do not
    count; evaluation mode, inference mode, the device waited for round every pass, so queueing a pass is not
    timed as doing it. It sees neither data loading nor copying to the device.
    The model's mode is as it was.
    """
    return batch_latency(model, _copies(item, batch), seconds=seconds, repeats=repeats)


def batch_latency(model: nn.Module, batch_n: Tree, *, seconds: float = 0.5, repeats: int = 20) -> Latency:
    """Time the forward pass of ``model`` over a batch as it is; all else as in ``latency``."""
    return _latencies([model], batch_n, seconds, repeats)[0]


def paired_latency(
    dense: nn.Module,
    ticket: nn.Module,
    item: Tree,
    batch: int,
    *,
    seconds: float = 1.0,
    repeats: int = 20,
) -> tuple[Latency, Latency]:
    """Time two models pass by pass in turn, so that their ratio holds when the machine drifts.

    Who goes first changes every round. ``seconds`` are those of both together, ``repeats`` the passes
    of each; all else as in ``latency``.
    """
    first, second = _latencies([dense, ticket], _copies(item, batch), seconds, repeats)
    return first, second


def _copies(item: Tree, batch: int) -> Tree:
    return map_tensors(item, lambda each: each.expand(batch, *each.shape).contiguous())


def _latencies(models: Sequence[nn.Module], batch_n: Tree, seconds: float, repeats: int) -> list[Latency]:
    # What is no tensor may hold some that cannot be seen: then the model's own tell where it runs.
    tensors = (*tensors_of(batch_n), *models[0].parameters())
    device = tensors[0].device if tensors else torch.device("cpu")
    seconds_taken: list[list[float]] = [[] for _ in models]
    order = list(range(len(models)))
    with torch.inference_mode():
        for _ in range(_WARM_UP_PASSES):
            for model in models:
                _seconds_of_pass(model, batch_n, device)
        start = perf_counter()
        while len(seconds_taken[0]) < repeats or perf_counter() - start < seconds:
            for index in order:
                seconds_taken[index].append(_seconds_of_pass(models[index], batch_n, device))
            order.reverse()
    return [_summary(taken) for taken in seconds_taken]


def _seconds_of_pass(model: nn.Module, batch_n: Tree, device: torch.device) -> float:
    with evaluation_mode(model):
        _wait_for(device)
        start = perf_counter()
        call_model(model, batch_n)
        _wait_for(device)
        return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(seconds_taken: Sequence[float]) -> Latency:
    lower, median, upper = quantiles(seconds_taken, n=4, method="inclusive")
    return Latency(
        median_seconds=median,
        lower_quartile_seconds=lower,
        upper_quartile_seconds=upper,
        repeats=len(seconds_taken),
    )


SYNCHRONISED_EVERY_SECONDS: Final = 0.2
CLOCK_SECONDS: Final = 1e-9


def infer_for(seconds: float, model: nn.Module, batch_n: Tree) -> int:
    """Run the model on one batch again and again for at least ``seconds``; return the items predicted.

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
