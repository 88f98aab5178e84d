"""Brackets that may be left open: how deep one is inside them at the end, the depth of the Dyck-1 language.

Shapes: n sequences, l brackets, r brackets still to come, d open ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset, Split
from tpsprune.data.drawing import distinct, drawn_dataset, require_room
from tpsprune.recipe.task import BracketsData
from tpsprune.records import TaskFacts

__all__ = ["brackets_dataset", "continuations", "depths", "sequences"]


def continuations(length: int) -> Tensor:
    """Return how many ways (length + 1, length + 2) to go on with r brackets there are where d are open.

    Never is more closed than is open: N[0, d] = 1, N[r, d] = N[r − 1, d + 1] + N[r − 1, d − 1], the second
    for d > 0 only. N[l, 0] is the binomial coefficient of l and ⌊l/2⌋. Exact up to a length of 62, for the
    depths that l − r brackets can reach.

    >>> [int(continuations(length)[length, 0]) for length in (1, 2, 3, 4, 24)]
    [1, 2, 3, 6, 2704156]
    """
    ways_rd = torch.ones(length + 1, length + 2, dtype=torch.int64)
    for to_come in range(1, length + 1):
        # Deeper than the brackets before allow is never asked for.
        most = length - to_come + 1
        before_d = ways_rd[to_come - 1]
        ways_rd[to_come, :most] = before_d[1 : most + 1]
        ways_rd[to_come, 1:most] += before_d[: most - 1]
    return ways_rd


def sequences(ranks_n: Tensor, length: int) -> Tensor:
    """Return the sequences (n, length) at these places of the dictionary: 0 opens a bracket, 1 closes one.

    The dictionary has all sequences in which never is more closed than is open, those that open first. Cost:
    one pass over the length.

    >>> sequences(torch.arange(3), 3).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    """
    ways_rd = continuations(length)
    rest_n = ranks_n.clone()
    depth_n = torch.zeros_like(ranks_n)
    brackets: list[Tensor] = []
    for to_come in range(length - 1, -1, -1):
        opening_n = ways_rd[to_come, depth_n + 1]
        closes_n = (rest_n >= opening_n).long()
        rest_n -= closes_n * opening_n
        depth_n += 1 - 2 * closes_n
        brackets.append(closes_n)
    return torch.stack(brackets, dim=1)


def depths(brackets_nl: Tensor) -> Tensor:
    """Return how many brackets (n,) are open at the end.

    >>> depths(torch.tensor([[0, 0, 0], [0, 1, 0]])).tolist()
    [3, 1]
    """
    return (1 - 2 * brackets_nl).sum(1)


def brackets_dataset(data: BracketsData) -> Dataset:
    """Return sequences drawn with ``split_seed`` from all that there are, none twice, and their depth.

    All are as likely, so that middling depths are common and the greatest is there at most once. A depth is
    odd or even with the length: class c stands for the depth 2c, or 2c + 1 where the length is odd.

    Raises:
        DataError: there are not so many sequences, or a split would be empty.
    """
    total = int(continuations(data.length)[data.length, 0])
    require_room(data, total, f"{data.length} brackets")
    generator = torch.Generator().manual_seed(data.split_seed)
    brackets_nl = sequences(distinct(total, data.items + data.held_out, generator), data.length)
    return drawn_dataset(
        data,
        f"brackets-{data.length}",
        TaskFacts(
            input_kind="tokens", input_shape=(data.length,), classes=data.length // 2 + 1, vocabulary=2
        ),
        Split(brackets_nl, depths(brackets_nl) // 2),
    )
