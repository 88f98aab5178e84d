"""Attention heads as units: where a head lies in the projections, and what else knows how many there are.

Shape letters: h query heads, g query heads that share keys and values, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from torch import nn

from tpsprune.pruning.groups import Attribute, Consumer, Group, Slice
from tpsprune.pruning.head_counts import (
    OF_ALL_HEADS,
    Heads,
    Number,
    counts_heads,
    head_counts,
    is_width,
    numbers_around,
)
from tpsprune.pruning.layers import tensor_axes
from tpsprune.pruning.projections import Attention, Part, attentions

__all__ = ["attention_groups"]

MOST_CANDIDATES: Final = 12
"""Of one attention: each costs a trial, and a layout that is not among the likeliest is a rare one."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Where units lie along the outputs of a layer, or the inputs of the next."""

    offset: int
    block: int
    repeat: int = 1
    stride: int = 0


def attention_groups(model: nn.Module) -> tuple[Group, ...]:
    """Return candidates of kind "heads", unproved; those of one attention share a name, likeliest first.

    A unit is a head: its queries, keys and values, read by the output projection. Where several query
    heads share keys and values it is a head of those with its queries; where all share one, a query head.
    How q, k and v lie side by side in a fused layer, which of the whole numbers that modules remember
    count heads, and which of their bare parameters hold something per head is guessed: the first
    candidate whose cut equals the same model deaf to the heads that go is the right one, and an attention
    with none stays whole. A ``config`` object is read for hints and never changed.

    Not seen: heads that are mixed with one another before the output projection, norms over all heads,
    ``nn.MultiheadAttention`` that is not open, and numbers written out in the code.

    Cost: no forward pass; up to 12 candidates for each attention.
    """
    return tuple(
        group
        for attention in attentions(model)
        for group in islice(_candidates(model, attention), MOST_CANDIDATES)
    )


def _candidates(model: nn.Module, attention: Attention) -> Iterator[Group]:
    numbers = numbers_around(model, attention)
    seen: set[Group] = set()
    for heads in head_counts(model, attention, numbers):
        per_head = _per_head(model, attention.place, heads)
        layouts = _layouts(attention, heads)
        for layout, attributes, bare in product(
            layouts, _attribute_sets(numbers, heads), (per_head, ()) if per_head else ((),)
        ):
            group = _group(model, attention, heads, layout, attributes, bare)
            if group not in seen:
                seen.add(group)
                yield group


def _group(
    model: nn.Module,
    attention: Attention,
    heads: Heads,
    layout: tuple[dict[Part, tuple[_Run, ...]], _Run],
    attributes: tuple[Attribute, ...],
    bare: tuple[Slice, ...],
) -> Group:
    runs, read = layout
    made = [
        Slice(f"{part.module}.{tensor}", axis, run.offset, run.block, run.repeat, run.stride)
        for part in attention.parts
        for run in runs[part]
        for tensor, axis in tensor_axes(model.get_submodule(part.module), "out").items()
    ]
    heard = [
        Slice(f"{attention.output}.{tensor}", axis, read.offset, read.block, read.repeat, read.stride)
        for tensor, axis in tensor_axes(model.get_submodule(attention.output), "in").items()
    ]
    return Group(
        name=attention.parts[0].module,
        width=heads.units,
        producers=tuple(part.module for part in attention.parts),
        members=(),
        consumers=(Consumer(attention.output, read.offset, read.block, read.repeat, read.stride),),
        slices=(*made, *heard, *bare),
        attributes=attributes,
        cores=(attention.place,),
        kind="heads",
    )


def _layouts(attention: Attention, heads: Heads) -> list[tuple[dict[Part, tuple[_Run, ...]], _Run]]:
    """Return, likeliest first, where heads lie in each part and at the output projection.

    Query heads that share keys come one after the other, or each after as many as there are keys. A
    fused layer has all q before all k and v, or q, k and v of one head after the other.
    """
    fused = any(part.role in ("kv", "qkv") for part in attention.parts)
    answer = []
    for by_head, tiled in product((False, True) if fused else (False,), (False, True)):
        if tiled and not 1 < heads.keys < heads.queries:
            continue
        runs = {part: _runs(part, attention, heads, by_head, tiled) for part in attention.parts}
        answer.append((runs, _of_queries(heads, heads.value, tiled)))
    return answer


def _runs(part: Part, attention: Attention, heads: Heads, by_head: bool, tiled: bool) -> tuple[_Run, ...]:
    queries = _of_queries(heads, heads.width, tiled)
    if part.role == "q":
        return (queries,)
    if part.role == "gate":
        return (_of_queries(heads, heads.value, tiled),)
    if heads.keys == 1 and heads.queries > 1:
        # All heads read the same keys and values: those stay.
        return (queries,) if part.role == "qkv" and not by_head else ()
    if part.role in ("k", "v"):
        return (_Run(0, heads.width if part.role == "k" else heads.value),)
    if by_head:
        each = heads.width + heads.value + (heads.shared * heads.width if part.role == "qkv" else 0)
        return (_Run(0, each),)
    if part.role == "qkv" and heads.shared == 1:
        return (_Run(0, heads.width, 3, attention.query),)
    pair = _Run(attention.query if part.role == "qkv" else 0, heads.width, 2, attention.key)
    return (queries, pair) if part.role == "qkv" else (pair,)


def _of_queries(heads: Heads, width: int, tiled: bool) -> _Run:
    if tiled:
        return _Run(0, width, heads.queries_each, heads.units * width)
    return _Run(0, heads.queries_each * width)


def _attribute_sets(numbers: Iterable[Number], heads: Heads) -> list[tuple[Attribute, ...]]:
    """Return, likeliest first, which numbers follow the heads: counts and inner widths, all, counts, none."""
    counts: list[Attribute] = []
    inner: list[Attribute] = []
    others: list[Attribute] = []
    sizes = {heads.queries * each for each in (heads.width, heads.value)}
    sizes |= {heads.keys * each for each in (heads.width, heads.value)} if heads.keys > 1 else set()
    sizes |= {2 * size for size in sizes} | {3 * size for size in sizes}
    for number in numbers:
        attribute = Attribute(number.module, number.name, number.value // heads.units)
        if number.value % heads.units or is_width(number.name):
            continue
        if number.value in (heads.queries, heads.keys) and counts_heads(number.name, keys=True):
            counts.append(attribute)
        elif number.value in sizes and OF_ALL_HEADS.search(number.name):
            inner.append(attribute)
        elif number.value in sizes or number.value == heads.queries:
            others.append(attribute)
    if heads.keys == 1:
        counts += [
            Attribute(each.module, each.name, 1)
            for each in numbers
            if "group" in each.name and each.value == heads.queries
        ]
    sets = ((*counts, *inner), (*counts, *inner, *others), tuple(counts), ())
    return list(dict.fromkeys(sets))


def _per_head(model: nn.Module, place: str, heads: Heads) -> tuple[Slice, ...]:
    """Return slices of the bare tensors beside the projections with one axis as long as heads are many."""
    module = model.get_submodule(place)
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    answer = []
    for name, tensor in held:
        full = f"{place}.{name}" if place else name
        for length, block in (
            (heads.queries, heads.queries_each),
            (heads.queries * heads.width, heads.queries_each * heads.width),
        ):
            axes = [axis for axis, size in enumerate(tensor.shape) if size == length]
            if len(axes) == 1:
                answer.append(Slice(full, axes[0], 0, block))
                break
    return tuple(answer)
