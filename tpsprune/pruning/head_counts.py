"""How many heads an attention has: read from the whole numbers that modules remember, and from sizes.

Shape letters: h query heads, g query heads that share keys and values, d width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from tpsprune.pruning.projections import Attention, is_projection

__all__ = ["OF_ALL_HEADS", "Heads", "Number", "counts_heads", "head_counts", "is_width", "numbers_around"]

WIDTH_OF_HEAD: Final = re.compile(r"head_?(dim|size|width|features|channels)|(dim|d|size)_?head$|^d_kv$")
NUMBER_OF_HEADS: Final = re.compile(r"head|^n?h$")
OF_ALL_HEADS: Final = re.compile(r"inner|all_head|attn_dim|split|[qkv]_?(size|dim)$|proj|qkv")
IN_CONFIG: Final = ("num_attention_heads", "n_head", "num_heads", "n_heads")


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number that a module remembers."""

    module: str
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Heads:
    """How the numbers of one attention fall into heads; ``width`` is of q and k, ``value`` of v."""

    queries: int
    keys: int
    width: int
    value: int

    @property
    def shared(self) -> int:
        """Query heads for each head of keys and values."""
        return self.queries // self.keys

    @property
    def units(self) -> int:
        """What can go: heads of keys and values with their queries; query heads where one is read by all."""
        return self.keys if self.keys > 1 else self.queries

    @property
    def queries_each(self) -> int:
        """Query heads in a unit."""
        return self.queries // self.units


def numbers_around(model: nn.Module, attention: Attention) -> tuple[Number, ...]:
    """Return the whole numbers kept beside the projections, or by the first module around that has heads."""
    inside = attention.place
    while True:
        holder = model.get_submodule(inside)
        # Below the projections' own module, a helper of theirs (a core, a rotary table) may count too.
        helpers = holder.named_children() if inside == attention.place else ()
        modules = [(inside, holder)] + [
            (f"{inside}.{name}" if inside else name, child)
            for name, child in helpers
            if not any(is_projection(each) for each in child.modules())
        ]
        numbers = tuple(
            Number(where, name, value)
            for where, module in modules
            for name, value in vars(module).items()
            if type(value) is int and value > 0
        )
        if not inside or any("head" in number.name for number in numbers):
            return numbers
        inside = inside.rpartition(".")[0]


def head_counts(
    model: nn.Module, attention: Attention, numbers: Sequence[Number], *, least: int = 2
) -> Iterator[Heads]:
    """Yield the numbers of heads that go into the sizes: as counted, from a head's width, then any other.

    Of fewer heads than ``least`` nothing is yielded.
    """
    config = getattr(model.get_submodule(attention.place), "config", None) or getattr(model, "config", None)
    hints = [getattr(config, name, None) for name in IN_CONFIG]
    counted = [each.value for each in numbers if counts_heads(each.name)]
    by_width = [attention.query // each.value for each in numbers if is_width(each.name)]
    known = [*counted, *by_width, *(hint for hint in hints if type(hint) is int)]
    for queries in dict.fromkeys(known or [each.value for each in numbers]):
        if queries < least or attention.query % queries:
            continue
        width = attention.query // queries
        keys, rest = divmod(attention.key, width)
        if not rest and keys and not queries % keys and not attention.value % keys:
            yield Heads(queries, keys, width, attention.value // keys)


def counts_heads(name: str, *, keys: bool = False) -> bool:
    """Return whether a number of this name counts query heads; with ``keys``, those of keys too."""
    if not NUMBER_OF_HEADS.search(name) or is_width(name) or "group" in name or "all_head" in name:
        return False
    return keys or not re.search(r"kv|key", name)


def is_width(name: str) -> bool:
    """Return whether a number of this name is the width of one head."""
    return bool(WIDTH_OF_HEAD.search(name)) and "all_head" not in name
