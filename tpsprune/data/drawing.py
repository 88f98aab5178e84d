"""Items drawn from a set too large to be listed, no one twice: some are trained on, the others held out.

Shapes: n items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpsprune.data.dataset import Dataset, Split, hold_out
from tpsprune.errors import DataError
from tpsprune.recipe.task import BracketsData, ParityData
from tpsprune.records import TaskFacts

__all__ = ["LARGEST", "distinct", "drawn_dataset", "require_room"]

LARGEST = 2**62
LISTED = 2**22


def distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` different whole numbers (n,) below ``total``, int64, every order of them as likely.

    ``total`` is ``LARGEST`` at most, ``count`` no more than ``total``. Up to some millions are shuffled;
    above that numbers are drawn until enough of them are new, in a few rounds unless most are wanted.
    """
    if total <= LISTED:
        return torch.randperm(total, generator=generator)[:count]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        drawn = torch.randint(LARGEST, (count,), generator=generator)
        # Of the numbers above the last whole multiple of the total some remainders would be likelier.
        drawn = drawn[drawn < LARGEST - LARGEST % total] % total
        found = _first_of_equals(torch.cat((found, drawn)))
    return found[:count]


def require_room(data: ParityData | BracketsData, total: int, made_of: str) -> None:
    """Refuse more items than ``total``, which is how many ``made_of`` make.

    Raises:
        DataError: naming both counts.
    """
    if data.items + data.held_out > total:
        raise DataError(
            f"task.data: {data.items} items and {data.held_out} held out are more than the {total} that "
            f"{made_of} make; fewer would do"
        )


def drawn_dataset(data: ParityData | BracketsData, name: str, facts: TaskFacts, drawn: Split) -> Dataset:
    """Return the first ``items`` of ``drawn`` as training split, the others held out.

    Raises:
        DataError: validation or test would be empty.
    """
    places_n = torch.arange(len(drawn))
    train, held_out = drawn.at(places_n[: data.items]), drawn.at(places_n[data.items :])
    return hold_out(name, facts, train, held_out, data.validation_share)


def _first_of_equals(numbers_n: Tensor) -> Tensor:
    """Return each number where it comes first, in that order."""
    order_n = numbers_n.argsort(stable=True)
    sorted_n = numbers_n[order_n]
    new_n = torch.ones_like(sorted_n, dtype=torch.bool)
    new_n[1:] = sorted_n[1:] != sorted_n[:-1]
    return numbers_n[order_n[new_n].sort().values]
