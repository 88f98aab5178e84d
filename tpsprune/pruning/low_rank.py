"""Which layers of a ticket are split in two, and at which rank.

A layer whose outputs vary in few directions is nearly a product of two smaller ones: r·(p + q)
multiply-accumulates a place in place of p·q. Units and rank are different savings: where heads and channels
cannot go any further without harm, directions still can.

What a layer loses at rank r is the share of the variance of its outputs, in the dense model and of the units
that are kept, outside their r strongest directions; what that is worth is measured once for each layer, as
for units (``measured_cuts``). Ranks are then taken down where least is lost per operation saved.

Shape letters: p features of a layer (inputs times kernel places), q outputs, r the rank, s sampled places, b
items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.moments import Moments, MomentSums
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.factored import Factored, why_it_is_not_split
from tpsprune.pruning.layers import channels_first, is_transposed_linear, length, mixer
from tpsprune.pruning.measured_cuts import items_to_measure
from tpsprune.pruning.observations import count_places, read_outputs, sample_items, sample_places, with_items
from tpsprune.pruning.open_experts import OpenExperts
from tpsprune.pruning.output_error import error_of, predict
from tpsprune.pruning.reconstruction import refusal_to_refit
from tpsprune.pruning.widths import width_step
from tpsprune.recipe.prune import Prune

ITEMS: Final = 256
"""Items on which the directions of the outputs are found, thirty-two at a time."""
AT_A_TIME: Final = 32
LITTLE: Final = 0.02
"""A rank that leaves out a smaller share of the variance is no measure of what less would cost."""
TINY: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What is known of a layer of the dense model: moments of its outputs, and what errors there are worth.

    ``worth`` times −ln(1 − share of variance lost) is the error of the model's outputs.
    """

    moments: Moments
    worth: float


def layers_to_split(model: nn.Module, settings: Prune) -> list[str]:
    """Return the layers that can be split: plain, of one owner and one name, trained, outside of experts."""
    inside = {
        f"{name}.{each}"
        for name, module in model.named_modules()
        if isinstance(module, OpenExperts)
        for each, _ in module.named_modules()
    }
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    trains = any(parameter.requires_grad for parameter in model.parameters())
    found = []
    for name, module in model.named_modules():
        if not name or name in inside or len(names[id(module)]) > 1 or why_it_is_not_split(module):
            continue
        if refusal_to_refit(module) or any(fnmatchcase(name, each) for each in settings.ignored_layers):
            continue
        weight = mixer(model, name).weight
        if uses[id(weight)] == 1 and (weight.requires_grad or not trains):
            found.append(name)
    return found


def observe_outputs(model: nn.Module, batches: Sequence[Any], names: Iterable[str]) -> dict[str, Outputs]:
    """Return for each layer the moments of its outputs, and what an error there is worth.

    A layer that no pass calls, or whose outputs do not vary, is left out.

    Args:
        model: dense; not changed, called in evaluation mode.
        batches: prepared calibration batches.
        names: of the layers.

    Cost: a pass over 256 items with q² products a sampled place; a pass over 8 to 64 items for each layer.
    """
    sums: dict[str, MomentSums] = {name: MomentSums() for name in names}
    items = min(ITEMS, sum(map(item_count, batches)))

    def add(module: nn.Module, output: Tensor, name: str) -> Tensor:
        output = with_items(module, output)
        places = math.prod(output.shape[2:] if channels_first(module) else output.shape[1:-1])
        count = count_places(length(module, "out"), items)
        places_s = sample_places(places, count, torch.Generator().manual_seed(sums[name].rows))
        sums[name].add(read_outputs(module, output, places_s).flatten(0, 1))
        return output

    with torch.no_grad(), evaluation_mode(model), _changing(model, sums, add):
        for batch in sample_items(batches, items, AT_A_TIME):
            call_model(model, batch)
    moments = {name: each.moments() for name, each in sums.items() if each.rows}
    moments = {name: each for name, each in moments.items() if float(each.covariance_nn.trace()) > 0.0}
    few = items_to_measure(batches, len(moments))
    dense = list(predict(model, few))
    found: dict[str, Outputs] = {}
    for name, each in moments.items():
        lost_r = lost_by_rank(each.covariance_nn)
        most = len(lost_r) // 2
        rank = next((rank for rank in range(most, 0, -1) if lost_r[rank - 1] >= LITTLE), 1)
        with _changing(model, [name], _projection(each, rank)):
            error = error_of(predict(model, few), iter(dense))
        found[name] = Outputs(each, error / _loss(lost_r[rank - 1]))
    return found


def lost_by_rank(covariance_qq: Tensor) -> list[float]:
    """Return the share of the variance outside the 1, 2, … q strongest directions."""
    variance_q = torch.linalg.eigvalsh(covariance_qq).clamp_min(0.0).flip(0)
    whole = variance_q.sum().clamp_min(torch.finfo(variance_q.dtype).tiny)
    return [float(each) for each in (1.0 - variance_q.cumsum(0) / whole).clamp(0.0, 1.0)]


def _loss(lost: float) -> float:
    return -math.log1p(-min(max(lost, TINY), 1.0 - TINY))


def _projection(moments: Moments, rank: int) -> Callable[[nn.Module, Tensor, str], Tensor]:
    """Return what keeps of a layer's output the strongest directions about its mean."""
    _, directions_qq = torch.linalg.eigh(moments.covariance_nn)
    strongest_qr = directions_qq[:, len(directions_qq) - rank :]

    def project(module: nn.Module, output: Tensor, _name: str) -> Tensor:
        axis = 1 if channels_first(module) else -1
        units = with_items(module, output).movedim(axis, -1)
        mean_q, map_qr = moments.mean_n.to(units), strongest_qr.to(units)
        found: Tensor = mean_q + (units - mean_q) @ map_qr @ map_qr.mT
        return found.movedim(-1, axis).reshape(output.shape)

    return project


@contextmanager
def _changing(
    model: nn.Module, names: Iterable[str], change: Callable[[nn.Module, Tensor, str], Tensor]
) -> Iterator[None]:
    """Have named layers give what ``change`` makes of their outputs."""
    handles = []
    try:
        for name in names:

            def hook(module: nn.Module, _args: Any, output: Any, name: str = name) -> Any:
                return change(module, output, name) if isinstance(output, Tensor) else output

            handles.append(model.get_submodule(name).register_forward_hook(hook, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_ranks(
    ticket: nn.Module,
    outputs: Mapping[str, Outputs],
    kept: Callable[[str], Tensor | None],
    price: Callable[[str], float],
    saving: float,
    settings: Prune,
) -> tuple[Factored, ...]:
    """Return the layers to split and their ranks, so that ``saving`` is saved where least is lost for it.

    Each layer has, of all its ranks, those on the lower convex hull of loss over cost; the steps of all
    layers are taken in the order of loss per cost saved, until enough is saved.

    Args:
        ticket: sliced to its units, not yet fitted.
        outputs: of layers of the dense model.
        kept: which outputs of a layer the ticket has; ``None`` is all of them.
        price: of one element of a layer's weight, in the unit of the target.
        saving: in that unit.
        settings: what ranks are multiples of.

    Raises:
        PruneError: with all layers at their least rank less is saved.
    """
    steps: list[tuple[float, str, int, float]] = []
    for name, each in outputs.items():
        layer = mixer(ticket, name)
        covariance_qq, outputs_q = each.moments.covariance_nn, kept(name)
        if outputs_q is not None:
            outputs_q = outputs_q.to(covariance_qq.device)
            covariance_qq = covariance_qq[outputs_q][:, outputs_q]
        q = len(covariance_qq)
        p = layer.weight.numel() // q
        step = width_step(min(p, q)) if settings.round_to == "auto" else settings.round_to
        lost_r = lost_by_rank(covariance_qq)
        points = [(float(p * q), 0.0, 0)]
        points += [
            (float(rank * (p + q)), each.worth * _loss(lost_r[rank - 1]), rank)
            for rank in range(step * (min(p, q) // step), 0, -step)
            if rank * (p + q) < p * q
        ]
        for before, after in _hull(points):
            saved = price(name) * (before[0] - after[0])
            if saved > 0.0:
                steps.append(((after[1] - before[1]) / saved, name, after[2], saved))
    ranks: dict[str, int] = {}
    for _, name, rank, saved in sorted(steps, key=lambda each: (each[0], -each[3])):
        if saving <= 0.0:
            break
        ranks[name] = rank
        saving -= saved
    if saving > 0.0:
        raise PruneError("layers of low rank do not save enough")
    return tuple(
        Factored(layer=name, rank=rank, turned=is_transposed_linear(ticket.get_submodule(name)))
        for name, rank in ranks.items()
    )


Point = tuple[float, float, int]


def _hull(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Return the steps of the lower convex hull of loss over cost, from the dearest point down."""
    steps, at = [], 0
    while at < len(points) - 1:
        cost, loss, _ = points[at]
        after = min(range(at + 1, len(points)), key=lambda k: (points[k][1] - loss) / (cost - points[k][0]))
        steps.append((points[at], points[after]))
        at = after
    return steps
