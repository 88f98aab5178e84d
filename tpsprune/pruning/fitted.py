"""A ticket sliced to planned widths, its layers fitted to the dense model's: not yet verified."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import item_count, take_items
from tpsprune.pruning.calibration import turn_heads
from tpsprune.pruning.costs import own_macs
from tpsprune.pruning.factored import Factored, factor_layers
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.layers import tensor_axes
from tpsprune.pruning.low_rank import choose_ranks
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.plain_layers import is_computed
from tpsprune.pruning.planning import WidthPlan, choose_units
from tpsprune.pruning.prunability import layers_gaining_bias
from tpsprune.pruning.reconstruction import reconstruct, share_held
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import (
    add_biases,
    copy_model,
    elements_kept,
    hold_scale,
    pruned_copy,
    shapes_of,
)
from tpsprune.pruning.verification import refusing_what_does_not_run
from tpsprune.recipe.prune import Macs, Params, Prune


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The ticket, its layers fitted to the dense model's.

    ``like`` is the model that it was sliced from: the dense one with the modules ``names`` open and the
    biases ``new_biases``. ``pruned`` is what became of the groups that lose units, ``factored`` the layers of
    low rank, not yet split, ``fitted_share`` the share of the calibration items on which layers were fitted,
    ``note`` what the user should know of the fit.
    """

    ticket: nn.Module
    like: nn.Module
    names: tuple[str, ...]
    chosen: Mapping[str, Selection]
    pruned: tuple[PrunedGroup, ...]
    new_biases: tuple[str, ...]
    factored: tuple[Factored, ...]
    fitted_share: float
    note: str = ""

    def split(self) -> nn.Module:
        """Return a copy of the ticket with its layers of low rank split."""
        ticket = copy_model(self.ticket)
        factor_layers(ticket, self.factored)
        return ticket


def choose_and_fit(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    peers: AbstractPeers = ALONE,
) -> Fitted:
    """Choose the units of each group, slice, then fit the layers that are left on the way."""
    narrowed, statistics = planned.narrowed, planned.statistics
    # Attention and experts that keep all their units are not opened.
    touched = {slice_.tensor for group in narrowed for slice_ in group.slices}
    names = tuple(
        name
        for name in planned.prunability.opened
        if any(each.startswith(f"{name}.") for each in touched) or is_computed(model.get_submodule(name))
    )
    like, _ = open_layers(model, names)
    turn_heads(like, narrowed, statistics.score_moments)
    chosen = choose_units(planned, like, settings)
    pruned = tuple(PrunedGroup.of(group, chosen[group.name].units) for group in narrowed)
    new_biases = layers_gaining_bias(like, narrowed, settings)
    add_biases(like, new_biases)
    ticket = pruned_copy(like, pruned)
    for group, each in zip(narrowed, pruned, strict=True):
        hold_scale(ticket, group, len(each.kept))
    check_it_runs(ticket, batches)
    factored: tuple[Factored, ...] = ()
    if planned.outputs is not None:
        factored = _choose_layers_to_split(like, ticket, pruned, settings, planned)
    share, note = 1.0, ""
    if settings.compensate:
        share = share_held(statistics, batches, settings.activation_gib)
        if share < 1.0:
            items = sum(map(item_count, batches))
            batches = list(sample_items(batches, max(8, math.ceil(share * items)), items))
        if len(batches) < peers.shards:  # Too few to share: each process fits on all, and finds the same.
            peers = ALONE
        ranks = {each.layer: each.rank for each in factored}

        def fit(subject: nn.Module, *, refits: bool) -> nn.Module:
            calls = statistics.calls
            reconstruct(
                like, subject, batches, narrowed, chosen, calls, refits=refits, ranks=ranks, peers=peers
            )
            return subject

        again = [name for name, calls in statistics.calls.items() if calls > 1]
        if again and not ranks:
            ways = {
                "": lambda: fit(copy_model(ticket), refits=settings.reconstruct),
                "its consumers were compensated, no layer refitted": lambda: fit(
                    copy_model(ticket), refits=False
                ),
                "nothing was compensated": lambda: ticket,
            }
            ticket, way = _least_error(ways, like, batches)
            if way:
                note = (
                    f"'{again[0]}' is called several times in a pass, and what was fitted to it made the "
                    f"outputs worse: {way}"
                )
        else:
            fit(ticket, refits=settings.reconstruct)
    return Fitted(ticket, like, names, chosen, pruned, new_biases, factored, share, note)


def _least_error(
    ways: Mapping[str, Callable[[], nn.Module]], like: nn.Module, batches: Sequence[Any]
) -> tuple[nn.Module, str]:
    """Return the model whose outputs err least, and the way it was made.

    A layer that reads its own outputs is fitted on inputs that its fit then changes: errors may feed on
    themselves, where each call by itself errs less.
    """
    best: tuple[float, nn.Module, str] | None = None
    for way, make in ways.items():
        model = make()
        error = output_error(model, like, batches)
        if best is None or error < best[0] or not math.isfinite(best[0]):
            best = (error, model, way)
    assert best is not None, "there is a way"
    return best[1], best[2]


def _choose_layers_to_split(
    like: nn.Module, ticket: nn.Module, pruned: Sequence[PrunedGroup], settings: Prune, planned: WidthPlan
) -> tuple[Factored, ...]:
    """Return the layers that save what the widths leave to save until the target is met."""
    assert isinstance(settings.target, Macs | Params), "low_rank_faults refuses another target"
    there = {name for name, _ in like.named_modules()}
    shapes, own = shapes_of(like), own_macs(planned.count)
    kept = elements_kept(shapes, pruned)

    def kept_outputs(name: str) -> Tensor | None:
        axis = tensor_axes(like.get_submodule(name), "out")["weight"]
        return kept.get(f"{name}.weight", {}).get(axis)

    def price(name: str) -> float:
        if isinstance(settings.target, Params):
            return 1.0
        return own.get(name, 0) / math.prod(shapes[f"{name}.weight"])

    outputs = {name: each for name, each in (planned.outputs or {}).items() if name in there}
    saving = planned.costs.at(planned.widths) - settings.target.share * planned.costs.total
    return choose_ranks(ticket, outputs, kept_outputs, price, saving, settings)


def check_it_runs(ticket: nn.Module, batches: Sequence[Any]) -> None:
    """Call a ticket on two items.

    Raises:
        PruneError: it does not run.
    """
    with torch.no_grad(), evaluation_mode(ticket), refusing_what_does_not_run():
        call_model(ticket, take_items(batches[0], torch.arange(2)))
