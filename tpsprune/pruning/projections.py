"""Which layers of a model are the projections of an attention: found by their names, places and sizes.

Nothing here is proved; what is found is put to a trial before anything is cut.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.pruning.layers import input_axis, is_mixer, tensor_axes

__all__ = ["Attention", "Part", "Role", "attentions", "is_projection"]

Role: TypeAlias = Literal["q", "k", "v", "kv", "qkv", "gate"]

FUSED: Final = re.compile(r"qkv|query_?key_?value|in_proj|c_attn")
FUSED_PAIR: Final = re.compile(r"kv|key_?value")
SINGLE: Final[Mapping[Role, re.Pattern[str]]] = {
    "q": re.compile(r"(?:^|(?<=_))w?(?:q|query|queries)\d*(?=_|$)"),
    "k": re.compile(r"(?:^|(?<=_))w?(?:k|keys?)\d*(?=_|$)"),
    "v": re.compile(r"(?:^|(?<=_))w?(?:v|values?)\d*(?=_|$)"),
}
OUTPUT: Final = re.compile(r"(?:^|_)w?(?:o|out|outputs?|proj|projection|dense)\d*(?:_|$)")
CLIMB: Final = 2
"""How many levels above the projections the output projection is looked for."""


@dataclass(frozen=True, slots=True)
class Part:
    """A layer that gives queries, keys, values or several of them side by side."""

    module: str
    role: Role


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one attention: the parts lie in ``place``, ``output`` reads what heads say.

    ``query``, ``key`` and ``value`` are how many numbers all heads together have of each.
    """

    place: str
    parts: tuple[Part, ...]
    output: str
    query: int
    key: int
    value: int


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Yield what looks like an attention; one set of parts may come with two guesses of the output.

    Parts are told by name (``q``, ``query``, ``to_q``, ``wq``, ``qkv``, ``c_attn``, ``kv_proj`` …) or, in a
    module that counts heads, by their order: two layers or four. The output projection is a layer of the
    right width beside or below them, or in a module around them under one of its usual names.
    """
    order = {name: rank for rank, (name, _) in enumerate(model.named_modules())}
    for place, parent in model.named_modules():
        layers = {name: child for name, child in parent.named_children() if is_projection(child)}
        for parts in _parts(parent, layers):
            whole = tuple(
                Part(_join(place, name), role)
                for name, role in sorted(parts.items(), key=lambda item: order[_join(place, item[0])])
            )
            gates = [name for name in layers if "gate" in name.lower() and name not in parts]
            for output, sizes in _outputs(model, place, {_join(place, name) for name in layers}, whole)[:2]:
                gated = tuple(
                    Part(_join(place, name), "gate")
                    for name in gates
                    if _outs(layers[name]) == _ins(model.get_submodule(output))
                )
                yield Attention(place, (*whole, *gated), output, *sizes)


def is_projection(module: nn.Module) -> bool:
    """Return whether a layer maps every place by itself or with its neighbours, all units to all units."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not module.transposed
    return is_mixer(module)


def _parts(parent: nn.Module, layers: Mapping[str, nn.Module]) -> list[dict[str, Role]]:
    fused = [name for name in layers if FUSED.search(name.lower())]
    pairs = [name for name in layers if FUSED_PAIR.search(name.lower()) and name not in fused]
    families: dict[str, dict[Role, str]] = defaultdict(dict)
    for name in (each for each in layers if each not in (*fused, *pairs)):
        for role, pattern in SINGLE.items():
            if found := pattern.search(name.lower()):
                families[name[: found.start()] + "*" + name[found.end() :]].setdefault(role, name)
                break
    answer: list[dict[str, Role]] = [
        {family["q"]: "q", family["k"]: "k", family["v"]: "v"}
        for family in families.values()
        if len(family) == len(SINGLE)
    ]
    lonely = [family["q"] for family in families.values() if "q" in family and len(family) == 1]
    for query, pair in zip(lonely, (*pairs, *fused), strict=False):
        answer.append({query: "q", pair: "kv"})
    answer += [{name: "qkv"} for name in (fused if not lonely else ())]
    if not answer and any("head" in name for name in vars(parent)):
        names = list(layers)
        if len(names) == 2:
            answer.append({names[0]: "qkv"})
        elif len(names) == 4:
            answer.append({names[0]: "q", names[1]: "k", names[2]: "v"})
    return answer


def _outputs(
    model: nn.Module, place: str, siblings: set[str], parts: Sequence[Part]
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return layers that may read what the heads say, likeliest first, and sizes of q, k, v to match."""
    taken = {part.module for part in parts}
    outs = {part.role: _outs(model.get_submodule(part.module)) for part in parts}
    found: list[tuple[tuple[bool, bool, bool], str, tuple[int, int, int]]] = []
    inside = place
    for level in range(CLIMB + 1):
        for name, module in model.get_submodule(inside).named_modules():
            full = _join(inside, name)
            below = not place or full.startswith(f"{place}.")
            if full in taken or not is_projection(module) or below != (level == 0):
                continue
            named = any(OUTPUT.search(part) for part in name.lower().split("."))
            sizes = _sizes(outs, _ins(module))
            if sizes and (named or full in siblings):
                found.append(((not named, full not in siblings, len(set(sizes)) > 1), full, sizes))
        if found or not inside:
            break
        inside = inside.rpartition(".")[0]
    return [(name, sizes) for _, name, sizes in sorted(found, key=lambda each: each[0])]


def _sizes(outs: Mapping[Role, int], heard: int) -> tuple[int, int, int] | None:
    """Return how many numbers are queries, keys and values if ``heard`` are what the output reads."""
    if "qkv" in outs:
        query, (key, rest) = heard, divmod(outs["qkv"] - heard, 2)
        return (query, key, key) if not rest and 0 < key <= query and not query % key else None
    query = outs["q"]
    key, value = (outs["kv"] // 2, outs["kv"] // 2) if "kv" in outs else (outs["k"], outs["v"])
    return (query, key, value) if not query % key and value * (query // key) == heard else None


def _outs(module: nn.Module) -> int:
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    return weight.shape[tensor_axes(module, "out")["weight"]]


def _ins(module: nn.Module) -> int:
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    return weight.shape[input_axis(module)]


def _join(place: str, name: str) -> str:
    return ".".join(each for each in (place, name) if each)
