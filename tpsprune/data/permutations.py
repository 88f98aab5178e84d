"""Composition in the symmetric group: every pair of permutations of a few things, and one after the other.

Source: Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
(arXiv:2201.02177), there of five things. Shapes: g permutations, d things.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset
from tpsprune.data.modular import table_dataset
from tpsprune.recipe.task import PermutationsData

__all__ = ["all_permutations", "composition_table", "permutations_dataset"]


def all_permutations(degree: int) -> Tensor:
    """Return the permutations (degree!, degree) in dictionary order; row g maps x to its entry x.

    >>> all_permutations(3).tolist()
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    """
    return torch.tensor(list(permutations(range(degree))))


def composition_table(degree: int) -> Tensor:
    """Return the ids (degree!, degree!) of a∘b, which maps x to a(b(x)): b first, then a.

    >>> composition_table(3)[1].tolist()
    [1, 0, 4, 5, 2, 3]
    """
    maps_gd = all_permutations(degree)
    composed_ggd = maps_gd[:, maps_gd]
    # Written as numbers to the base of the degree, permutations in dictionary order are sorted.
    digits_d = degree ** torch.arange(degree - 1, -1, -1)
    return torch.searchsorted((maps_gd * digits_d).sum(-1), (composed_ggd * digits_d).sum(-1))


def permutations_dataset(data: PermutationsData) -> Dataset:
    """Return all pairs of permutations with a∘b, ``train_share`` of them drawn with ``split_seed``.

    Tokens and classes are the permutations in dictionary order, or renamed; on a circle they never are.

    Raises:
        DataError: a split would be empty.
    """
    table_gg = composition_table(data.degree)
    return table_dataset(data, f"permutations-{data.degree}", len(table_gg), table_gg.flatten(), cyclic=False)
