"""The whole table of a binary operation on a finite set: some pairs are trained on, the rest held out.

Shapes: n pairs, 2 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.data.splits import Dataset, Split, held_out_parted, parted
from tpsprune.recipe.task import ModularData
from tpsprune.records import TaskFacts

__all__ = ["all_pairs", "table_dataset"]


def all_pairs(elements: int) -> Tensor:
    """Return the pairs (elements², 2) of element ids, int64, the second running fastest.

    >>> all_pairs(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    ids = torch.arange(elements)
    return torch.cartesian_prod(ids, ids)


def table_dataset(data: ModularData, name: str, elements: int, answers_n: Tensor, *, cyclic: bool) -> Dataset:
    """Return all pairs with ``answers_n`` in their order, ``train_share`` drawn with ``split_seed``.

    ``relabel`` renames elements after the draw, by one permutation for both tokens and another for
    answers: the same pairs are trained on, under other names. ``cyclic`` says whether the ids stand in
    cyclic order under their own names.

    Raises:
        DataError: a split would be empty.
    """
    generator = torch.Generator().manual_seed(data.split_seed)
    pairs_n2 = all_pairs(elements)
    order_n = torch.randperm(pairs_n2.shape[0], generator=generator)
    if data.relabel:
        pairs_n2 = torch.randperm(elements, generator=generator)[pairs_n2]
        answers_n = torch.randperm(elements, generator=generator)[answers_n]
    held_out, train = parted(Split(pairs_n2, answers_n), order_n, data.train_share, "task.data.train_share")
    return held_out_parted(
        name + ("-relabelled" if data.relabel else ""),
        TaskFacts(
            input_kind="tokens",
            input_shape=(2,),
            classes=elements,
            vocabulary=elements,
            cyclic=cyclic and not data.relabel,
        ),
        train,
        held_out,
        data.validation_share,
    )
