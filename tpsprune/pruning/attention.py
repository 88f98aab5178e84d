"""Attention heads as units: which layers are projections, how many heads there are, and where each one lies.

All of it is guessed from names, places, sizes and the whole numbers that modules store; nothing here is
proved. ``trial`` does that, guess by guess.

Shape letters: h query heads, g query heads that share keys and values, d width of a head.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.pruning.groups import Attribute, Consumer, Group, Slice
from tpsprune.pruning.layers import is_mixer, length, tensor_axes

Role: TypeAlias = Literal["q", "k", "v", "kv", "qkv", "gate"]

FUSED: Final = re.compile(r"qkv|query_?key_?value|in_proj|c_attn")
FUSED_PAIR: Final = re.compile(r"kv|key_?value")
SINGLE: Final[Mapping[Role, re.Pattern[str]]] = {
    "q": re.compile(r"(?:^|(?<=_))w?(?:q|query|queries)\d*(?=_|$)"),
    "k": re.compile(r"(?:^|(?<=_))w?(?:k|keys?)\d*(?=_|$)"),
    "v": re.compile(r"(?:^|(?<=_))w?(?:v|values?)\d*(?=_|$)"),
}
GATE: Final = re.compile(r"gate|forget|decay")
OUTPUT: Final = re.compile(r"(?:^|_)w?(?:o|out|outputs?|proj|projection|dense)\d*(?:_|$)")
CLIMB: Final = 2
"""How many levels above the projections the search for the output projection climbs."""

WIDTH_OF_HEAD: Final = re.compile(r"head_?(dim|size|width|features|channels)|(dim|d|size)_?head$|^d_kv$")
NUMBER_OF_HEADS: Final = re.compile(r"head|^n?h$")
OF_ALL_HEADS: Final = re.compile(r"inner|all_head|attn_dim|split|[qkv]_?(size|dim)$|proj|qkv")
IN_CONFIG: Final = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KEYS_IN_CONFIG: Final = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")

MOST_HEADS: Final = 128
"""An embedding that is wider is no table of a number for each head."""
MOST_CANDIDATES: Final = 12
"""Of one attention: each costs a trial, and a layout that is not among the likeliest is a rare one."""


@dataclass(frozen=True, slots=True)
class Part:
    """A layer that gives queries, keys, values or several of them side by side."""

    module: str
    role: Role


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one attention: the parts lie in ``place``, ``output`` reads the mixed values.

    ``query``, ``key`` and ``value`` are how many numbers all heads together have of each.
    """

    place: str
    parts: tuple[Part, ...]
    output: str
    query: int
    key: int
    value: int


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number that a module stores."""

    module: str
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Heads:
    """How the numbers of one attention fall into heads; ``width`` is of q, ``key`` of k, ``value`` of v."""

    queries: int
    keys: int
    width: int
    value: int
    key: int

    @property
    def shared(self) -> int:
        """Query heads for each head of keys and values."""
        return self.queries // self.keys

    @property
    def units(self) -> int:
        """What can be pruned: heads of keys and values with their queries; query heads if all share one."""
        return self.keys if self.keys > 1 else self.queries

    @property
    def queries_each(self) -> int:
        """Query heads in a unit."""
        return self.queries // self.units


def find_attentions(model: nn.Module) -> Iterator[Attention]:
    """Yield what may be an attention by its layers; one set of parts may come with two guesses of the output.

    Parts are recognised by name (``q``, ``query``, ``to_q``, ``wq``, ``qkv``, ``c_attn``, ``kv_proj`` …) or,
    in a module that counts heads, by their order: two layers or four. The output projection is a layer of the
    right width among or below them, or in a module around them under one of its usual names.
    """
    for place, parent in model.named_modules():
        layers = {name: child for name, child in parent.named_children() if is_projection(child)}
        for roles in _guess_roles(parent, layers):
            # Children come in the order of the model.
            parts = tuple(Part(_join(place, name), roles[name]) for name in layers if name in roles)
            gates = [name for name in layers if "gate" in name.lower() and name not in roles]
            for output, sizes in _guess_outputs(model, place, {_join(place, name) for name in layers}, parts)[
                :2
            ]:
                mixed = length(model.get_submodule(output), "in")
                gated = (
                    Part(_join(place, name), "gate") for name in gates if length(layers[name], "out") == mixed
                )
                yield Attention(place, (*parts, *gated), output, *sizes)


def is_projection(module: nn.Module) -> bool:
    """Return whether a layer maps every place by itself or with its neighbours, all units to all units."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not module.transposed
    return is_mixer(module)


def _guess_roles(parent: nn.Module, layers: Mapping[str, nn.Module]) -> list[dict[str, Role]]:
    """Return which of the layers in a module give queries, keys and values: one guess for each attention."""
    fused = [name for name in layers if FUSED.search(name.lower())]
    pairs = [name for name in layers if FUSED_PAIR.search(name.lower()) and name not in fused]
    families: dict[str, dict[Role, str]] = defaultdict(dict)
    seconds: dict[str, dict[str, Role]] = defaultdict(dict)
    for name in (each for each in layers if each not in (*fused, *pairs)):
        for role, pattern in SINGLE.items():
            if found := pattern.search(name.lower()):
                family = name[: found.start()] + "*" + name[found.end() :]
                if families[family].setdefault(role, name) != name:
                    seconds[family][name] = role
                break
    whole: list[dict[str, Role]] = []
    for shared, named in families.items():
        if len(named) == len(SINGLE):
            first: dict[str, Role] = {name: role for role, name in named.items()}
            # Second keys and values (2-simplicial attention) fall into heads like the first.
            whole += [first | seconds[shared], first] if shared in seconds else [first]
    # Queries and keys of relative positions (DeBERTa) have heads of their own.
    more: dict[str, Role] = {
        name: role
        for family in families.values()
        if 1 < len(family) < len(SINGLE) or (len(family) == 1 and "pos" in next(iter(family.values())))
        for role, name in family.items()
        if role != "v"
    }
    guesses = [each | more for each in whole if more] + whole
    lonely = [family["q"] for family in families.values() if "q" in family and len(family) == 1]
    # Projections of projections (q_a and q_b, kv_a and kv_b) come in this order too; what fits is tried.
    matched = [*zip(lonely, (*pairs, *fused), strict=False), *product(lonely, (*pairs, *fused))]
    guesses += [{query: "q", pair: "kv"} for query, pair in dict.fromkeys(matched)]
    guesses += [{name: "qkv"} for name in (fused if not lonely else ())]
    if not guesses and any("head" in name for name in vars(parent)):
        names = list(layers)
        if len(names) == 2:
            guesses.append({names[0]: "qkv"})
        elif len(names) == 4:
            guesses.append({names[0]: "q", names[1]: "k", names[2]: "v"})
    return guesses


def _guess_outputs(
    model: nn.Module, place: str, siblings: set[str], parts: Sequence[Part]
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return layers that may read the mixed values, likeliest first, and sizes of q, k, v to match."""
    taken = {part.module for part in parts}
    outs = {part.role: length(model.get_submodule(part.module), "out") for part in reversed(parts)}
    if any(outs[part.role] != length(model.get_submodule(part.module), "out") for part in parts):
        return []
    found: list[tuple[tuple[bool, bool, bool, bool], str, tuple[int, int, int]]] = []
    inside = place
    for level in range(CLIMB + 1):
        for name, module in model.get_submodule(inside).named_modules():
            full = _join(inside, name)
            below = not place or full.startswith(f"{place}.")
            if full in taken or not is_projection(module) or below != (level == 0):
                continue
            named = any(OUTPUT.search(part) for part in name.lower().split("."))
            sizes = _sizes(outs, length(module, "in"))
            last = name.lower().rpartition(".")[2]
            gives = any(each.search(last) for each in (FUSED, FUSED_PAIR, *SINGLE.values()))
            if sizes and (named or full in siblings):
                found.append(((gives, not named, full not in siblings, len(set(sizes)) > 1), full, sizes))
        if found or not inside:
            break
        inside = inside.rpartition(".")[0]
    return [(name, sizes) for _, name, sizes in sorted(found, key=lambda each: each[0])]


def _sizes(outs: Mapping[Role, int], mixed: int) -> tuple[int, int, int] | None:
    """Return how many numbers are queries, keys and values if the output projection reads ``mixed``."""
    if "qkv" in outs:
        query, (key, rest) = mixed, divmod(outs["qkv"] - mixed, 2)
        return (query, key, key) if not rest and 0 < key <= query and not query % key else None
    query = outs["q"]
    key, value = (outs["kv"] // 2, outs["kv"] // 2) if "kv" in outs else (outs["k"], outs["v"])
    if not query % key and value * (query // key) == mixed:
        return query, key, value
    # Keys of which a part is rotated and shared by all heads come without it (multi-head latent attention).
    return (query, outs["kv"] - mixed, mixed) if mixed < outs.get("kv", 0) < query + mixed else None


def _join(place: str, name: str) -> str:
    return ".".join(each for each in (place, name) if each)


def numbers_around(model: nn.Module, attention: Attention) -> tuple[Number, ...]:
    """Return the whole numbers that the projections' module stores, or the next one around it with heads.

    Those of a ``config`` that it stores, as models of transformers do, come last.
    """
    inside = attention.place
    while True:
        holder = model.get_submodule(inside)
        # Below the projections' own module, a helper of theirs (a core, a rotary table) may count too.
        helpers = holder.named_children() if inside == attention.place else ()
        modules = [(inside, holder)] + [
            (_join(inside, name), child)
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
            return (*numbers, *_numbers_of_config(attention.place, model))
        inside = inside.rpartition(".")[0]


def _numbers_of_config(place: str, model: nn.Module) -> list[Number]:
    """Return the numbers of heads in the configuration that an attention keeps, under names with a dot."""
    config = vars(model.get_submodule(place)).get("config")
    found = {name: getattr(config, name, None) for name in (*IN_CONFIG, *KEYS_IN_CONFIG)}
    return [Number(place, f"config.{name}", value) for name, value in found.items() if type(value) is int]


def guess_heads(
    model: nn.Module, attention: Attention, numbers: Sequence[Number], *, least: int = 2
) -> Iterator[Heads]:
    """Yield the numbers of heads that divide the sizes: as counted, from a head's width, then any other.

    Of fewer heads than ``least`` nothing is yielded. A ``config`` object is read for hints.
    """
    config = getattr(model.get_submodule(attention.place), "config", None) or getattr(model, "config", None)
    hints = [getattr(config, name, None) for name in IN_CONFIG]
    counted = [each.value for each in numbers if _counts_heads(each.name) and "." not in each.name]
    by_width = [attention.query // each.value for each in numbers if is_width(each.name)]
    mixed = length(model.get_submodule(attention.output), "in")
    is_latent = attention.value * (attention.query // attention.key) != mixed
    likely = [*counted, *by_width, *(hint for hint in hints if type(hint) is int)]
    for queries in dict.fromkeys(likely or [each.value for each in numbers]):
        if queries < least or attention.query % queries:
            continue
        width = attention.query // queries
        if is_latent:
            if not (attention.key % queries or attention.value % queries):
                yield Heads(queries, queries, width, attention.value // queries, attention.key // queries)
            continue
        keys, rest = divmod(attention.key, width)
        if not rest and keys and not queries % keys and not attention.value % keys:
            yield Heads(queries, keys, width, attention.value // keys, width)


def _counts_heads(name: str, *, keys: bool = False) -> bool:
    """Return whether a number of this name counts query heads; with ``keys``, those of keys too."""
    if not NUMBER_OF_HEADS.search(name) or is_width(name) or "group" in name or "all_head" in name:
        return False
    return keys or not re.search(r"kv|key", name)


def is_width(name: str) -> bool:
    """Return whether a number of this name is the width of one head."""
    return bool(WIDTH_OF_HEAD.search(name)) and "all_head" not in name


@dataclass(frozen=True, slots=True)
class _Run:
    """Where units lie along the outputs of a layer, or the inputs of the next."""

    offset: int
    block: int
    repeat: int = 1
    stride: int = 0

    def slices(self, model: nn.Module, module: str, side: Literal["in", "out"]) -> list[Slice]:
        """Return the slices of a layer's tensors that hold the units."""
        axes = tensor_axes(model.get_submodule(module), side)
        return [
            Slice(f"{module}.{tensor}", axis, self.offset, self.block, self.repeat, self.stride)
            for tensor, axis in axes.items()
        ]


def propose_head_groups(model: nn.Module) -> tuple[Group, ...]:
    """Return candidates of kind "heads", unproved; those of one attention share a name, likeliest first.

    A unit is a head: its queries, keys and values, read by the output projection. Where several query heads
    share keys and values it is a head of those with its queries; where all share one, a query head. How q, k
    and v lie side by side in a fused layer, which of the whole numbers that modules store count heads, and
    which of their own parameters hold something per head is guessed: the first candidate whose pruned model
    equals the masked one is the right one, and an attention with none is not pruned.

    Not seen: heads that are mixed with one another before the output projection, norms over all heads,
    ``nn.MultiheadAttention`` that is not open, and numbers written out in the code.

    Cost: no forward pass; up to 12 candidates for each attention.
    """
    return tuple(group for attention in find_attentions(model) for group in _candidates(model, attention))


def join_heads(model: nn.Module, families: Sequence[Sequence[Group]]) -> Iterator[tuple[Group, ...]]:
    """Yield, for attentions that have to lose the same heads, the ways to join their groups, likeliest first.

    Blocks of one stack may share a table of relative positions, with a number for each head: what is added to
    the scores of all of them. It lies in the first block, or in a module around them all.

    Args:
        model: holds them.
        families: the candidates of each attention that cannot be pruned by itself, likeliest first.
    """
    stacks: dict[tuple[str, str, int], list[Sequence[Group]]] = defaultdict(list)
    for ways in families:
        stacks[*_stack_of(ways[0].cores[0]), ways[0].width].append(ways)
    for (stack, _, _), members in stacks.items():
        around = stack.rpartition(".")[0]
        holders = [*model.get_submodule(stack).named_modules(prefix=stack)]
        holders += [
            (_join(around, name), each) for name, each in model.get_submodule(around).named_children()
        ]
        joined: dict[Group, None] = {}
        for rank in range(max(map(len, members))):
            groups = [ways[min(rank, len(ways) - 1)] for ways in members]
            if len({group.width for group in groups}) > 1:
                continue
            whole = _joined(groups)
            heads = whole.width
            tables = [
                Slice(f"{name}.weight", 1, 0, each.embedding_dim // heads)
                for name, each in holders
                if isinstance(each, nn.Embedding)
                and not each.embedding_dim % heads
                and each.embedding_dim <= MOST_HEADS
            ]
            for extra in (tables, []) if tables else ([],):
                slices = tuple(dict.fromkeys((*whole.slices, *extra)))
                joined[replace(whole, slices=slices)] = None
        yield tuple(joined)[:MOST_CANDIDATES]


def _stack_of(place: str) -> tuple[str, str]:
    """Return the module that an attention's block is a numbered part of, and where in a block it lies.

    Where nothing is numbered the stack is the model itself.
    """
    parts = place.split(".")
    first = next((rank for rank, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: max(0, first)]), ".".join(parts[first + 1 :])


def _joined(groups: Sequence[Group]) -> Group:
    """Return the group whose unit is the head of the same number in each of ``groups``."""
    return replace(
        groups[0],
        producers=tuple(name for group in groups for name in group.producers),
        consumers=tuple(each for group in groups for each in group.consumers),
        slices=tuple(dict.fromkeys(each for group in groups for each in group.slices)),
        attributes=tuple(dict.fromkeys(each for group in groups for each in group.attributes)),
        cores=tuple(dict.fromkeys(name for group in groups for name in group.cores)),
    )


def _candidates(model: nn.Module, attention: Attention) -> Iterator[Group]:
    """Yield candidates, likeliest first: up to 12 by layout and numbers, each with the ways to take gates."""
    numbers = numbers_around(model, attention)
    seen: set[Group] = set()
    for heads in guess_heads(model, attention, numbers):
        per_head = _slices_per_head(model, attention.place, heads)
        gates = _ways_of_gates(model, attention, heads)
        for (runs, mixed), attributes, extra in product(
            _layouts(attention, heads), _attribute_sets(numbers, heads), (per_head, ()) if per_head else ((),)
        ):
            made = [
                slice_
                for part in attention.parts
                for run in runs[part]
                for slice_ in run.slices(model, part.module, "out")
            ]
            group = Group(
                name=attention.parts[0].module,
                width=heads.units,
                producers=tuple(part.module for part in attention.parts),
                members=(),
                consumers=(
                    Consumer(attention.output, mixed.offset, mixed.block, mixed.repeat, mixed.stride),
                ),
                slices=(*made, *mixed.slices(model, attention.output, "in"), *extra),
                attributes=attributes,
                cores=(attention.place,),
                kind="heads",
            )
            if group in seen:
                continue
            if len(seen) == MOST_CANDIDATES:
                return
            seen.add(group)
            for way in gates:
                yield replace(group, slices=(*group.slices, *way))


def _layouts(attention: Attention, heads: Heads) -> Iterator[tuple[dict[Part, tuple[_Run, ...]], _Run]]:
    """Yield, likeliest first, where heads lie in each part and at the output projection.

    Query heads that share keys come one after the other, or each after as many as there are keys. A
    fused layer has all q before all k and v, or q, k and v of one head after the other.
    """
    fused = any(part.role in ("kv", "qkv") for part in attention.parts)
    for by_head, tiled in product((False, True) if fused else (False,), (False, True)):
        if (tiled and not 1 < heads.keys < heads.queries) or (heads.key != heads.width and not by_head):
            continue
        runs = {part: _runs(part, attention, heads, by_head, tiled) for part in attention.parts}
        yield runs, _run_of_queries(heads, heads.value, tiled)


def _runs(part: Part, attention: Attention, heads: Heads, by_head: bool, tiled: bool) -> tuple[_Run, ...]:
    queries = _run_of_queries(heads, heads.width, tiled)
    if part.role == "q":
        return (queries,)
    if part.role == "gate":
        return (_run_of_queries(heads, heads.value, tiled),)
    if heads.keys == 1 and heads.queries > 1:
        # All heads read the same keys and values: those are kept.
        return (queries,) if part.role == "qkv" and not by_head else ()
    if part.role in ("k", "v"):
        return (_Run(0, heads.width if part.role == "k" else heads.value),)
    if by_head:
        each = heads.key + heads.value + (heads.shared * heads.width if part.role == "qkv" else 0)
        return (_Run(0, each),)
    if part.role == "qkv" and heads.shared == 1:
        return (_Run(0, heads.width, 3, attention.query),)
    pair = _Run(attention.query if part.role == "qkv" else 0, heads.width, 2, attention.key)
    return (queries, pair) if part.role == "qkv" else (pair,)


def _run_of_queries(heads: Heads, width: int, tiled: bool) -> _Run:
    if tiled:
        return _Run(0, width, heads.queries_each, heads.units * width)
    return _Run(0, heads.queries_each * width)


def _attribute_sets(numbers: Iterable[Number], heads: Heads) -> list[tuple[Attribute, ...]]:
    """Return, likeliest first, which numbers follow the heads: counts and inner widths, all, counts, none."""
    counts: list[Attribute] = []
    inner: list[Attribute] = []
    others: list[Attribute] = []
    in_config: list[Attribute] = []
    sizes = {heads.queries * each for each in (heads.width, heads.value)}
    sizes |= {heads.keys * each for each in (heads.width, heads.value)} if heads.keys > 1 else set()
    sizes |= {2 * size for size in sizes} | {3 * size for size in sizes}
    for number in numbers:
        attribute = Attribute(number.module, number.name, number.value // heads.units)
        if number.value % heads.units or is_width(number.name):
            continue
        if "." in number.name:
            if number.value in (heads.queries, heads.keys):
                in_config.append(attribute)
        elif number.value in (heads.queries, heads.keys) and _counts_heads(number.name, keys=True):
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
    sets = [(*counts, *inner), (*counts, *inner, *others), tuple(counts), ()]
    if in_config:
        sets.insert(2, (*counts, *inner, *in_config))
    return list(dict.fromkeys(sets))


def _slices_per_head(model: nn.Module, place: str, heads: Heads) -> tuple[Slice, ...]:
    """Return slices of the attention's own tensors that have an element for each head along one axis.

    So do tables of relative positions, embeddings as wide as there are heads.
    """
    module = model.get_submodule(place)
    found = [
        Slice(f"{_join(place, name)}.weight", 1, 0, heads.queries_each)
        for name, child in module.named_children()
        if isinstance(child, nn.Embedding) and child.embedding_dim == heads.queries
    ]
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        for width in (1, heads.width):
            axes = [axis for axis, size in enumerate(tensor.shape) if size == heads.queries * width]
            if len(axes) == 1:
                found.append(Slice(_join(place, name), axes[0], 0, heads.queries_each * width))
                break
    return tuple(found)


def _ways_of_gates(model: nn.Module, attention: Attention, heads: Heads) -> list[tuple[Slice, ...]]:
    """Return, likeliest first, slices of layers that may give a number for each head, none of them last.

    A gate of what a head forgets, or of its output, lies beside the projections and has as many outputs as
    there are heads. So may a layer that has nothing to do with them (a router, the model's classes): all are
    tried, then those alone that are called a gate.
    """
    place = attention.place
    taken = {attention.output, *(part.module for part in attention.parts)}
    found = [
        name
        for name, child in model.get_submodule(place).named_children()
        if is_projection(child) and length(child, "out") == heads.queries and _join(place, name) not in taken
    ]
    named = [name for name in found if GATE.search(name.lower())]
    run = _Run(0, heads.queries_each)
    ways = [
        tuple(each for name in names for each in run.slices(model, _join(place, name), "out"))
        for names in (found, named, [])
    ]
    return list(dict.fromkeys(ways))
