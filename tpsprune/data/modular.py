"""Modular arithmetic: every pair of residues, and the residue that an operation makes of them.

Source: Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
(arXiv:2201.02177), section 3.1. Shapes: n pairs, 2 tokens.
"""

from __future__ import annotations

from typing import assert_never

from torch import Tensor

from tpsprune.data.splits import Dataset
from tpsprune.data.tables import all_pairs, table_dataset
from tpsprune.recipe.task import ModularData, Operation

__all__ = ["answers", "modular_dataset"]


def answers(pairs_n2: Tensor, operation: Operation, modulus: int) -> Tensor:
    """Return a∘b mod ``modulus`` for each pair, (n,) int64.

    >>> import torch
    >>> answers(torch.tensor([[2, 6], [3, 3]]), "a2+ab+b2", 7).tolist()
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
        answers(all_pairs(data.modulus), data.operation, data.modulus),
        cyclic=data.operation in {"add", "subtract"},
    )
