"""The extraction of a ticket, stage by stage, as one transaction: a fault leaves the model as it was.

The stages have the names that ``ARCHITECTURE.md`` gives them; each is a call into the module of that stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import item_count, take_items
from tpsprune.pruning.calibration import turn_heads
from tpsprune.pruning.costs import Times, own_macs, timed
from tpsprune.pruning.factored import Factored, factor_layers
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.layers import mixer, tensor_axes
from tpsprune.pruning.low_rank import choose_ranks
from tpsprune.pruning.observations import hold_out, sample_items
from tpsprune.pruning.opening import close_layers, open_layers
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.plain_layers import is_computed
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.planning import WidthPlan, choose_units, plan_low_rank, plan_otherwise, plan_widths
from tpsprune.pruning.prunability import layers_gaining_bias
from tpsprune.pruning.recalibration import recalibrate_norms
from tpsprune.pruning.reconstruction import reconstruct, share_held
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import (
    add_biases,
    copy_model,
    elements_kept,
    hold_scale,
    pruned_copy,
    shapes_of,
    widened_copy,
)
from tpsprune.pruning.verification import (
    check_target_met,
    refusing_what_does_not_run,
    verify,
    verify_split,
)
from tpsprune.recipe.prune import Allocation, Macs, Params, Prune, Tolerance
from tpsprune.records import GroupChange, Unpruned

RIVALS: Final[tuple[Allocation, ...]] = ("uniform", "equal-residual")
"""What greedy widths are held against where the quality is ``best``."""
TIMED_TURNS: Final = 3
"""How often layers are timed split and whole, by turns."""
MOST_FEW: Final = 3
"""So many layers are named in a note about several."""


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """A ticket and how it was made.

    ``plan`` replays the pruning on other weights; ``macs_share`` is counted on the ticket; ``notes`` are
    sentences the user should read; ``times`` holds the seconds of each part.
    """

    ticket: nn.Module
    plan: Plan
    changes: tuple[GroupChange, ...]
    unpruned: tuple[Unpruned, ...]
    macs_share: float
    notes: tuple[str, ...]
    times: Times = field(default_factory=Times)


@dataclass(frozen=True, slots=True, eq=False)
class _Compensated:
    """The ticket, its layers fitted to the dense model's.

    ``like`` is the model that it was sliced from: the dense one with the modules ``names`` open and the
    biases ``new_biases``. ``pruned`` is what became of the groups that lose units, ``factored`` the layers of
    low rank, not yet split, ``fitted_share`` the share of the calibration items on which layers were fitted.
    """

    ticket: nn.Module
    like: nn.Module
    names: tuple[str, ...]
    chosen: Mapping[str, Selection]
    pruned: tuple[PrunedGroup, ...]
    new_biases: tuple[str, ...]
    factored: tuple[Factored, ...]
    fitted_share: float

    def split(self) -> nn.Module:
        """Return a copy of the ticket with its layers of low rank split."""
        ticket = copy_model(self.ticket)
        factor_layers(ticket, self.factored)
        return ticket


@full_precision()
@fixed_seed()
def extract(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
) -> Extraction:
    """Draw a ticket from ``model``: fewer units, their consumers' weights compensated for the pruned ones.

    1. Groups of coupled units are found and proved prunable, in a copy with its attention, experts and
    computed weights opened; statistics of the dense model on the calibration data give what
    ``settings.widths`` needs, that the widths that meet ``settings.target``, and the units that are kept.
    2. The tensors are sliced once. 3. In one traversal each layer is fitted to the output of the *dense*
    model's layer from its input in the ticket, so that errors do not add up. 4. The ticket is verified
    against the dense-shaped model with the same units masked. 5. Batch-norm statistics are computed again
    where that lowers the error. 6. Experts are closed again.

    Args:
        model: not changed, whatever happens; it may be in either mode and partly frozen.
        batches: prepared calibration batches on the model's device, a few hundred items or more in all,
            without labels.
        settings: the target and what may be done for it.
        labels: one tensor for each batch; only ``units = "taylor"`` uses them.
        clock: seconds of a forward pass of a model; a target of latency needs it, and ``low_rank = "auto"``.
        seed: of units chosen at random.
        objective: what labels are for: cross-entropy over classes by default.

    Raises:
        PruneError: nothing can be pruned, the target is out of reach, the calibration data are empty or not
            finite, or the ticket failed its verification.

    Cost: the search for groups; a forward pass of the dense model, one of both, and what verification and
    batch norms take: two to four of the ticket and one of the dense model; the moments and solutions of the
    reconstruction. With ``low_rank`` two more walks and the directions of every layer's outputs.
    """
    times = Times()
    # Opened, traced, grouped, proved, listed, priced, measured, allocated.
    planned = plan_widths(
        model, batches, settings, labels=labels, clock=clock, seed=seed, objective=objective, times=times
    )
    with timed(times, "race"):
        planned, notes = _race(model, batches, settings, planned, clock)
    narrowed, width_of = planned.narrowed, planned.width_of
    with timed(times, "walk"):
        # Chosen, sliced, compensated.
        fitted = _choose_and_compensate(model, batches, settings, planned)
    ticket = fitted.ticket
    with timed(times, "verify"):
        masked = widened_copy(fitted.like, ticket, narrowed, fitted.pruned)
        widths = [width_of[group.name] for group in narrowed]
        units = replace(settings, target=planned.target)
        macs_share = verify(ticket, masked, model, batches, narrowed, widths, planned.count, units)
        if fitted.factored:
            ticket = fitted.split()
            verify_split(ticket, fitted.ticket, batches)
            few = take_items(batches[0], torch.arange(2))
            macs_share = check_target_met(ticket, model, few, planned.count, settings)
    with timed(times, "recalibrate"):
        # Repaired.
        if settings.recalibrate:
            ticket, _ = recalibrate_norms(ticket, model, batches)
    # Closed, written down.
    close_layers(ticket)
    _check_it_runs(ticket, batches)
    pruned_of = {each.name: each for each in fitted.pruned}
    whole = (pruned_of.get(each.name) or PrunedGroup.of(each, range(each.width)) for each in planned.groups)
    plan = Plan(
        target=str(settings.target),
        groups=_without_absent(tuple(whole), set(shapes_of(fitted.like))),
        new_biases=fitted.new_biases,
        opened=fitted.names,
        factored=fitted.factored,
        versions=versions(),
        model=signature_of(model),
    )
    changes = (*_changes(planned, fitted.chosen), *_rank_changes(fitted))
    plain = [name for name in fitted.names if is_computed(model.get_submodule(name))]
    notes += _notes(planned, sum(map(item_count, batches)), fitted.fitted_share, plain, settings)
    return Extraction(ticket, plan, changes, planned.prunability.unpruned, macs_share, notes, times)


def _race(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    clock: Callable[[nn.Module], float] | None,
) -> tuple[WidthPlan, tuple[str, ...]]:
    """Return the plan that errs least on calibration data held out, each compensated on the rest.

    The plan as it is, with quality ``best`` other allocations, and where they are allowed layers of low rank;
    a note says what those bring. With one plan alone nothing is run.
    """
    plans = [planned]
    if (
        settings.quality == "best"
        and settings.widths == "greedy"
        and isinstance(settings.target, Macs | Params)
    ):
        plans += [plan_otherwise(planned, settings, rival) for rival in RIVALS]
        plans = list({plan.widths: plan for plan in reversed(plans)}.values())
    if len(plans) == 1 and not settings.low_rank:
        return planned, ()
    fit, held = hold_out(batches)

    def run(plan: WidthPlan) -> tuple[float, _Compensated | None, str]:
        try:
            fitted = _choose_and_compensate(model, fit, settings, plan)
            return output_error(fitted.split(), model, held), fitted, ""
        except PruneError as error:  # It does not run at these widths.
            return math.inf, None, str(error)

    best, error, fitted, _ = min(((plan, *run(plan)) for plan in plans), key=lambda each: each[1])
    if not settings.low_rank or fitted is None:
        return best, ()
    ranked = plan_low_rank(best, model, batches, settings)
    split, split_error, split_fitted, reason = min(
        ((plan, *run(plan)) for plan in ranked), key=lambda each: each[1]
    )
    if split_fitted is None:
        return best, (f"no layer was split: {reason}",)
    count = len(split_fitted.factored)
    layers = f"{count} layer{'' if count == 1 else 's'} of low rank"
    found = f"an error of {split_error:.2g} on calibration data held out, of units alone {error:.2g}"
    if not split_error < error:
        return best, (f"{layers} would leave {found}: none was split",)
    models = split_fitted.split(), split_fitted.ticket, fitted.ticket
    for each in models:
        close_layers(each)
    seconds, whole_seconds, units_seconds = _times_of(models, clock)
    if settings.low_rank == "auto" and not seconds < whole_seconds:
        slower = f"{seconds / whole_seconds:.2f} times as long as whole"
        return best, (f"{layers} would leave {found}, but take {slower}, measured here: none was split",)
    taken = f", and {seconds / units_seconds:.2f} times the time of a pass, measured here" if clock else ""
    return split, (f"{layers} leave {found}{taken}",)


def _times_of(models: Sequence[nn.Module], clock: Callable[[nn.Module], float] | None) -> tuple[float, ...]:
    """Return the medians of some turns of a clock; without one each model is faster than the next."""
    if clock is None:
        return tuple(map(float, range(len(models))))
    turns = [[clock(each) for each in models] for _ in range(TIMED_TURNS)]
    return tuple(map(median, zip(*turns, strict=True)))


def _choose_and_compensate(
    model: nn.Module, batches: Sequence[Any], settings: Prune, planned: WidthPlan
) -> _Compensated:
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
    _check_it_runs(ticket, batches)
    factored: tuple[Factored, ...] = ()
    if planned.outputs:
        factored = _choose_layers_to_split(like, ticket, pruned, settings, planned)
    share = 1.0
    if settings.compensate:
        share = share_held(statistics, batches, settings.activation_gib)
        if share < 1.0:
            items = sum(map(item_count, batches))
            batches = list(sample_items(batches, max(8, math.ceil(share * items)), items))
        reconstruct(
            like,
            ticket,
            batches,
            narrowed,
            chosen,
            statistics.calls,
            refits=settings.reconstruct,
            ranks={each.layer: each.rank for each in factored},
        )
    return _Compensated(ticket, like, names, chosen, pruned, new_biases, factored, share)


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

    outputs = {name: each for name, each in planned.outputs.items() if name in there}
    saving = planned.costs.at(planned.widths) - settings.target.share * planned.costs.total
    return choose_ranks(ticket, outputs, kept_outputs, price, saving, settings)


def _check_it_runs(ticket: nn.Module, batches: Sequence[Any]) -> None:
    with torch.no_grad(), evaluation_mode(ticket), refusing_what_does_not_run():
        call_model(ticket, take_items(batches[0], torch.arange(2)))


def _without_absent(pruned: Sequence[PrunedGroup], present: set[str]) -> tuple[PrunedGroup, ...]:
    """Return the groups without the slices of tensors that are absent: biases not added, closed attention."""
    groups = (
        replace(group, slices=tuple(each for each in group.slices if each.tensor in present))
        for group in pruned
    )
    return tuple(group for group in groups if group.slices)


def _changes(planned: WidthPlan, chosen: Mapping[str, Selection]) -> tuple[GroupChange, ...]:
    measured = bool(planned.statistics.moments)
    ranks: Sequence[float | None] = planned.evidence.ranks or [None] * len(planned.groups)
    residual = {name: selection.residual_shares[-1] for name, selection in chosen.items() if measured}
    changes = {
        group.tied_to or group.name: GroupChange(
            group=group.tied_to or group.name,
            width_before=group.width,
            width_after=width,
            effective_rank=rank,
            residual_share=residual.get(group.name, 0.0) if measured else None,
            kind=group.kind,
        )
        for group, width, rank in reversed(list(zip(planned.groups, planned.widths, ranks, strict=True)))
    }
    return tuple(reversed(changes.values()))


def _rank_changes(fitted: _Compensated) -> tuple[GroupChange, ...]:
    """Return the layers that were split, each with the most rank it could have and the rank it has."""
    sizes = {each.layer: mixer(fitted.ticket, each.layer).weight for each in fitted.factored}
    return tuple(
        GroupChange(
            group=each.layer,
            width_before=min(len(weight), weight[0].numel()),
            width_after=each.rank,
            kind="rank",
        )
        for each in fitted.factored
        for weight in [sizes[each.layer]]
    )


def _notes(
    planned: WidthPlan, items: int, share: float, plain: Sequence[str], settings: Prune
) -> tuple[str, ...]:
    """Return what the user should know: few rows, items left out of the fit, what a tolerance means."""
    few = [
        (rows / group.width, f"{group.name}: the calibration data give {rows} rows for {group.width} units")
        for group in planned.groups
        if 0 < (rows := planned.statistics.rows(group)) < group.width
    ]
    notes = [f"{note}; more would be better" for _, note in sorted(few)[:MOST_FEW]]
    if len(few) > MOST_FEW:
        notes.append(f"{len(few) - MOST_FEW} more groups have fewer rows of calibration data than units")
    blind = [each.name for each in planned.groups if each.tied_to and not planned.statistics.rows(each)]
    if blind and planned.statistics.moments:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        notes.append(f"{blind[0]}{more}: no calibration item reached it; which units it keeps says nothing")
    if plain:
        names = ", ".join(plain[:MOST_FEW])
        names += f" and {len(plain) - MOST_FEW} more" if len(plain) > MOST_FEW else ""
        notes.append(
            f"{names}: the dense model computes the weight on every call; the ticket has it as it was, in a "
            "plain layer, and shares are of the model with such layers"
        )
    notes += [
        f"{name or 'the model itself'}: what it multiplies does not follow the widths in proportion and was "
        "priced as constant; the ticket may have fewer multiply-accumulates than the target"
        for name in planned.costs.unpriced
    ]
    notes += [f"{each} is not among the multiply-accumulates counted" for each in planned.count.uncounted]
    if share < 1.0:
        notes.append(
            f"layers were fitted on {share:.0%} of the {items} calibration items, to "
            "hold no more activations than prune.activation_gib allows"
        )
    if isinstance(settings.target, Tolerance):
        notes.append(
            f"the tolerance of {settings.target.tolerance:g} was held to each group of the dense model by "
            "itself; behind groups that were pruned as well one may leave more"
        )
    return tuple(notes)
