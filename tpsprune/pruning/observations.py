"""Observations of a layer: its inputs and outputs at sampled places, and joint moments of both, streamed.

Neighbouring places of an image hold nearly the same, and moments need no more rows than many times their
columns: of each item so many places are sampled, the same for all items of a batch and for both models.
Activations are never kept.

Shape letters: b items, s samples of an item, r rows (items times samples), n signals (units times features),
c input elements, g groups of the layer, p features of a group (inputs times kernel positions), q outputs of a
group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import widened
from tpsprune.numerics.moments import gram
from tpsprune.numerics.trees import is_whole, item_count, take_items
from tpsprune.pruning.groups import Consumer, element_index
from tpsprune.pruning.layers import channels_first

ROWS_PER_COLUMN: Final = 8
LEAST_ROWS: Final = 8192
LEAST_ITEMS: Final = 8
"""Items taken of one batch, where it has so many: one item has no statistics."""
LEAST_WHOLE: Final = 4
"""Batches taken at the least where they cannot be split: as many as 32 items come from otherwise."""
HELD_OUT: Final = 4
"""Every batch keeps the last one in four of its items to choose ridges on."""
MOST_EXACT: Final = 512
"""Columns beyond which one batch is taken in single precision, about the means; the sums are double."""


def sample_items(batches: Sequence[Any], items: int, at_a_time: int) -> Iterator[Any]:
    """Yield small batches, about ``items`` items in all, from batches spread evenly over ``batches``.

    A batch that cannot be split is yielded once, whole.
    """
    mean = sum(map(item_count, batches)) / max(1, len(batches))
    each = max(LEAST_ITEMS, math.ceil(items / max(1, len(batches))))
    count = math.ceil(items / max(1.0, min(each, mean)))
    if any(is_whole(batch) for batch in batches):
        count = max(LEAST_WHOLE, math.ceil(items / max(1.0, mean)))
    count = min(len(batches), count)
    for rank in range(count):
        batch = batches[rank * len(batches) // count]
        if is_whole(batch):
            yield batch
            continue
        for part in torch.split(torch.arange(min(each, item_count(batch))), at_a_time):
            yield take_items(batch, part)


def with_items(module: nn.Module, tensor: Tensor) -> Tensor:
    """Return a layer's input or output with an axis of items, where the model calls it on a single item."""
    least = 2 + (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
    return tensor if tensor.ndim >= least else tensor[None]


def count_places(columns: int, items: int, *, least: int = LEAST_ROWS) -> int:
    """Return how many places of each of ``items`` items are sampled for moments of so many columns."""
    return math.ceil(max(least, ROWS_PER_COLUMN * columns) / max(1, items))


def sample_places(places: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of so many places in ascending order, or all where there are no more."""
    if count >= places:
        return torch.arange(places)
    return torch.randperm(places, generator=generator)[:count].sort().values


def count_signal_places(module: nn.Module, inputs: Tensor, consumer: Consumer) -> int:
    """Return at how many places of an item a consumer reads each signal."""
    inputs = with_items(module, inputs)
    inner = inputs.shape[2:] if channels_first(module) else inputs.shape[1:-1]
    return math.prod(inner) * consumer.positions


def read_signals(
    module: nn.Module, inputs: Tensor, consumer: Consumer, width: int, places_s: Tensor
) -> Tensor:
    """Return the signals of ``width`` units at the sampled places of a layer's input, ``signals_bsn``."""
    inputs = with_items(module, inputs)
    inputs_bsc = inputs.flatten(2).transpose(1, 2) if channels_first(module) else inputs
    inputs_bsc = inputs_bsc.reshape(len(inputs), -1, inputs_bsc.shape[-1])
    index = element_index(consumer, width, inputs.device).flatten()
    places_s = places_s.to(inputs.device)
    if consumer.positions == 1:
        return inputs_bsc[:, places_s][..., index]
    by_position = inputs_bsc[..., index].reshape(*inputs_bsc.shape[:2], -1, consumer.positions)
    signals_bsn: Tensor = by_position.transpose(2, 3).flatten(1, 2)[:, places_s]
    return signals_bsn


def count_windows(module: nn.Module, inputs: Tensor) -> int:
    """Return how many windows of an item a layer sees: as many as it has output places."""
    inputs = with_items(module, inputs)
    if not isinstance(module, _ConvNd):
        return math.prod(inputs.shape[1:-1])
    return math.prod(_unfold(module, inputs[:1, :1]).shape[2 : inputs.ndim])


def read_windows(module: nn.Module, inputs: Tensor, alive_c: Tensor, places_s: Tensor) -> Tensor:
    """Return what a layer sees at the sampled places of its output, ``windows_bsgp``, padding included."""
    places_s = places_s.to(inputs.device)
    inputs = with_items(module, inputs)
    if not isinstance(module, _ConvNd):
        inputs_bsc = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return inputs_bsc[:, places_s][..., alive_c][:, :, None]
    windows = inputs if selects_inputs(module) else inputs * alive_c.view(-1, *[1] * (inputs.ndim - 2))
    windows = _unfold(module, windows)
    places: list[Tensor] = []  # torch.unravel_index does the same, and imports sympy: half a second
    for size in reversed(windows.shape[2 : inputs.ndim]):
        places.insert(0, places_s % size)
        places_s = places_s.div(size, rounding_mode="floor")
    index: tuple[Any, ...] = (slice(None), slice(None), *places)
    windows_bcs = windows[index]
    if selects_inputs(module):
        windows_bcs = windows_bcs[:, alive_c]
    return windows_bcs.movedim(2, 1).reshape(len(inputs), len(places_s), module.groups, -1)


def read_outputs(module: nn.Module, output: Tensor, places_s: Tensor) -> Tensor:
    """Return a layer's output at the sampled places, ``outputs_bsgq``."""
    output = with_items(module, output)
    places_s = places_s.to(output.device)
    if not isinstance(module, _ConvNd):
        return output.reshape(len(output), -1, output.shape[-1])[:, places_s][:, :, None]
    outputs_bcs = output.flatten(2)[:, :, places_s]
    return outputs_bcs.transpose(1, 2).reshape(len(output), len(places_s), module.groups, -1)


def selects_inputs(module: nn.Module) -> bool:
    """Return whether pruned inputs are left out of the features; in a grouped convolution they are zeros."""
    return not (isinstance(module, _ConvNd) and module.groups > 1)


def count_features(module: nn.Module, alive_c: Tensor) -> int:
    """Return p, the features that each output of a layer is solved for."""
    if not isinstance(module, _ConvNd):
        return int(alive_c.sum())
    inputs = int(alive_c.sum()) if selects_inputs(module) else module.in_channels // module.groups
    return inputs * math.prod(module.kernel_size)


def _unfold(module: _ConvNd, inputs: Tensor) -> Tensor:
    """Return a view of the padded input by windows: (items, channels, output places …, kernel places …)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(sizes, start=2):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return windows


@dataclass(frozen=True, slots=True, eq=False)
class JointMoments:
    """Means and biased covariances of x and y over ``rows`` observations; of y with itself variances alone.

    x comes from the model as pruned so far, y from the dense model. Double precision where there is one.
    """

    rows: int
    mean_x_gp: Tensor
    mean_y_gq: Tensor
    xx_gpp: Tensor
    xy_gpq: Tensor
    yy_gq: Tensor

    def about_zero(self) -> JointMoments:
        """Return moments about zero, for a layer that has no bias."""
        x_gp, y_gq = self.mean_x_gp, self.mean_y_gq
        return JointMoments(
            self.rows,
            torch.zeros_like(x_gp),
            torch.zeros_like(y_gq),
            self.xx_gpp + x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq + x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq + y_gq.square(),
        )

    def of_inputs(self, index_p: Tensor) -> JointMoments:
        """Return the moments with only some of the elements of x."""
        mean_x_gp, xx_gpp = self.mean_x_gp[:, index_p], self.xx_gpp[:, index_p][:, :, index_p]
        return JointMoments(self.rows, mean_x_gp, self.mean_y_gq, xx_gpp, self.xy_gpq[:, index_p], self.yy_gq)

    def pooled(self, other: JointMoments) -> JointMoments:
        """Return the moments of the observations of both."""
        share = self.rows / (self.rows + other.rows)
        x_gp, y_gq = other.mean_x_gp - self.mean_x_gp, other.mean_y_gq - self.mean_y_gq
        between = share * (1 - share)
        return JointMoments(
            self.rows + other.rows,
            self.mean_x_gp + (1 - share) * x_gp,
            self.mean_y_gq + (1 - share) * y_gq,
            share * self.xx_gpp + (1 - share) * other.xx_gpp + between * x_gp[:, :, None] * x_gp[:, None, :],
            share * self.xy_gpq + (1 - share) * other.xy_gpq + between * x_gp[:, :, None] * y_gq[:, None, :],
            share * self.yy_gq + (1 - share) * other.yy_gq + between * y_gq.square(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SplitMoments:
    """Moments over all items, over three in four (``fit``) and over the fourth (``held``).

    The latter two are missing where no batch has four items.
    """

    whole: JointMoments
    fit: JointMoments | None
    held: JointMoments | None

    def of_inputs(self, index_p: Tensor) -> SplitMoments:
        """Return the moments with only some of the elements of x."""
        return self._map(lambda part: part.of_inputs(index_p))

    def about_zero(self) -> SplitMoments:
        """Return moments about zero."""
        return self._map(JointMoments.about_zero)

    def _map(self, change: Callable[[JointMoments], JointMoments]) -> SplitMoments:
        fit, held = (change(part) if part else None for part in (self.fit, self.held))
        return SplitMoments(change(self.whole), fit, held)


@final
class JointSums:
    """Running sums of x and y, of the items to fit on and of those held out, about the first means."""

    def __init__(self) -> None:
        self._fit, self._held = _Sums(), _Sums()

    @property
    def rows(self) -> int:
        """Observations so far."""
        return self._fit.rows + self._held.rows

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        """Add the observations of one batch. Cost: r·p·(p + q) for each group."""
        split = len(x_bsgp) - len(x_bsgp) // HELD_OUT
        self._fit.add(x_bsgp[:split], y_bsgq[:split])
        if split < len(x_bsgp):
            self._held.add(x_bsgp[split:], y_bsgq[split:])

    def moments(self) -> SplitMoments:
        """Return the moments of all that was added."""
        fit = self._fit.moments()
        if not self._held.rows:
            return SplitMoments(fit, None, None)
        held = self._held.moments()
        return SplitMoments(fit.pooled(held), fit, held)


class _Sums:
    def __init__(self) -> None:
        self.rows = 0
        self.shift_gp = self.shift_gq = self.sum_gp = self.sum_gq = torch.empty(0)
        self.xx_gpp = self.xy_gpq = self.yy_gq = torch.empty(0)

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        x_grp, y_grq = (each.flatten(0, 1).movedim(0, 1) for each in (x_bsgp, y_bsgq))
        many = x_grp.shape[2] > MOST_EXACT
        # Single precision is enough about the means, not about zero: what comes in double is shifted first.
        x_grp, y_grq = (
            each.to(torch.promote_types(each.dtype, torch.float32)) if many else widened(each)
            for each in (x_grp, y_grq)
        )
        if not self.rows:
            self.shift_gp, self.shift_gq = (widened(each.mean(1)) for each in (x_grp, y_grq))
            self.sum_gp, self.sum_gq = torch.zeros_like(self.shift_gp), torch.zeros_like(self.shift_gq)
            self.xx_gpp = self.sum_gp.new_zeros(len(x_grp), x_grp.shape[2], x_grp.shape[2])
            self.xy_gpq = self.sum_gp.new_zeros(len(x_grp), x_grp.shape[2], y_grq.shape[2])
            self.yy_gq = torch.zeros_like(self.shift_gq)
        x_grp = x_grp - self.shift_gp[:, None].to(x_grp.dtype)
        y_grq = y_grq - self.shift_gq[:, None].to(y_grq.dtype)
        if many:
            x_grp, y_grq = x_grp.float(), y_grq.float()
        self.rows += x_grp.shape[1]
        self.sum_gp += x_grp.sum(1)
        self.sum_gq += y_grq.sum(1)
        self.yy_gq += y_grq.square().sum(1)
        self.xx_gpp += gram(x_grp)
        self.xy_gpq += x_grp.mT @ y_grq

    def moments(self) -> JointMoments:
        x_gp, y_gq = self.sum_gp / self.rows, self.sum_gq / self.rows
        return JointMoments(
            self.rows,
            self.shift_gp + x_gp,
            self.shift_gq + y_gq,
            self.xx_gpp / self.rows - x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq / self.rows - x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq / self.rows - y_gq.square(),
        )


def hold_out(batches: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what to fit and what is held out: some items of every batch, or every fourth whole batch.

    Whole are those that are never split, and all where none has four items.
    """
    small = max(map(item_count, batches)) < HELD_OUT
    if len(batches) >= HELD_OUT and (small or any(is_whole(batch) for batch in batches)):
        held = batches[HELD_OUT - 1 :: HELD_OUT]
        return [batch for rank, batch in enumerate(batches, start=1) if rank % HELD_OUT], held
    fit, held = zip(*(_split(batch) for batch in batches), strict=True)
    return fit, held


def _split(batch: Any) -> tuple[Any, Any]:
    """Return the items to fit and those held out: the same ones where there are too few to part."""
    items = torch.arange(item_count(batch))
    held = len(items) // HELD_OUT
    return (take_items(batch, items[:-held]), take_items(batch, items[-held:])) if held else (batch, batch)
