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

from tpsprune.errors import PruneError, first_line
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.low_rank_layer import LowRank, low_rank_like
from tpsprune.numerics.moments import Moments, MomentSums
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.factored import Factored, why_it_is_not_split
from tpsprune.pruning.layers import channels_first, is_transposed_linear, length, mixer
from tpsprune.pruning.measured_cuts import items_to_measure
from tpsprune.pruning.observations import count_places, read_outputs, sample_items, sample_places, with_items
from tpsprune.pruning.open_experts import OpenExperts
from tpsprune.pruning.output_error import error_of, predict
from tpsprune.pruning.reconstruction import refusal_to_refit
from tpsprune.pruning.surgery import copy_model
from tpsprune.pruning.widths import width_step
from tpsprune.recipe.prune import Prune

LEAST_WIDTH: Final = 4
ITEMS: Final = 256
"""Items on which the directions of the outputs are found, thirty-two at a time."""
AT_A_TIME: Final = 32
MOST_OUTPUTS: Final = 2048
"""Of more outputs the eigenvectors alone take minutes."""
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


def layers_to_split(model: nn.Module, batch: Any, settings: Prune) -> list[str]:
    """Return the layers that can be split.

    Plain ones of one owner and one name, trained, outside of experts and adapters, whose weight no other code
    reads: it would compute the product of two on each call.

    Args:
        model: not changed; a copy with all such layers split is called in evaluation mode.
        batch: a few items.
        settings: ``ignored_layers`` are not split.

    Raises:
        PruneError: the model does not run with layers split.
    """
    if hasattr(model, "peft_config"):  # An adapter is saved by the names of its layers.
        return []
    names = _plain_layers(model, settings)
    shell = copy_model(model)
    noting = [_Noting.of(shell, name) for name in names]
    try:
        with torch.no_grad(), evaluation_mode(shell):
            call_model(shell, batch)
    # The model's own code runs here, and may raise anything.
    except Exception as error:
        raise PruneError(f"the model does not run with layers split ({first_line(error)})") from error
    return [name for name, pair in zip(names, noting, strict=True) if not pair.was_read]


class _Noting(LowRank):
    """A split layer that notes whether its weight is read."""

    was_read = False

    @property
    def weight(self) -> Tensor:
        self.was_read = True
        return super().weight

    @classmethod
    def of(cls, model: nn.Module, name: str) -> _Noting:
        """Split a layer of a model in place, at rank one, without values."""
        pair = low_rank_like(model.get_submodule(name), 1)
        noting = cls()
        for part_name, part in pair.named_children():
            nn.init.zeros_(part.get_parameter("weight"))
            noting.add_module(part_name, part)
        model.set_submodule(name, noting)
        return noting


def _plain_layers(model: nn.Module, settings: Prune) -> list[str]:
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
        if length(module, "out") > MOST_OUTPUTS or min(weight.shape[:2]) < LEAST_WIDTH:
            continue
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
        shape = with_items(module, output).shape
        places = math.prod(shape[2:] if channels_first(module) else shape[1:-1])
        count = count_places(length(module, "out"), items)
        places_s = sample_places(places, count, torch.Generator().manual_seed(sums[name].rows))
        if output.numel():
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


@dataclass(frozen=True, slots=True)
class Point:
    """A layer at a rank, 0 for whole: what it costs, in the unit of the target, and what is lost there."""

    cost: float
    loss: float
    rank: int


def choose_ranks(
    ticket: nn.Module,
    outputs: Mapping[str, Outputs],
    kept: Callable[[str], Tensor | None],
    price: Callable[[str], float],
    saving: float,
    settings: Prune,
) -> tuple[Factored, ...]:
    """Return the layers to split and their ranks, so that ``saving`` is saved where least is lost for it.

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
    points = {
        name: points_of(mixer(ticket, name).weight.numel(), each, kept(name), price(name), settings.round_to)
        for name, each in outputs.items()
    }
    return tuple(
        Factored(layer=name, rank=rank, turned=is_transposed_linear(ticket.get_submodule(name)))
        for name, rank in allocate_ranks(points, saving).items()
    )


def points_of(
    elements: int, outputs: Outputs, kept: Tensor | None, price: float, round_to: int | str
) -> list[Point]:
    """Return a layer whole, and at each rank at which it costs less, from the dearest to the cheapest."""
    covariance_qq = outputs.moments.covariance_nn
    if kept is not None:
        covariance_qq = covariance_qq.index_select(0, kept := kept.to(covariance_qq.device))[:, kept]
    lost_r = lost_by_rank(covariance_qq)
    q = len(lost_r)
    p = elements // q
    step = width_step(min(p, q)) if isinstance(round_to, str) else round_to
    ranks = range(step * (min(p, q) // step), 0, -step)
    return [
        Point(price * elements, 0.0, 0),
        *(
            Point(price * rank * (p + q), outputs.worth * _loss(lost_r[rank - 1]), rank)
            for rank in ranks
            if rank * (p + q) < elements
        ),
    ]


def allocate_ranks(points: Mapping[str, Sequence[Point]], saving: float) -> dict[str, int]:
    """Return the rank of each layer that is split, so that ``saving`` is saved.

    Of its points each layer has those on the lower convex hull of loss over cost; the steps of all layers are
    taken in the order of loss per cost saved, until enough is saved. What is saved beyond that goes back, a
    rank at a time, where it lowers the loss most.

    >>> line = [Point(10.0, 0.0, 0), Point(8.0, 1.0, 4), Point(4.0, 2.0, 2), Point(2.0, 9.0, 1)]
    >>> allocate_ranks({"a": line, "b": [Point(10.0, 0.0, 0), Point(5.0, 50.0, 1)]}, 2.0)
    {'a': 4}
    >>> allocate_ranks({"a": line}, 8.0)
    {'a': 1}

    Raises:
        PruneError: with all layers at their least rank less is saved.
    """
    steps = [
        (name, own[before], own[after], after)
        for name, own in points.items()
        for before, after in _hull(own)
        if own[after].cost < own[before].cost
    ]
    steps.sort(key=lambda step: (step[2].loss - step[1].loss) / (step[1].cost - step[2].cost))
    place: dict[str, int] = {}
    for name, before, after, there in steps:
        if saving <= 0.0:
            break
        place[name] = there
        saving -= before.cost - after.cost
    if saving > 0.0:
        raise PruneError("layers of low rank do not save enough")
    while True:
        back = {
            name: (points[name][there], points[name][there - 1])
            for name, there in place.items()
            if points[name][there - 1].cost - points[name][there].cost <= -saving
        }
        if not back:
            return {name: points[name][there].rank for name, there in place.items() if there}
        gains = {name: (now.loss - then.loss) / (then.cost - now.cost) for name, (now, then) in back.items()}
        name = max(gains, key=gains.__getitem__)
        now, then = back[name]
        place[name] -= 1
        saving += then.cost - now.cost
        if not place[name]:
            del place[name]


def _hull(points: Sequence[Point]) -> list[tuple[int, int]]:
    """Return the steps of the lower convex hull of loss over cost, from the dearest point down, by place."""
    steps, at = [], 0
    while at < len(points) - 1:
        here = points[at]
        after = min(
            range(at + 1, len(points)),
            key=lambda k: (points[k].loss - here.loss) / max(here.cost - points[k].cost, 1e-30),
        )
        steps.append((at, after))
        at = after
    return steps
