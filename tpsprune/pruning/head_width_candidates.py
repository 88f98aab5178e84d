"""Attentions whose heads might be narrower: where dimensions lie, and whether their basis may change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from tpsprune.numerics.forward import call_model
from tpsprune.pruning.candidates import Candidate, Proposal
from tpsprune.pruning.groups import Attribute, Group, Scores, Slice
from tpsprune.pruning.head_counts import OF_ALL_HEADS, Heads, Number, head_counts, is_width, numbers_around
from tpsprune.pruning.head_width import rotated
from tpsprune.pruning.layers import fault_of, tensor_axes
from tpsprune.pruning.projections import Attention, Part, attentions
from tpsprune.pruning.trial import close, flat_tensors, put_back

__all__ = ["HEAD_WIDTH", "head_width_candidates"]

HEAD_WIDTH: Final = ".head-width"
"""Follows the name of the projection of queries in the name of a group."""
MOST_WAYS: Final = 12
TURNED: Final = (
    "its queries and keys are turned by position (rotary) or normed, or read elsewhere too: "
    "their basis may not change"
)


def head_width_candidates(model: nn.Module, subject: nn.Module, batch: Any) -> list[Candidate]:
    """Return candidates of kind "head-width", their cut unproved, one for each attention.

    A unit is dimension u of all heads' queries and keys. What may not be turned to another basis at full
    width comes with that as its fault. The ways of the others differ in how many heads there are, which
    numbers that modules remember follow the width, and whether the module's scale does: the first whose cut
    equals the same model with the dimensions silenced is the right one. Of queries, keys and values in one
    layer there is no candidate: it is split by one width, which that of the values would have to follow.

    Args:
        model: the model.
        subject: the same, shaken; it is turned and put back.
        batch: that it is called on.

    Cost: a forward pass for each attention, and one more for each further guess at its heads.
    """
    found: dict[str, list[Proposal]] = {}
    whole = None
    for attention in attentions(model):
        parts = {part.role: part for part in attention.parts}
        if "q" not in parts or "k" not in parts or parts["q"].module + HEAD_WIDTH in found:
            continue
        if whole is None:
            with torch.no_grad():
                whole = list(flat_tensors(call_model(subject, batch)))
        proposals = []
        for group in _layouts(model, attention, parts["q"], parts["k"]):
            fault = _fault_of_layers(model, group) or _fault_of_basis(subject, group, batch, whole)
            ways = _ways(model, attention, group) if not fault else [group]
            proposals += [Proposal(each, fault) for each in ways]
        if proposals:
            # A guess that may be turned goes before one that may not: its fault is the one to tell.
            found[proposals[0].group.name] = sorted(proposals, key=lambda each: bool(each.fault))
    return [Candidate(tuple((each,) for each in ways[:MOST_WAYS])) for ways in found.values()]


def _layouts(model: nn.Module, attention: Attention, query: Part, key: Part) -> Iterator[Group]:
    """Yield a group for each guess at the heads and their order, likeliest first."""
    numbers = numbers_around(model, attention)
    for heads in head_counts(model, attention, numbers, least=1):
        for tiled in (False, True) if 1 < heads.keys < heads.queries else (False,):
            yield Group(
                name=f"{query.module}{HEAD_WIDTH}",
                width=heads.width,
                producers=(query.module, key.module),
                members=(),
                consumers=(),
                slices=(
                    *_slices(model, query.module, heads.queries, heads.width),
                    *_slices(model, key.module, heads.keys, heads.width),
                ),
                cores=(attention.place,),
                kind="head-width",
                scores=Scores(query.module, key.module, heads.queries, heads.keys, heads.value, tiled),
            )


def _slices(model: nn.Module, module: str, heads: int, width: int) -> Iterator[Slice]:
    stride = width if heads > 1 else 0
    for tensor, axis in tensor_axes(model.get_submodule(module), "out").items():
        yield Slice(f"{module}.{tensor}", axis, 0, 1, heads, stride)


def _ways(model: nn.Module, attention: Attention, group: Group) -> Iterator[Group]:
    """Yield a group in its ways, likeliest first: with its numbers, and the scale as it stays or follows."""
    scores = group.scores
    assert scores is not None
    heads = Heads(scores.queries, scores.keys, group.width, scores.value)
    for attributes in _attribute_sets(numbers_around(model, attention), heads):
        for follows in (False, True):
            yield replace(group, attributes=attributes, scores=replace(scores, scale_follows=follows))


def _attribute_sets(numbers: Iterable[Number], heads: Heads) -> list[tuple[Attribute, ...]]:
    """Return, likeliest first, which numbers follow the width: of one head and of all, of one, none."""
    own = [each for each in numbers if each.value == heads.width and is_width(each.name)]
    sizes = {heads.queries * heads.width, heads.keys * heads.width}
    inner = [
        each for each in numbers if each.value in sizes and each not in own and OF_ALL_HEADS.search(each.name)
    ]
    sets = (
        tuple(Attribute(each.module, each.name, each.value // heads.width) for each in chosen)
        for chosen in ([*own, *inner], own, inner, [])
    )
    return list(dict.fromkeys(sets))


def _fault_of_layers(model: nn.Module, group: Group) -> str:
    return next((fault for name in group.producers if (fault := fault_of(model.get_submodule(name)))), "")


def _fault_of_basis(subject: nn.Module, group: Group, batch: Any, whole: list[Any]) -> str:
    """Return why the dimensions of a shaken model's heads may not change their basis, or nothing."""
    with put_back(subject, (group,)), torch.no_grad():
        rotated(subject, group)
        turned = list(flat_tensors(call_model(subject, batch)))
    return "" if close(whole, turned) else TURNED
