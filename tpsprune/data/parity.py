"""Sparse parity: signs in, of which a few that are not pointed out multiply to the answer.

Source: Barak et al. 2022, "Hidden Progress in Deep Learning: SGD Learns Parities Near the Computational
Limit" (arXiv:2207.08799); here a fixed set of items, held out or trained on, in place of a stream.
Shapes: n items, b bits, k bits of the support.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset, Split
from tpsprune.data.drawing import LARGEST, distinct, drawn_dataset, require_room
from tpsprune.errors import DataError
from tpsprune.recipe.task import ParityData
from tpsprune.records import TaskFacts

__all__ = ["parities", "parity_dataset"]


def parities(signs_nb: Tensor, support_k: Tensor) -> Tensor:
    """Return the class (n,) of each row of signs: 0 where those of the support multiply to 1, 1 where to −1.

    >>> parities(torch.tensor([[1, -1, -1], [-1, -1, -1]]), torch.tensor([0, 2])).tolist()
    [1, 0]
    """
    return (signs_nb[:, support_k].prod(1) < 0).long()


def parity_dataset(data: ParityData) -> Dataset:
    """Return rows of ``bits`` signs 1 and −1, float32, no row twice, and the parity of a hidden support.

    ``split_seed`` draws the support, then the rows: with other counts of items it is the same support.

    Raises:
        DataError: the support is larger than a row, there are not so many rows, or a split would be empty.
    """
    if data.support > data.bits:
        raise DataError(
            f"task.data.support: {data.support} of {data.bits} bits; {data.bits} at most would do"
        )
    require_room(data, 2**data.bits, f"{data.bits} bits")
    generator = torch.Generator().manual_seed(data.split_seed)
    support_k = torch.randperm(data.bits, generator=generator)[: data.support]
    signs_nb = 1.0 - 2.0 * _bits(data.items + data.held_out, data.bits, generator)
    return drawn_dataset(
        data,
        f"parity-{data.support}-of-{data.bits}",
        TaskFacts(input_kind="vector", input_shape=(data.bits,), classes=2),
        Split(signs_nb, parities(signs_nb, support_k)),
    )


def _bits(count: int, bits: int, generator: torch.Generator) -> Tensor:
    """Return different rows (n, b) of zeros and ones: numbers in binary, and of long rows bits after that."""
    leading = min(bits, LARGEST.bit_length() - 1)
    numbers_n = distinct(2**leading, count, generator)
    digits_nb = numbers_n[:, None] >> torch.arange(leading) & 1
    others_nb = torch.randint(2, (count, bits - leading), generator=generator)
    return torch.cat((digits_nb, others_nb), dim=1)
