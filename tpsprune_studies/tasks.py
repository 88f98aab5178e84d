"""Data of the studies: structured tasks, and English at hand everywhere; each for ``kind = "custom"``.

    [task.data]
    kind = "custom"
    factory = "tpsprune_studies.tasks:parity"
    data_args = { bits = 40, support = 2, items = 300 }

``split_seed`` among ``data_args`` samples items and splits; ``validation_share`` is the share of what is held
out that decisions use, the rest is the test. Shapes: n items.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import permutations as permutations_of
from pydoc_data.topics import topics
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tpsprune.data import load
from tpsprune.data.dataset import Split, split_off
from tpsprune.data.images import digits
from tpsprune.errors import DataError
from tpsprune.numerics.trees import Tree, at
from tpsprune.recipe.task import CustomData, Data, IdxData, split_by

LARGEST: Final = 2**62
LISTED: Final = 2**22
FASHION_ITEMS: Final = 60_000
MODULE: Final = "tpsprune_studies.tasks"


def split_data(data: Data, seed: int) -> Data:
    """Return the data sampled and split by another seed; a text, which is split where it lies, as it is."""
    if isinstance(data, CustomData) and _structured(data):
        data = replace(data, data_args={**data.data_args, "split_seed": seed})
    return split_by(data, seed)


def describe_data(data: Data) -> dict[str, Any]:
    """Return the data as plain values without seed and bounds, under the names that existing journals use."""
    described = {name: each for name, each in asdict(data).items() if name not in {"split_seed", "max_bytes"}}
    if isinstance(data, CustomData) and (factory := _structured(data)):
        arguments = inspect.signature(factory).bind(**data.data_args)
        arguments.apply_defaults()
        named = {name: value for name, value in arguments.arguments.items() if name != "split_seed"}
        return {"kind": factory.__name__, **named}
    if isinstance(data, CustomData) and data.factory == f"{MODULE}:windows":
        described["factory"] = "tpsprune.studies.text:windows"
    return described


def _structured(data: CustomData) -> Callable[..., Any] | None:
    factories = (permutations, parity, brackets, small_fashion, digit_pairs)
    return {f"{MODULE}:{each.__name__}": each for each in factories}.get(data.factory)


def all_permutations(degree: int) -> Tensor:
    """Return the permutations (degree!, degree) in dictionary order; row g maps x to its entry x.

    >>> all_permutations(3).tolist()
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    """
    return torch.tensor(list(permutations_of(range(degree))))


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


def permutations(
    degree: int = 5,
    train_share: float = 0.5,
    validation_share: float = 0.5,
    *,
    relabel: bool = False,
    split_seed: int = 0,
) -> Mapping[str, Any]:
    """Return all pairs (a, b) of permutations of 3 to 5 things with the class a∘b, b first.

    Tokens and classes are the permutations in dictionary order (of five 120, 14,400 pairs), ordered on no
    circle; ``relabel`` renames them after the split, tokens by one permutation and classes by another.

    Raises:
        DataError: an argument is out of bounds, or a split would be empty.

    Source: Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
    (arXiv:2201.02177), there of five things.
    """
    require_between("degree", degree, 3, 5)
    classes_n = composition_table(degree).flatten()
    elements = round(len(classes_n) ** 0.5)
    ids = torch.arange(elements)
    pairs_n2 = torch.cartesian_prod(ids, ids)
    generator = torch.Generator().manual_seed(split_seed)
    order_n = torch.randperm(len(classes_n), generator=generator)
    if relabel:
        pairs_n2 = torch.randperm(elements, generator=generator)[pairs_n2]
        classes_n = torch.randperm(elements, generator=generator)[classes_n]
    held_out, train = split_off(Split(pairs_n2, classes_n), order_n, train_share, "train_share")
    return {
        **_divide(train, held_out, validation_share),
        "classes": elements,
        "vocabulary": elements,
        "input_kind": "tokens",
    }


def parity(
    bits: int = 40,
    support: int = 2,
    items: int = 1000,
    held_out: int = 2000,
    validation_share: float = 0.5,
    *,
    split_seed: int = 0,
) -> Mapping[str, Any]:
    """Return rows of ``bits`` signs 1 and −1, float32, no row twice, and the parity of a hidden support.

    Class 0 where the ``support`` signs that count multiply to 1, class 1 where to −1. ``split_seed`` samples
    the support, then the rows: with other counts of items it is the same support. ``items`` are trained on.

    Raises:
        DataError: an argument is out of bounds, there are not so many rows, or a split would be empty.

    Source: Barak et al. 2022, "Hidden Progress in Deep Learning: SGD Learns Parities Near the Computational
    Limit" (arXiv:2207.08799); here a fixed set of items, held out or trained on, in place of a stream.
    """
    require_between("bits", bits, 2, 4096)
    require_between("support", support, 1, bits)
    require_room(items, held_out, 2**bits, f"{bits} bits")
    generator = torch.Generator().manual_seed(split_seed)
    support_k = torch.randperm(bits, generator=generator)[:support]
    # Rows are numbers in binary, and of long rows random bits after that.
    leading = min(bits, LARGEST.bit_length() - 1)
    numbers_n = distinct(2**leading, items + held_out, generator)
    leading_nb = numbers_n[:, None] >> torch.arange(leading) & 1
    others_nb = torch.randint(2, (items + held_out, bits - leading), generator=generator)
    signs_nb = 1.0 - 2.0 * torch.cat((leading_nb, others_nb), dim=1)
    classes_n = (signs_nb[:, support_k].prod(1) < 0).long()
    return {
        **divide_held_out(signs_nb, classes_n, items, validation_share),
        "classes": 2,
        "input_kind": "vector",
    }


def brackets(
    length: int = 24,
    items: int = 50,
    held_out: int = 5000,
    validation_share: float = 0.5,
    *,
    split_seed: int = 0,
) -> Mapping[str, Any]:
    """Return sequences of brackets, never more closed than open, none twice, and the depth at the end.

    All sequences are equally likely, so that middling depths are common and the greatest is there at most
    once. A depth is odd or even with the length: class c stands for the depth 2c, or 2c + 1 where the length
    is odd. Token 0 opens, 1 closes. The task is the depth of the Dyck-1 language; ``items`` are trained on.

    Raises:
        DataError: an argument is out of bounds, there are not so many sequences, or a split would be empty.
    """
    require_between("length", length, 2, 62)
    total = int(continuations(length)[length, 0])
    require_room(items, held_out, total, f"{length} brackets")
    generator = torch.Generator().manual_seed(split_seed)
    brackets_nl = sequences(distinct(total, items + held_out, generator), length)
    depths_n = (1 - 2 * brackets_nl).sum(1)
    return {
        **divide_held_out(brackets_nl, depths_n // 2, items, validation_share),
        "classes": length // 2 + 1,
        "vocabulary": 2,
        "input_kind": "tokens",
    }


def continuations(length: int) -> Tensor:
    """Return how many ways (length + 1, length + 2) there are to go on with r brackets where d are open.

    N[0, d] = 1, N[r, d] = N[r − 1, d + 1] + N[r − 1, d − 1], the second for d > 0 only. N[l, 0] is the
    binomial coefficient of l and ⌊l/2⌋. Exact up to a length of 62, for the depths that l − r brackets reach.

    >>> [int(continuations(length)[length, 0]) for length in (1, 2, 3, 4, 24)]
    [1, 2, 3, 6, 2704156]
    """
    ways_rd = torch.ones(length + 1, length + 2, dtype=torch.int64)
    for to_come in range(1, length + 1):
        # Deeper than the brackets before allow is never needed.
        most = length - to_come + 1
        before_d = ways_rd[to_come - 1]
        ways_rd[to_come, :most] = before_d[1 : most + 1]
        ways_rd[to_come, 1:most] += before_d[: most - 1]
    return ways_rd


def sequences(ranks_n: Tensor, length: int) -> Tensor:
    """Return the sequences (n, length) at these places of the dictionary: those that open first come first.

    The dictionary has all sequences in which never more is closed than open. Cost: one pass over the length.

    >>> sequences(torch.arange(3), 3).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    """
    ways_rd = continuations(length)
    rest_n = ranks_n.clone()
    depth_n = torch.zeros_like(ranks_n)
    columns: list[Tensor] = []
    for to_come in range(length - 1, -1, -1):
        opening_n = ways_rd[to_come, depth_n + 1]
        closes_n = (rest_n >= opening_n).long()
        rest_n -= closes_n * opening_n
        depth_n += 1 - 2 * closes_n
        columns.append(closes_n)
    return torch.stack(columns, dim=1)


def distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different whole numbers (n,) below ``total``, int64, every order of them as likely.

    ``total`` is ``LARGEST`` at most, ``count`` no more than ``total``. Up to some millions are shuffled;
    above that numbers are sampled until enough of them are new, in a few rounds unless most are wanted.
    """
    if total <= LISTED:
        return torch.randperm(total, generator=generator)[:count]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        sample = torch.randint(LARGEST, (count,), generator=generator)
        # Of the numbers above the last whole multiple of the total some remainders would be likelier.
        sample = sample[sample < LARGEST - LARGEST % total] % total
        found = _first_of_equals(torch.cat((found, sample)))
    return found[:count]


def _first_of_equals(numbers_n: Tensor) -> Tensor:
    """Return each number where it comes first, in that order."""
    order_n = numbers_n.argsort(stable=True)
    sorted_n = numbers_n[order_n]
    new_n = torch.ones_like(sorted_n, dtype=torch.bool)
    new_n[1:] = sorted_n[1:] != sorted_n[:-1]
    return numbers_n[order_n[new_n].sort().values]


def small_fashion(
    folder: str, items: int = 10_000, held_out: int = 2_000, *, split_seed: int = 0
) -> Mapping[str, Any]:
    """Return Fashion-MNIST at 14×14, uint8: the mean of every 2×2 pixels; the whole test split.

    ``items`` of the training split are trained on and ``held_out`` others validate, both sampled by class.

    Raises:
        DataError: ``folder`` does not hold the four IDX files, or too few images.
    """
    share = held_out / FASHION_ITEMS
    whole = load(IdxData(folder=folder, validation_share=share, train_limit=items, split_seed=split_seed))
    splits = {"train": whole.train, "validation": whole.validation, "test": whole.test}
    return {
        **{
            name: (avg_pool2d(split.inputs.float(), 2).round().byte(), split.labels)
            for name, split in splits.items()
        },
        "classes": whole.facts.classes,
    }


def digit_pairs(
    items: int = 4000, held_out: int = 2000, validation_share: float = 0.5, *, split_seed: int = 0
) -> Mapping[str, Any]:
    """Return two of scikit-learn's digits side by side, 8 × 16 in [0, 1], and the number that they write.

    The images are divided before pairs are sampled: six tenths make the pairs trained on, the rest those held
    out. ``split_seed`` divides and samples.

    Raises:
        DataError: an argument is out of bounds.
    """
    require_between("items", items, 1, LISTED)
    require_between("held_out", held_out, 1, LISTED)
    everything, generator = digits(), torch.Generator().manual_seed(split_seed)
    order_n = torch.randperm(len(everything), generator=generator)
    cut = 6 * len(order_n) // 10
    images, labels = [], []
    for part_n, count in ((order_n[:cut], items), (order_n[cut:], held_out)):
        left_n, right_n = (
            part_n[torch.randint(len(part_n), (count,), generator=generator)] for _ in range(2)
        )
        pair = torch.cat([everything.inputs[left_n], everything.inputs[right_n]], dim=3)
        images.append(pair.float() / 240)
        labels.append(10 * everything.labels[left_n] + everything.labels[right_n])
    return {**divide_held_out(torch.cat(images), torch.cat(labels), items, validation_share), "classes": 100}


def windows(length: int = 8, items: int = 20_000, seed: int = 0) -> Mapping[str, Any]:
    """Return windows of ``length`` characters of Python's own help texts, and the one that follows each.

    The text is divided before windows are taken, so that none held out overlaps one trained on: the first
    eight tenths are trained on (``items`` windows sampled by ``seed``), the ninth validates, the last tests.
    """
    text = "".join(topics.values())
    letters = sorted(set(text))
    ids = np.searchsorted(np.array(letters), np.array(list(text)))
    tenth = len(ids) // 10
    generator = np.random.default_rng(seed)
    splits: dict[str, Any] = {}
    for name, part, count in (
        ("train", ids[: 8 * tenth], items),
        ("validation", ids[8 * tenth : 9 * tenth], items // 10),
        ("test", ids[9 * tenth :], items // 10),
    ):
        rows = np.lib.stride_tricks.sliding_window_view(part, length + 1)
        rows = rows[generator.permutation(len(rows))[:count]]
        splits[name] = (rows[:, :-1].copy(), rows[:, -1].copy())
    return {**splits, "classes": len(letters), "vocabulary": len(letters), "input_kind": "tokens"}


def _divide(train: Split, held_out: Split, validation_share: float) -> dict[str, Any]:
    """Return what is trained on; and of what is held out the first for validation, the rest for test."""
    in_order = torch.arange(len(held_out))
    test, validation = split_off(held_out, in_order, validation_share, "validation_share")
    splits = {"train": train, "validation": validation, "test": test}
    return {name: (split.inputs, split.labels) for name, split in splits.items()}


def divide_held_out(inputs: Tree, labels: Tensor, items: int, validation_share: float) -> dict[str, Any]:
    """Return the first ``items`` to train on, the next for validation, the rest for test."""
    train, held_out = (Split(at(inputs, part), labels[part]) for part in (slice(items), slice(items, None)))
    return _divide(train, held_out, validation_share)


def require_between(name: str, value: int, least: int, most: int) -> None:
    """Refuse what is no whole number within both bounds.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, int) or not least <= value <= most:
        raise DataError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def require_room(items: int, held_out: int, total: int, made_of: str) -> None:
    """Refuse to take more items than there are, or none.

    Raises:
        DataError: there are not so many.
    """
    require_between("items", items, 1, LISTED)
    require_between("held_out", held_out, 1, LISTED)
    if items + held_out > total:
        raise DataError(
            f"{items} items and {held_out} held out are more than the {total} that {made_of} make; "
            "choose fewer"
        )
