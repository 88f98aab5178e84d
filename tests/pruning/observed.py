"""Inputs of layers, observed by hooks of the tests' own, and their moments."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tpsprune.pruning.groups import Consumer
from tpsprune.pruning.layers import channels_first
from tpsprune.pruning.observations import (
    JointSums,
    SplitMoments,
    count_signal_places,
    count_windows,
    read_signals,
    read_windows,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def disturbed(model: nn.Module, seed: int = 5) -> nn.Module:
    """Return a copy with a little noise on every weight and bias."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(noise(*parameter.shape, seed=seed).to(parameter), alpha=0.1)
    return other


def layer_inputs(model: nn.Module, name: str, batch: Tensor) -> Tensor:
    """Return the input of a layer's last call, by a hook."""
    inputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(batch)
    handle.remove()
    return inputs[-1]


def elements_of(consumer: Consumer, width: int) -> list[list[int]]:
    """Return where each signal of a consumer stands, position by position, by the formula in ``groups``."""
    signals = []
    for unit in range(width):
        elements = [
            consumer.offset + repeat * consumer.stride + unit * consumer.block + each
            for repeat in range(consumer.repeat)
            for each in range(consumer.block)
        ]
        signals += [
            elements[low : low + consumer.positions] for low in range(0, len(elements), consumer.positions)
        ]
    return signals


def moments_of_rows(x_rk: Tensor, y_rn: Tensor, *, at_a_time: int = 9) -> SplitMoments:
    """Return the moments of two tables, item by item."""
    sums = JointSums()
    for x, y in zip(x_rk.split(at_a_time), y_rn.split(at_a_time), strict=True):
        sums.add(x[:, None, None], y[:, None, None])
    return sums.moments()


def moments_of_signals(
    module: nn.Module, consumer: Consumer, width: int, pairs: Iterable[tuple[Tensor, Tensor]]
) -> SplitMoments:
    """Return the moments of all signals at all places, from a layer's inputs in two models."""
    sums = JointSums()
    for pair in pairs:
        everywhere = torch.arange(count_signal_places(module, pair[0], consumer))
        y, x = (read_signals(module, inputs, consumer, width, everywhere) for inputs in pair)
        sums.add(x[:, :, None], y[:, :, None])
    return sums.moments()


def moments_of_windows(dense: nn.Module, pruned: nn.Module, batches: Sequence[Tensor]) -> SplitMoments:
    """Return the moments of all windows of a layer and of the dense layer's outputs."""
    groups = getattr(dense, "groups", 1)
    sums = JointSums()
    for batch in batches:
        with torch.no_grad():
            y = dense(batch)
        y = y.flatten(2).transpose(1, 2) if channels_first(dense) else y
        y = y.reshape(len(batch), -1, y.shape[-1])
        x = read_windows(pruned, batch, torch.arange(count_windows(pruned, batch)))
        sums.add(x, y.unflatten(-1, (groups, -1)))
    return sums.moments()
