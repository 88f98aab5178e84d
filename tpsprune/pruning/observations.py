"""Observations of a layer: its inputs and outputs at sampled places, and joint moments of both, streamed.

Neighbouring places of an image hold nearly the same, and moments need no more rows than many times their
columns: of each item so many places are sampled, the same for all items of a batch and for both models.
Activations are never kept.

Shape letters: b items, s samples of an item, r rows (items times samples), n signals (units times features),
g groups of the layer, p features of a group (inputs times kernel positions), q outputs of a
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
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import is_whole, item_count, take_items
from tpsprune.pruning.groups import Consumer, element_index
from tpsprune.pruning.layers import channels_first, length

ROWS_PER_COLUMN: Final = 8
LEAST_ROWS, MOST_ROWS = 4096, 32768
"""With 4,096 rows for its weights a small layer fits to the sample; more than 32,768 gain nothing."""
MOST_CELLS: Final = 2**23
"""Rows times columns from which on eight rows per column are enough."""
LEAST_ITEMS: Final = 8
"""Items taken of one batch, where it has so many: one item has no statistics."""
LEAST_WHOLE: Final = 4
"""Batches taken at the least where they cannot be split: as many as 32 items come from otherwise."""
ROUNDING: Final = 8
"""Units in the last place by which a signal's spread must exceed its mean's rounding."""
MOST_EXACT: Final = 512
"""Columns beyond which products of a batch of single precision stay so, about the means; the sums are double.
Beside a direction some thousand times as strong single precision loses what the layer may read."""
HELD_OUT: Final = 4
"""Every batch keeps the last one in four of its items to choose ridges on."""


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


def count_places(columns: int, items: int, *, layers: int = 1) -> int:
    """Return how many places of each of ``items`` items are sampled for moments of so many columns.

    32,768 rows of up to 256 columns, fewer of more, never less than eight for each column and 4,096 in all.
    Of a grouped convolution each of ``layers`` groups has as many columns.
    """
    affordable = min(MOST_ROWS, MOST_CELLS // max(1, layers * columns))
    return math.ceil(max(ROWS_PER_COLUMN * columns, LEAST_ROWS, affordable) / max(1, items))


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


def read_windows(module: nn.Module, inputs: Tensor, places_s: Tensor) -> Tensor:
    """Return what a layer sees at the sampled places of its output, ``windows_bsgp``, padding included."""
    places_s = places_s.to(inputs.device)
    inputs = with_items(module, inputs)
    if not isinstance(module, _ConvNd):
        inputs_bsc = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return inputs_bsc[:, places_s][:, :, None]
    windows = _unfold(module, inputs)
    places: list[Tensor] = []  # torch.unravel_index does the same, and imports sympy: half a second
    for size in reversed(windows.shape[2 : inputs.ndim]):
        places.insert(0, places_s % size)
        places_s = places_s.div(size, rounding_mode="floor")
    index: tuple[Any, ...] = (slice(None), slice(None), *places)
    windows_bcs = windows[index]
    return windows_bcs.movedim(2, 1).reshape(len(inputs), len(places_s), module.groups, -1)


def read_outputs(module: nn.Module, output: Tensor, places_s: Tensor) -> Tensor:
    """Return a layer's output at the sampled places, ``outputs_bsq``, of all its groups."""
    output = with_items(module, output)
    places_s = places_s.to(output.device)
    if not isinstance(module, _ConvNd):
        return output.reshape(len(output), -1, output.shape[-1])[:, places_s]
    return output.flatten(2)[:, :, places_s].transpose(1, 2)


def groups_of(module: nn.Module) -> int:
    """Return of how many layers in one a layer consists, each with inputs and outputs of its own."""
    return module.groups if isinstance(module, _ConvNd) else 1


def count_features(module: nn.Module) -> int:
    """Return p, the features that each output of a layer is solved for."""
    if not isinstance(module, _ConvNd):
        return length(module, "in")
    return module.in_channels // module.groups * math.prod(module.kernel_size)


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

    x comes from the ticket, y from the dense model. Double precision where there is one.
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


@dataclass(frozen=True, slots=True, eq=False)
class SplitMoments:
    """Moments over all items, over three in four (``fit``) and over the fourth (``held``).

    The latter two are missing where no batch has four items.
    """

    whole: JointMoments
    fit: JointMoments | None
    held: JointMoments | None

    def about_zero(self) -> SplitMoments:
        """Return moments about zero."""
        return self._map(JointMoments.about_zero)

    def _map(self, change: Callable[[JointMoments], JointMoments]) -> SplitMoments:
        fit, held = (change(part) if part else None for part in (self.fit, self.held))
        return SplitMoments(change(self.whole), fit, held)


@final
class JointSums:
    """Running sums of x and y, of the items to fit on and of those held out, about the first means.

    Those of several shards, of one layer in several processes, are about the first process's first means.
    """

    def __init__(self, peers: AbstractPeers = ALONE) -> None:
        self._peers = peers
        self._of_shards = {shard: (_Sums(), _Sums()) for shard in peers.own_shards}
        self._shift_gp = self._shift_gq = torch.empty(0)
        self._resolution = 0.0

    @property
    def rows(self) -> int:
        """Observations so far, of this process."""
        return sum(fit.rows + held.rows for fit, held in self._of_shards.values())

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor, rank: int = 0) -> None:
        """Add the observations of the batch of that rank. Cost: r·p·(p / 2 + q) for each group."""
        split = len(x_bsgp) - len(x_bsgp) // HELD_OUT
        resolution = ROUNDING * torch.finfo(x_bsgp.dtype).eps
        x_bsgp, y_bsgq = (
            widened(each)
            if x_bsgp.shape[-1] <= MOST_EXACT
            else each.to(torch.promote_types(each.dtype, torch.float32))
            for each in (x_bsgp, y_bsgq)
        )
        if not self.rows:
            self._shift_gp, self._shift_gq = (each[:split].mean((0, 1)) for each in (x_bsgp, y_bsgq))
            self._peers.write([self._shift_gp, self._shift_gq])
            self._resolution = resolution
        x_bsgp, y_bsgq = x_bsgp - self._shift_gp, y_bsgq - self._shift_gq
        fit, held = self._of_shards[rank % self._peers.shards]
        fit.add(x_bsgp[:split], y_bsgq[:split])
        if split < len(x_bsgp):
            held.add(x_bsgp[split:], y_bsgq[split:])

    def moments(self) -> SplitMoments:
        """Return the moments of all that was added, in all processes."""
        fit, held = (self._summed(part) for part in zip(*self._of_shards.values(), strict=True))
        parts = (fit, held, fit.joined(held)) if held.rows else (fit,)
        shifts = self._shift_gp, self._shift_gq
        of_fit, *others = (each.moments(*shifts, resolution=self._resolution) for each in parts)
        return SplitMoments(others[1], of_fit, others[0]) if others else SplitMoments(of_fit, None, None)

    def _summed(self, shards: Sequence[_Sums]) -> _Sums:
        if self._peers.shards == 1:
            return shards[0]
        whole = _Sums.zeros(self._shift_gp, self._shift_gq)
        for each in shards:
            whole = whole.joined(each) if each.rows else whole
        rows = torch.tensor(whole.rows)
        self._peers.sum([rows, *whole.sums])
        return _Sums(int(rows), whole.sums)


@final
class _Sums:
    """Sums of x, y, x·x, x·y and y², of observations about their shifts."""

    def __init__(self, rows: int = 0, sums: Sequence[Tensor] = ()) -> None:
        self.rows = rows
        self.sums = sums

    @classmethod
    def zeros(cls, x_gp: Tensor, y_gq: Tensor) -> _Sums:
        """Return sums of nothing, of the shapes and types of these."""
        (groups, p), q = x_gp.shape, y_gq.shape[1]
        shapes = ((p,), (q,), (p, p), (p, q), (q,))
        return cls(0, [widened(x_gp.new_zeros(groups, *shape)) for shape in shapes])

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        x_grp, y_grq = (each.flatten(0, 1).movedim(0, 1) for each in (x_bsgp, y_bsgq))
        with torch.autocast(x_grp.device.type, enabled=False):
            found = x_grp.sum(1), y_grq.sum(1), gram(x_grp), x_grp.mT @ y_grq, y_grq.square().sum(1)
        if self.rows:
            for mine, theirs in zip(self.sums, found, strict=True):
                mine.add_(theirs)
        else:
            self.sums = [widened(each) for each in found]
        self.rows += x_grp.shape[1]

    def joined(self, other: _Sums) -> _Sums:
        """Return the sums of both."""
        sums = [mine + theirs for mine, theirs in zip(self.sums, other.sums, strict=True)]
        return _Sums(self.rows + other.rows, sums)

    def moments(self, shift_gp: Tensor, shift_gq: Tensor, *, resolution: float) -> JointMoments:
        x_gp, y_gq, xx_gpp, xy_gpq, yy_gq = (each / self.rows for each in self.sums)
        mean_gp = shift_gp + x_gp
        xx_gpp.baddbmm_(x_gp[:, :, None], x_gp[:, None, :], alpha=-1)
        xy_gpq.baddbmm_(x_gp[:, :, None], y_gq[:, None, :], alpha=-1)
        # What varies by rounding alone is constant: it explains nothing.
        constant_gp = xx_gpp.diagonal(dim1=1, dim2=2) <= (resolution * mean_gp).square()
        if bool(constant_gp.any()):
            xx_gpp.masked_fill_(constant_gp[:, :, None] | constant_gp[:, None, :], 0.0)
            xy_gpq.masked_fill_(constant_gp[:, :, None], 0.0)
        return JointMoments(self.rows, mean_gp, shift_gq + y_gq, xx_gpp, xy_gpq, yy_gq - y_gq.square())


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
