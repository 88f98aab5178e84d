"""From what a layer is fed to observations: places drawn, the signals of units, the windows of a kernel.

Neighbouring places of an image say nearly the same, and moments need no more rows than they have columns
many times over: of each item so many places are drawn, the same for all items of a batch and for both
models.

Shape letters: b items, s samples of an item, n signals (units times features), c input elements, g groups
of the layer, p features of a group (inputs times kernel positions), q outputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.trees import item_count, taken
from tpsprune.pruning.groups import Consumer, element_index
from tpsprune.pruning.layers import channels_first

__all__ = [
    "answers",
    "draw",
    "feature_count",
    "indexed",
    "patch_places",
    "patches",
    "signal_places",
    "signals",
    "some",
    "wanted",
]

ROWS_PER_COLUMN: Final = 8
LEAST_ROWS: Final = 8192
AT_LEAST: Final = 8
"""Items taken of one batch, where it has so many: statistics of one item are none."""


def wanted(columns: int, items: int, *, least: int = LEAST_ROWS) -> int:
    """Return how many places of each of ``items`` items are drawn for moments of so many columns."""
    return math.ceil(max(least, ROWS_PER_COLUMN * columns) / max(1, items))


def draw(places: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of so many places in ascending order, or all where there are no more."""
    if count >= places:
        return torch.arange(places)
    return torch.randperm(places, generator=generator)[:count].sort().values


def some(probe: Sequence[Any], items: int, at_a_time: int) -> Iterator[Any]:
    """Yield small batches, about ``items`` items in all, from batches spread evenly over the probe."""
    mean = sum(map(item_count, probe)) / max(1, len(probe))
    each = max(AT_LEAST, math.ceil(items / max(1, len(probe))))
    count = min(len(probe), math.ceil(items / max(1.0, min(each, mean))))
    for rank in range(count):
        batch = probe[rank * len(probe) // count]
        for part in torch.split(torch.arange(min(each, item_count(batch))), at_a_time):
            yield taken(batch, part)


def signal_places(module: nn.Module, given: Tensor, consumer: Consumer) -> int:
    """Return at how many places of an item each signal of a consumer is seen."""
    inner = given.shape[2:] if channels_first(module) else given.shape[1:-1]
    return math.prod(inner) * consumer.positions


def signals(module: nn.Module, given: Tensor, consumer: Consumer, width: int, chosen_s: Tensor) -> Tensor:
    """Return what ``width`` units say at the chosen places, ``signals_bsn``."""
    given = given if given.ndim > 1 else given[None]
    given_bsc = given.flatten(2).transpose(1, 2) if channels_first(module) else given
    given_bsc = given_bsc.reshape(len(given), -1, given_bsc.shape[-1])
    index = element_index(consumer, width, given.device).flatten()
    chosen_s = chosen_s.to(given.device)
    if consumer.positions == 1:
        return given_bsc[:, chosen_s][..., index]
    spread = given_bsc[..., index].reshape(*given_bsc.shape[:2], -1, consumer.positions)
    answer: Tensor = spread.transpose(2, 3).flatten(1, 2)[:, chosen_s]
    return answer


def patch_places(module: nn.Module, given: Tensor) -> int:
    """Return how many windows of an item a layer sees: as many as it has places to put something out at."""
    if not isinstance(module, _ConvNd):
        return math.prod(given.shape[1:-1])
    return math.prod(_unfolded(module, given[:1, :1]).shape[2 : given.ndim])


def patches(module: nn.Module, given: Tensor, alive_c: Tensor, chosen_s: Tensor) -> Tensor:
    """Return what a layer sees at the chosen places of its output, ``patches_bsgp``, padding as it is."""
    chosen_s = chosen_s.to(given.device)
    given = given if given.ndim > 1 else given[None]
    if not isinstance(module, _ConvNd):
        given_bsc = given.reshape(len(given), -1, given.shape[-1])
        return given_bsc[:, chosen_s][..., alive_c][:, :, None]
    seen = given if indexed(module) else given * alive_c.view(-1, *[1] * (given.ndim - 2))
    seen = _unfolded(module, seen)
    maps = seen.shape[2 : given.ndim]
    place: tuple[Any, ...] = (slice(None), slice(None), *torch.unravel_index(chosen_s, maps))
    taken_bcs = seen[place]
    if indexed(module):
        taken_bcs = taken_bcs[:, alive_c]
    return taken_bcs.movedim(2, 1).reshape(len(given), len(chosen_s), module.groups, -1)


def answers(module: nn.Module, said: Tensor, chosen_s: Tensor) -> Tensor:
    """Return what a layer says at the chosen places of its output, ``answers_bsgq``."""
    said = said if said.ndim > 1 else said[None]
    chosen_s = chosen_s.to(said.device)
    if not isinstance(module, _ConvNd):
        return said.reshape(len(said), -1, said.shape[-1])[:, chosen_s][:, :, None]
    chosen_bcs = said.flatten(2)[:, :, chosen_s]
    return chosen_bcs.transpose(1, 2).reshape(len(said), len(chosen_s), module.groups, -1)


def indexed(module: nn.Module) -> bool:
    """Return whether inputs that are gone are left out of the features, or stand there as zeros."""
    return not (isinstance(module, _ConvNd) and module.groups > 1)


def feature_count(module: nn.Module, alive_c: Tensor) -> int:
    """Return p, the features that each output of a layer is solved for."""
    if not isinstance(module, _ConvNd):
        return int(alive_c.sum())
    inputs = int(alive_c.sum()) if indexed(module) else module.in_channels // module.groups
    return inputs * math.prod(module.kernel_size)


def _unfolded(module: _ConvNd, given: Tensor) -> Tensor:
    """Return a view of the padded input by windows: (items, channels, output places …, kernel places …)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    seen = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(sizes, start=2):
        seen = seen.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return seen
