"""What a model costs as an exact function of the widths of its groups; latency, which is measured instead.

Also the seconds that each part of an extraction takes (``Times``).

Shape letters: b sets of widths, g groups, a axes of tensors, t terms, x axes of one term.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any, Final, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.macs import MacCount, count_macs, countable_copy
from tpsprune.pruning.groups import Group, PrunedGroup
from tpsprune.pruning.layers import length, mixer
from tpsprune.pruning.opening import close_layers
from tpsprune.pruning.surgery import pruned_copy, shapes_of
from tpsprune.recipe.prune import Bytes, Params, Prune

Shape: TypeAlias = tuple[int, ...]
Term: TypeAlias = tuple[float, list[tuple[int, dict[int, int]]]]
"""A factor, and for each axis its length and how much of it a unit of each group is."""

TIMED_PAIRS: Final = 3


@final
@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """Cost = constant + Σ_t factor_t · Π_x (elements kept along axis x of term t).

    A layer multiplies each element of its weight equally often, so its multiply-accumulates are those per
    element times the elements kept; a tensor's parameters are its elements. What units are multiplied by
    without weights (attention scores) is proportional to their number; what no group touches is constant. A
    group of head width keeps its share of every head: an axis of heads counts as two, one of heads and one of
    dimensions. Of an attention's own products those of queries and keys are proportional to that width.

    ``total`` is the dense model's cost; biases that compensation adds make ``at(widths)`` a little more than
    that. ``unpriced`` names modules whose products do not follow the widths in proportion: they count as
    constant.
    """

    unit: str
    widths: tuple[int, ...]
    kinds: tuple[str, ...]
    multiples: tuple[int, ...]
    total: int
    constant: float
    lengths_a: Tensor
    elements_ag: Tensor
    factors_t: Tensor
    axes_tx: Tensor
    unpriced: tuple[str, ...] = ()

    @classmethod
    def of_macs(
        cls,
        groups: Sequence[Group],
        shapes: Mapping[str, Shape],
        count: MacCount,
        recount: Callable[[Sequence[PrunedGroup]], MacCount] | None = None,
    ) -> Self:
        """Build the multiply-accumulates of one item from the dense model's groups, shapes and count.

        Args:
            groups: of the dense model.
            shapes: of its tensors, by name.
            count: of the dense model.
            recount: counts the model pruned, on as many items; without it what is multiplied without a
                layer's weight or a group's core is taken for constant.
        """
        own = own_macs(count)
        weights = {
            name: own[module] / max(1, prod(shape))
            for name, shape in shapes.items()
            if (module := name.removesuffix(".weight")) in own
        }
        inside = _modules_of_cores(groups, own, weights)
        inside = {
            core: [name for name in names if f"{name}.weight" not in shapes] for core, names in inside.items()
        }
        terms: list[Term] = []
        for core, names in inside.items():
            terms += _terms_of_core(core, sum(own[name] for name in names), groups)
        unpriced: tuple[str, ...] = ()
        if recount:
            known = {name.removesuffix(".weight") for name in weights}.union(*inside.values())
            free, unpriced = _terms_of_products(groups, count, recount, known)
            terms += free
        model = cls._of("multiply-accumulates", groups, shapes, weights, terms, count.total, count.total)
        return replace(model, unpriced=unpriced)

    @classmethod
    def of_params(cls, groups: Sequence[Group], shapes: Mapping[str, Shape], total: int) -> Self:
        """Build the number of parameters.

        Args:
            groups: of the dense model.
            shapes: of its parameters, each under one name, and of the biases that compensation will add.
            total: parameters of the dense model, without those biases.
        """
        held = sum(prod(shape) for shape in shapes.values())
        return cls._of("parameters", groups, shapes, dict.fromkeys(shapes, 1.0), (), held, total)

    @classmethod
    def of_bytes(
        cls, groups: Sequence[Group], tensors: Mapping[str, Tensor], biases: Mapping[str, Tensor]
    ) -> Self:
        """Build the bytes of the tensors of the state dict: the file as safetensors, but for its header.

        Args:
            groups: of the dense model.
            tensors: its state dict; one that has several names is written once for each.
            biases: that compensation will add, by name.
        """
        name_of: dict[int, str] = {}
        per_element: dict[str, float] = defaultdict(float)
        for name, tensor in (*tensors.items(), *biases.items()):
            per_element[name_of.setdefault(id(tensor), name)] += tensor.element_size()
        shapes = {name: tuple(each.shape) for name, each in (*tensors.items(), *biases.items())}
        held, total = bytes_of({**tensors, **biases}), bytes_of(tensors)
        return cls._of("bytes", groups, shapes, per_element, (), held, total)

    @classmethod
    def _of(
        cls,
        unit: str,
        groups: Sequence[Group],
        shapes: Mapping[str, Shape],
        per_element: Mapping[str, float],
        others: Sequence[Term],
        held: int,
        total: int,
    ) -> Self:
        touched: dict[str, dict[int, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
        for rank, group in enumerate(groups):
            for slice_ in (each for each in dict.fromkeys(group.slices) if each.tensor in per_element):
                axis = touched[slice_.tensor][slice_.axis]
                axis[rank] = axis.get(rank, 0) + slice_.block * slice_.repeat
        terms: list[Term] = []
        for tensor, pruned in touched.items():
            shape = shapes[tensor]
            factor = per_element[tensor] * prod(size for axis, size in enumerate(shape) if axis not in pruned)
            axes = []
            for place, by in pruned.items():
                across = [rank for rank in by if groups[rank].scores is not None]
                axes.append((shape[place], {rank: own for rank, own in by.items() if rank not in across}))
                axes += [(groups[rank].width, {rank: 1}) for rank in across]
                factor /= prod(groups[rank].width for rank in across)
            terms.append((factor, axes))
        terms += others
        # Axis 0 is one element long and loses none: it fills up terms of fewer axes.
        lengths, per_unit, places = [1], [[0] * len(groups)], []
        most = max((len(axes) for _, axes in terms), default=1)
        for _, axes in terms:
            places.append([*range(len(lengths), len(lengths) + len(axes)), *[0] * (most - len(axes))])
            lengths += [length for length, _ in axes]
            per_unit += [[by.get(rank, 0) for rank in range(len(groups))] for _, by in axes]
        varying = sum(factor * prod(length for length, _ in axes) for factor, axes in terms)
        return cls(
            unit,
            tuple(group.width for group in groups),
            tuple(group.kind for group in groups),
            tuple(group.multiple for group in groups),
            total,
            held - varying,
            torch.tensor(lengths, dtype=torch.float64),
            torch.tensor(per_unit, dtype=torch.float64),
            torch.tensor([factor for factor, _ in terms], dtype=torch.float64),
            torch.tensor(places, dtype=torch.int64).reshape(len(terms), most),
        )

    def at(self, widths: Sequence[int]) -> float:
        """Return the cost at ``widths``, one for each group."""
        return float(self.at_each(torch.tensor([list(widths)]))[0])

    def at_each(self, widths_bg: Tensor) -> Tensor:
        """Return the costs ``cost_b`` at several sets of widths at once."""
        removed_bg = torch.tensor(self.widths, dtype=torch.float64) - widths_bg
        kept_ba = self.lengths_a - removed_bg @ self.elements_ag.T
        return self.constant + kept_ba[:, self.axes_tx].prod(-1) @ self.factors_t


def _modules_of_cores(
    groups: Sequence[Group], own: Mapping[str, int], weights: Iterable[str]
) -> dict[str, list[str]]:
    """Return the modules that multiply in each core of a group: itself and those in it without weights."""
    found: dict[str, list[str]] = {}
    for core in dict.fromkeys(name for group in groups for name in group.cores):
        theirs = {slice_.tensor for group in groups if core in group.cores for slice_ in group.slices}
        # A module with layers that these groups do not touch multiplies something else.
        others = {name for tensor in weights if tensor not in theirs for name in parents_of(tensor)}
        found[core] = [
            name for name in own if name == core or (name not in others and core in parents_of(name))
        ]
    return found


def _terms_of_products(
    groups: Sequence[Group],
    count: MacCount,
    recount: Callable[[Sequence[PrunedGroup]], MacCount],
    known: Container[str],
) -> tuple[list[Term], tuple[str, ...]]:
    """Return the terms of products outside the modules ``known``, and the modules that have no such terms.

    The model is counted with half of each group pruned. A length that falls by the same number for every
    unit is an axis of that group's units; a product has several, and the square of a width is two.

    Cost: a count with all groups pruned at once; where that changes such a product, one for each group.
    """
    free = [rank for rank, each in enumerate(count.products) if each.module not in known]
    if not free:
        return [], ()
    halves = [PrunedGroup.of(group, range(max(1, group.width // 2))) for group in groups]
    whole, joint = count.products, recount(halves).products
    if [each.module for each in joint] != [each.module for each in whole]:
        return [], tuple(dict.fromkeys(whole[rank].module for rank in free))
    moved = [rank for rank in free if joint[rank] != whole[rank]]
    axes: dict[int, list[dict[int, int]]] = {rank: [{} for _ in whole[rank].lengths] for rank in moved}
    for place, half in enumerate(halves if moved else ()):
        alone = recount([half]).products
        for rank in moved:
            falls = zip(axes[rank], whole[rank].lengths, alone[rank].lengths, strict=True)
            for axis, before, after in falls:
                if before != after:
                    axis[place] = (before - after) // len(half.removed)
    terms: list[Term] = []
    unpriced = []
    for rank in moved:
        lengths = whole[rank].lengths
        kept = [
            length - sum(own * len(halves[place].removed) for place, own in axis.items())
            for length, axis in zip(lengths, axes[rank], strict=True)
        ]
        if kept != list(joint[rank].lengths):
            unpriced.append(whole[rank].module)
            continue
        constant = prod(length for length, axis in zip(lengths, axes[rank], strict=True) if not axis)
        varying = [(length, axis) for length, axis in zip(lengths, axes[rank], strict=True) if axis]
        terms.append((constant / count.items, varying))
    return terms, tuple(dict.fromkeys(unpriced))


def _terms_of_core(core: str, macs: float, groups: Sequence[Group]) -> list[Term]:
    """Return the terms of what a module multiplies itself: scores, in step with the width, and values."""
    named = [(rank, group) for rank, group in enumerate(groups) if core in group.cores]
    heads = [(group.width, {rank: 1}) for rank, group in named if group.scores is None]
    rest = macs / prod(width for width, _ in heads)
    terms: list[Term] = []
    for rank, group in named:
        if group.scores is not None:
            each = rest / (group.width + group.scores.value)
            terms.append((each, [*heads, (group.width, {rank: 1})]))
            rest = each * group.scores.value
    return [*terms, (rest, heads)]


def own_macs(count: MacCount) -> dict[str, int]:
    """Return what each module multiplies itself, without the modules in it; the whole model is ''."""
    own = {"": count.total, **count.by_module}
    for name, macs in count.by_module.items():
        own[next(parent for parent in parents_of(name) if parent in own)] -= macs
    return own


def parents_of(name: str) -> Iterator[str]:
    """Yield the names of the modules around one, from the inside out; the whole model is ''."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def cost_model(
    model: nn.Module,
    groups: Sequence[Group],
    count: MacCount,
    settings: Prune,
    new_biases: Sequence[str] = (),
    *,
    batch: Any = None,
) -> CostModel:
    """Return what a model costs in the unit of the target; ``new_biases`` names layers that gain a bias.

    ``batch`` is the one that was counted; without it products of activations are priced for attention only.
    """
    if isinstance(settings.target, Bytes):
        like = next(model.parameters())
        gained = {f"{name}.bias": like.new_zeros(length(mixer(model, name), "out")) for name in new_biases}
        return CostModel.of_bytes(groups, model.state_dict(keep_vars=True), gained)
    if not isinstance(settings.target, Params):
        recount = None if batch is None else _recounter(model, batch)
        return CostModel.of_macs(groups, shapes_of(model), count, recount)
    held = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    biases = {f"{name}.bias": (length(mixer(model, name), "out"),) for name in new_biases}
    return CostModel.of_params(groups, {**held, **biases}, total)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors, of one that has several names once for each."""
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _recounter(model: nn.Module, batch: Any) -> Callable[[Sequence[PrunedGroup]], MacCount]:
    copies: list[nn.Module] = []

    def recount(pruned: Sequence[PrunedGroup]) -> MacCount:
        if not copies:
            copies.append(countable_copy(model, batch))
        return count_macs(pruned_copy(copies[0], pruned), batch)

    return recount


def measured_shares(
    model: nn.Module,
    groups: Sequence[Group],
    clock: Callable[[nn.Module], float],
    *,
    dense: nn.Module,
) -> Callable[[Sequence[int]], float]:
    """Return a function that measures a pruned model's time, or energy, as a share of the dense model's.

    It prunes a copy to the widths it is called with, to whichever units: neither depends on values. The
    dense and the pruned model are measured in turn, so that a machine that slows down slows both, and the
    median of three ratios counts.

    Args:
        model: the dense model, in the shape in which it is pruned.
        groups: what can be pruned of it.
        dense: the model as it is; what a ticket closes again is measured closed.
        clock: seconds or joules of a forward pass; it warms up, repeats and waits for the device itself.

    Cost: a copy of the model and six calls of ``clock`` for each set of widths.
    """

    def share(widths: Sequence[int]) -> float:
        ticket = sliced_shell(model, groups, widths)
        return median(clock(ticket) / clock(dense) for _ in range(TIMED_PAIRS))

    return share


def sliced_shell(model: nn.Module, groups: Sequence[Group], widths: Sequence[int]) -> nn.Module:
    """Return an opened model at some widths, closed again: its first units, whichever these are."""
    pruned = [PrunedGroup.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
    shell = pruned_copy(model, pruned)
    close_layers(shell)
    return shell


@dataclass(slots=True)
class Times:
    """Seconds of each part of an extraction, under the names that reports have for them.

    ``survey`` finds groups, ``look`` takes calibration statistics, ``walk`` reconstructs and slices,
    ``race`` does so for several allocations of widths.
    """

    survey: float = 0.0
    look: float = 0.0
    widths: float = 0.0
    race: float = 0.0
    walk: float = 0.0
    verify: float = 0.0
    recalibrate: float = 0.0
    repair: float = 0.0


@contextmanager
def timed(times: Times, part: str) -> Iterator[None]:
    """Add the seconds until the block is left, work on an accelerator included, to one part."""
    began = time.perf_counter()
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        setattr(times, part, getattr(times, part) + time.perf_counter() - began)
