"""Modular arithmetic: every pair of residues, and the residue that an operation makes of them.

Source: Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
(arXiv:2201.02177), section 3.1. Shapes: n pairs, 2 tokens.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from tpsprune.data.preparation import Preparation
from tpsprune.data.splits import Dataset, Split, parted
from tpsprune.recipe.task import ModularData, Operation
from tpsprune.records import TaskFacts

__all__ = ["all_pairs", "answers", "modular_dataset"]


def all_pairs(modulus: int) -> Tensor:
    """Return the pairs (modulus², 2) of residues, int64, the second running fastest.

    >>> all_pairs(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    residues = torch.arange(modulus)
    return torch.cartesian_prod(residues, residues)


def answers(pairs_n2: Tensor, operation: Operation, modulus: int) -> Tensor:
    """Return a∘b mod ``modulus`` for each pair, (n,) int64.

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

    ``relabel`` renames residues after the draw, by one permutation for both tokens and another for
    answers: the same pairs are trained on, under other names. ``facts.cyclic`` holds for sums and
    differences under their own names: the tokens of other operations are ordered on no circle.

    Raises:
        DataError: a split would be empty.
    """
    modulus = data.modulus
    generator = torch.Generator().manual_seed(data.split_seed)
    pairs = all_pairs(modulus)
    order = torch.randperm(pairs.shape[0], generator=generator)
    labels = answers(pairs, data.operation, modulus)
    if data.relabel:
        pairs = torch.randperm(modulus, generator=generator)[pairs]
        labels = torch.randperm(modulus, generator=generator)[labels]
    held_out, train = parted(Split(pairs, labels), order, data.train_share, "task.data.train_share")
    in_order = torch.arange(len(held_out))
    test, validation = parted(held_out, in_order, data.validation_share, "task.data.validation_share")
    return Dataset(
        name=f"modular-{data.operation}-{modulus}" + ("-relabelled" if data.relabel else ""),
        facts=TaskFacts(
            input_kind="tokens",
            input_shape=(2,),
            classes=modulus,
            vocabulary=modulus,
            cyclic=not data.relabel and data.operation in {"add", "subtract"},
        ),
        train=train,
        validation=validation,
        test=test,
        prepare=Preparation(),
    )
