"""Rows of units, of the inputs of modules and of weights, and their moments, streamed.

Activations are never kept. Shape letters: b items, c channels, d features or all elements of a unit, r rows,
n units, k columns per unit, u units of a group, f elements of a unit along an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, observe_inputs, widened
from tpsprune.numerics.peers import AbstractPeers, whole

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BLOCK: Final = 256
"""Columns up to which one product does better than halves of one."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moments of n units over ``rows`` observations.

    ``covariance_nn`` is biased: the sum of centred products divided by ``rows``. Both tensors lie on
    the model's device, in float64 (float32 where the device has none).
    """

    rows: int
    mean_n: Tensor
    covariance_nn: Tensor


def as_rows(
    inputs: Tensor, width: int, *, channels_first: bool | None = None, block: int | None = None
) -> Tensor:
    """Lay out a module's inputs as observations of ``width`` units, ``rows_rn``.

    Channels first (b, c = n, …): one row per item and position. Features last (…, d): with d = n one
    row per leading index; with d = n·k, as after a flattened convolution, unit i owns the columns
    i·k … i·k + k − 1, and each of the k gives a row. Where the units stand there several times over, as
    embeddings of two tokens side by side do, ``block`` says how many columns of one time are a unit's.

    Args:
        inputs: of a module.
        width: n, the number of units.
        channels_first: whether axis 1 holds the units; ``None`` takes that to be so where the tensor
            has four axes or more and axis 1 is ``width`` long.
        block: columns beside one another that belong to one unit; ``None`` takes all of a unit's to be so.

    Raises:
        ValueError: the axis of the units is neither ``width`` nor a multiple of it.
    """
    if channels_first is None:
        channels_first = inputs.ndim >= 4 and inputs.shape[1] == width
    found = inputs.shape[1 if channels_first else -1]
    if found % (width * (block or 1)) or (channels_first and found != width):
        raise ValueError(f"an input of shape {tuple(inputs.shape)} does not hold {width} units")
    if channels_first:
        return inputs.movedim(1, -1).reshape(-1, width)
    per_unit = block or found // width
    if per_unit == 1:
        return inputs.reshape(-1, width)
    return inputs.reshape(-1, width, per_unit).transpose(1, 2).reshape(-1, width)


def input_moments(
    model: nn.Module,
    batches: Iterable[Any],
    widths: Mapping[str, int],
    blocks: Mapping[str, int] | None = None,
) -> dict[str, Moments]:
    """Return the moments of the input of each module named in ``widths``, which holds its unit count.

    One forward pass per batch, in evaluation mode and without gradients. Convolutions are read channels
    first, all else features last (``as_rows``, with the ``blocks`` of modules that have one). A module
    called several times in a pass adds up its calls; one that no pass calls is left out.

    Sums are taken in double precision about the first call's mean, so that units far from zero lose
    no digits. Not finite inputs give not finite moments.

    Cost: the forward passes, and r·n² multiply-adds for each module.

    Raises:
        ValueError: an input does not hold the units that ``widths`` promises.
    """
    sums = {name: MomentSums() for name in widths}

    def add(name: str, inputs: Tensor) -> None:
        channels_first = isinstance(model.get_submodule(name), CONVOLUTIONS)
        block = (blocks or {}).get(name)
        sums[name].add(as_rows(inputs, widths[name], channels_first=channels_first, block=block))

    with torch.no_grad(), evaluation_mode(model), observe_inputs(model, widths, add):
        for batch in batches:
            call_model(model, batch)
    return {name: each.moments() for name, each in sums.items() if each.rows}


def gram(rows_rn: Tensor) -> Tensor:
    """Return ``rows_rnᵀ rows_rn``, of wide matrices the upper half alone computed; axes before r are a batch.

    Cost: r·n² for few columns, towards half of that for many.
    """
    columns = rows_rn.shape[-1]
    gram_nn = rows_rn.new_empty(*rows_rn.shape[:-2], columns, columns)
    _write_gram(rows_rn, gram_nn)
    return gram_nn


def _write_gram(rows_rn: Tensor, gram_nn: Tensor) -> None:
    columns = rows_rn.shape[-1]
    if columns <= BLOCK:
        torch.matmul(rows_rn.mT, rows_rn, out=gram_nn)
        return
    half = (columns + 1) // 2
    left_rn, right_rn = rows_rn[..., :half], rows_rn[..., half:]
    _write_gram(left_rn, gram_nn[..., :half, :half])
    _write_gram(right_rn, gram_nn[..., half:, half:])
    torch.matmul(left_rn.mT, right_rn, out=gram_nn[..., :half, half:])
    gram_nn[..., half:, :half] = gram_nn[..., :half, half:].mT


@final
class MomentSums:
    """Running sums about the first mean, so that units far from zero lose no digits; or about ``shift_n``."""

    def __init__(self, shift_n: Tensor | None = None) -> None:
        self.rows = 0
        self._shift_n = self._sum_n = self._products_nn = torch.empty(0)
        if shift_n is not None:
            self._begin(widened(shift_n))

    def add(self, rows_rn: Tensor) -> None:
        """Take in observations.

        Cost: r·n².
        """
        rows_rn = widened(rows_rn)
        if not len(self._shift_n):
            self._begin(rows_rn.mean(0))
        shifted_rn = rows_rn - self._shift_n
        self.rows += len(shifted_rn)
        self._sum_n += shifted_rn.sum(0)
        self._products_nn += gram(shifted_rn)

    def _begin(self, shift_n: Tensor) -> None:
        self._shift_n = shift_n
        self._sum_n = torch.zeros_like(shift_n)
        self._products_nn = shift_n.new_zeros(len(shift_n), len(shift_n))

    @classmethod
    def summed(cls, shards: Sequence[MomentSums], peers: AbstractPeers) -> MomentSums:
        """Return the sums over the shards of this process and of all others; all about one shift."""
        if peers.shards == 1:
            return shards[0]
        whole = cls(shards[0]._shift_n)
        for each in shards:
            whole.rows += each.rows
            whole._sum_n += each._sum_n
            whole._products_nn += each._products_nn
        rows = torch.tensor(whole.rows)
        peers.sum([rows, whole._sum_n, whole._products_nn])
        whole.rows = int(rows)
        return whole

    def moments(self) -> Moments:
        """Return the moments of all that was added."""
        offset_n = self._sum_n / self.rows
        covariance_nn = (self._products_nn / self.rows).addr_(offset_n, offset_n, alpha=-1)
        return Moments(self.rows, self._shift_n + offset_n, covariance_nn)


@dataclass(frozen=True, slots=True, eq=False)
class Elements:
    """Which elements along one axis of a tensor of the model belong to each unit of a group."""

    tensor: str
    axis: int
    index_uf: Tensor


def unit_rows(model: nn.Module, parts: Iterable[Elements]) -> Tensor:
    """Return ``rows_ud``: all elements of each unit, tensor after tensor, in single precision."""
    held = model.state_dict()
    rows = []
    for part in parts:
        tensor = whole(held[part.tensor]).movedim(part.axis, 0)
        rows.append(tensor[part.index_uf.to(tensor.device)].flatten(1).to(torch.float32))
    return torch.cat(rows, 1)
