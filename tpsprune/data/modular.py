"""The whole table of a binary operation on a finite set, and modular arithmetic, which is such a table.

Some pairs are trained on, the rest held out. Source of the arithmetic: Power et al. 2022, "Grokking:
Generalization Beyond Overfitting on Small Algorithmic Datasets" (arXiv:2201.02177), section 3.1.
Shapes: n pairs, 2 tokens.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset, Split, hold_out, split_off
from tpsprune.recipe.task import ModularData, Operation
from tpsprune.records import TaskFacts


def results_of(pairs_n2: Tensor, operation: Operation, modulus: int) -> Tensor:
    """Return a∘b mod ``modulus`` for each pair, (n,) int64.

    >>> import torch
    >>> results_of(torch.tensor([[2, 6], [3, 3]]), "a2+ab+b2", 7).tolist()
    [3, 6]
    """
    a, b = pairs_n2.unbind(1)
    match operation:
        case "add":
            value = a + b
        case "subtract":
            value = a - b
        case "multiply":
            value = a * b
        case "a2+b2":
            value = a * a + b * b
        case "a2+ab+b2":
            value = a * a + a * b + b * b
        case "a3+ab":
            value = a * a * a + a * b
        case _:
            assert_never(operation)
    return value.remainder(modulus)


def modular_dataset(data: ModularData) -> Dataset:
    """Return all pairs, ``train_share`` of them drawn with ``split_seed``, the rest held out.

    ``facts.cyclic`` holds for sums and differences under their own names: the tokens of other operations are
    ordered on no circle.

    Raises:
        DataError: a split would be empty.
    """
    return table_dataset(
        data,
        f"modular-{data.operation}-{data.modulus}",
        data.modulus,
        results_of(all_pairs(data.modulus), data.operation, data.modulus),
        cyclic=data.operation in {"add", "subtract"},
    )


def all_pairs(elements: int) -> Tensor:
    """Return the pairs (elements², 2) of element ids, int64, the second running fastest.

    >>> all_pairs(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    ids = torch.arange(elements)
    return torch.cartesian_prod(ids, ids)


def table_dataset(data: ModularData, name: str, elements: int, labels_n: Tensor, *, cyclic: bool) -> Dataset:
    """Return all pairs with ``labels_n`` in their order, ``train_share`` drawn with ``split_seed``.

    ``relabel`` renames elements after the draw, by one permutation for both tokens and another for
    labels: the same pairs are trained on, under other names. ``cyclic``: whether the ids have a
    cyclic order under their own names.

    Raises:
        DataError: a split would be empty.
    """
    generator = torch.Generator().manual_seed(data.split_seed)
    pairs_n2 = all_pairs(elements)
    order_n = torch.randperm(pairs_n2.shape[0], generator=generator)
    if data.relabel:
        pairs_n2 = torch.randperm(elements, generator=generator)[pairs_n2]
        labels_n = torch.randperm(elements, generator=generator)[labels_n]
    held_out, train = split_off(Split(pairs_n2, labels_n), order_n, data.train_share, "task.data.train_share")
    return hold_out(
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
