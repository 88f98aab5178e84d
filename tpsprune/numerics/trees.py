"""Batches as trees of tensors: mappings or tuples, items along each first axis; whole ones; random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from tpsprune.records import InputPart, TaskFacts

Tree: TypeAlias = Any
"""A tensor, or a mapping or tuple of trees: what ``call_model`` takes. Anything else in one is passed on."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class WholeBatch:
    """A batch whose items do not lie along its tensors' first axes: it is never split, always passed whole.

    ``data`` is whatever the model takes (a graph as a tuple, a list of objects, an instance of any class),
    ``items`` how many items it counts as.
    """

    data: Any
    items: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class WithCalls:
    """A batch with which a model is called in other ways too, beside its forward pass.

    ``also`` are functions of the model and the batch, as ``lambda model, batch: model.decode(batch)``; what
    they return are outputs of the model like any other.
    """

    data: Any
    also: tuple[Callable[[Any, Any], Any], ...]


def tensors_of(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a tree, in order; of a whole batch those within its mappings, tuples and lists."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, WholeBatch | WithCalls):
        yield from tensors_of(tree.data)
    elif isinstance(tree, Mapping | tuple | list):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors_of(part)


def map_tensors(tree: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
    """Return the tree with ``function`` of each of its tensors; mappings come back as dictionaries.

    >>> map_tensors({"a": torch.ones(2), "b": (torch.zeros(1), None)}, lambda each: each + 1)
    {'a': tensor([2., 2.]), 'b': (tensor([1.]), None)}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, WholeBatch):
        data = map_leaves(tree.data, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)
        return WholeBatch(data, tree.items)
    if isinstance(tree, WithCalls):
        return WithCalls(map_tensors(tree.data, function), tree.also)
    if isinstance(tree, Mapping):
        return {name: map_tensors(part, function) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_tensors(part, function) for part in tree)
    return tree


def map_leaves(data: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested dictionaries, tuples and lists with ``function`` of whatever else they hold.

    >>> map_leaves([{"a": 1}, (2, [3])], lambda leaf: -leaf)
    [{'a': -1}, (-2, [-3])]
    """
    if isinstance(data, dict):
        return {name: map_leaves(part, function) for name, part in data.items()}
    if isinstance(data, tuple | list):
        parts = [map_leaves(part, function) for part in data]
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    return function(data)


def is_whole(batch: Tree) -> bool:
    """Return whether a batch is never split."""
    return isinstance(batch.data if isinstance(batch, WithCalls) else batch, WholeBatch)


def at(tree: Tree, index: Tensor | slice) -> Tree:
    """Return the items at ``index`` of a tree all of whose tensors hold items along their first axis."""
    return map_tensors(tree, lambda each: each[index])


def first_of(tree: Tree) -> Tree:
    """Return the first item, without the axis of items."""
    return map_tensors(tree, lambda each: each[0])


def join_items(trees: Sequence[Tree]) -> Tree:
    """Return the items of several trees of one build, one after the other.

    >>> join_items([(torch.ones(1), torch.ones(1)), (torch.zeros(2), torch.zeros(2))])
    (tensor([1., 0., 0.]), tensor([1., 0., 0.]))
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, Mapping):
        return {name: join_items([tree[name] for tree in trees]) for name in first}
    return tuple(join_items(parts) for parts in zip(*trees, strict=True))


def split_evenly(tree: Tree, parts: int) -> tuple[Tree, ...]:
    """Return the items in so many batches, in order, none more than one item longer than another."""
    ends = [0]
    for part in torch.arange(item_count(tree)).tensor_split(parts):
        ends.append(ends[-1] + len(part))
    return tuple(at(tree, slice(start, end)) for start, end in pairwise(ends))


def item_count(batch: Tree) -> int:
    """Return how many items a prepared batch holds: along the first axis of its first tensor that has one.

    A whole batch says so itself.
    """
    if isinstance(batch, WithCalls):
        batch = batch.data
    if isinstance(batch, WholeBatch):
        return batch.items
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), 0)


def take_items(batch: Tree, index: Tensor) -> Tree:
    """Return these items of a batch, however it is nested; a number beyond its items is passed over.

    Tensors as long as the batch has items are indexed; all else (a mask, positions) is returned as it is, and
    so is a whole batch.
    """
    if isinstance(batch, WithCalls):
        return WithCalls(take_items(batch.data, index), batch.also)
    if isinstance(batch, WholeBatch):
        return batch
    items = item_count(batch)
    kept = index[index < items]
    return map_tensors(
        batch, lambda each: each[kept.to(each.device)] if each.ndim and len(each) == items else each
    )


def random_inputs(facts: TaskFacts, items: int, seed: int = 0) -> Tree:
    """Return so many items as a model of the task takes them, on the CPU; equal seeds, equal items.

    Images, vectors and other floats are standard normal, token ids and other whole numbers uniform over
    those there are. Of a part of two values only, as a mask has them, the first place holds the higher: a
    mask that lets nothing through is none. Several parts come as a mapping, or without names as a tuple.

    It does not see the distribution of data: outputs on these items serve to compare models, not to judge
    them.
    """
    generator = torch.Generator().manual_seed(seed)
    if facts.parts:
        sampled = [_part(part, items, generator) for part in facts.parts]
        if any(part.name for part in facts.parts):
            return {part.name: each for part, each in zip(facts.parts, sampled, strict=True)}
        return tuple(sampled)
    shape = (items, *facts.input_shape)
    if facts.input_kind == "tokens":
        return torch.randint(facts.vocabulary or 1, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _part(part: InputPart, items: int, generator: torch.Generator) -> Tensor:
    shape = (items, *part.shape)
    if part.dtype == "float32":
        return torch.randn(shape, generator=generator)
    sampled = torch.randint(part.lowest, part.highest + 1, shape, generator=generator)
    if part.highest - part.lowest == 1 and sampled.ndim > 1:
        sampled[..., 0] = part.highest
    return sampled.bool() if part.dtype == "bool" else sampled
