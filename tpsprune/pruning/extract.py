"""The extraction of a ticket, stage by stage, as one transaction: a fault leaves the model as it was.

The stages have the names that ``ARCHITECTURE.md`` gives them; each is a call into the module of that stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import item_count, take_items
from tpsprune.pruning.costs import Times, timed
from tpsprune.pruning.fitted import Fitted, check_it_runs, choose_and_fit
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.layers import mixer
from tpsprune.pruning.opening import close_layers
from tpsprune.pruning.plain_layers import is_computed
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.planning import WidthPlan, plan_widths
from tpsprune.pruning.race import race
from tpsprune.pruning.recalibration import recalibrate_norms
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import shapes_of, widened_copy
from tpsprune.pruning.verification import check_target_met, verify, verify_split
from tpsprune.recipe.prune import Prune, Tolerance
from tpsprune.records import GroupChange, Unpruned

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
    peers: AbstractPeers = ALONE,
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
        peers: processes that have the same model and batches; each passes its shards of these, the first one
            solves, and all get the same ticket.

    Raises:
        PruneError: nothing can be pruned, the target is out of reach, the calibration data are empty or not
            finite, or the ticket failed its verification.

    Cost: the search for groups; a forward pass of the dense model, one of both, and what verification and
    batch norms take: two to four of the ticket and one of the dense model; the moments and solutions of the
    reconstruction. With ``low_rank`` two more walks and the directions of every layer's outputs.
    """
    times = Times()
    if len(batches) < peers.shards:  # Too few to share: each process does all, and finds the same.
        peers = ALONE
    # Opened, traced, grouped, proved, listed, priced, measured, allocated.
    planned = plan_widths(
        model,
        batches,
        settings,
        labels=labels,
        clock=clock,
        seed=seed,
        objective=objective,
        times=times,
        peers=peers,
    )
    return draw(model, batches, settings, planned, clock=clock, times=times, peers=peers)


@full_precision()
@fixed_seed()
def draw(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    *,
    clock: Callable[[nn.Module], float] | None = None,
    times: Times | None = None,
    peers: AbstractPeers = ALONE,
) -> Extraction:
    """Draw the ticket that was planned: the second half of ``extract``, whose arguments these are."""
    times = Times() if times is None else times
    with timed(times, "race"):
        plans, notes = race(model, batches, settings, planned, clock, peers)
    for rank, plan in enumerate(plans, start=1):
        try:
            return _carry_out(model, batches, settings, plan, notes, times, peers)
        except PruneError as error:
            if rank == len(plans):
                raise
            notes = (f"no layer was split: {error}",)
    raise AssertionError("there is a plan")


def _carry_out(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    notes: tuple[str, ...],
    times: Times,
    peers: AbstractPeers,
) -> Extraction:
    """Carry out a plan: choose, slice, compensate, verify, split, recalibrate, close, write down."""
    narrowed, width_of = planned.narrowed, planned.width_of
    with timed(times, "walk"):
        # Chosen, sliced, compensated.
        fitted = choose_and_fit(model, batches, settings, planned, peers)
    ticket = fitted.ticket
    with timed(times, "verify"):
        whole, ticket = ticket, fitted.split() if fitted.factored else ticket

        def prove() -> float:
            masked = widened_copy(fitted.like, whole, narrowed, fitted.pruned)
            widths = [width_of[group.name] for group in narrowed]
            units = replace(settings, target=planned.target)
            share = verify(whole, masked, model, batches, narrowed, widths, planned.count, units)
            if not fitted.factored:
                return share
            verify_split(ticket, whole, batches)
            few = take_items(batches[0], torch.arange(2))
            return check_target_met(ticket, model, few, planned.count, settings)

        macs_share = peers.first(prove)
    with timed(times, "recalibrate"):
        # Repaired.
        if settings.recalibrate:
            ticket, _ = recalibrate_norms(ticket, model, batches, peers)
    # Closed, written down.
    close_layers(ticket)
    check_it_runs(ticket, batches)
    pruned_of = {each.name: each for each in fitted.pruned}
    kept = (pruned_of.get(each.name) or PrunedGroup.of(each, range(each.width)) for each in planned.groups)
    plan = Plan(
        target=str(settings.target),
        groups=_without_absent(tuple(kept), set(shapes_of(fitted.like))),
        new_biases=fitted.new_biases,
        opened=fitted.names,
        factored=fitted.factored,
        versions=versions(),
        model=signature_of(model),
    )
    changes = (*_changes(planned, fitted.chosen), *_rank_changes(fitted))
    plain = [name for name in fitted.names if is_computed(model.get_submodule(name))]
    notes += (fitted.note,) if fitted.note else ()
    notes += _notes(planned, sum(map(item_count, batches)), fitted.fitted_share, plain, settings)
    return Extraction(ticket, plan, changes, planned.prunability.unpruned, macs_share, notes, times)


def _without_absent(pruned: Sequence[PrunedGroup], present: set[str]) -> tuple[PrunedGroup, ...]:
    """Return the groups without the slices of tensors that are absent: biases not added, closed attention."""
    groups = (
        replace(group, slices=tuple(each for each in group.slices if each.tensor in present))
        for group in pruned
    )
    return tuple(group for group in groups if group.slices)


def _changes(planned: WidthPlan, chosen: Mapping[str, Selection]) -> tuple[GroupChange, ...]:
    measured = bool(planned.statistics.rows)
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


def _rank_changes(fitted: Fitted) -> tuple[GroupChange, ...]:
    """Return the layers that were split, each with the most rank it could have and the rank it has."""
    return tuple(
        GroupChange(group=each.layer, width_before=min(matrix.shape), width_after=each.rank, kind="rank")
        for each in fitted.factored
        for matrix in [mixer(fitted.ticket, each.layer).weight.flatten(1)]
    )


def _notes(
    planned: WidthPlan, items: int, share: float, plain: Sequence[str], settings: Prune
) -> tuple[str, ...]:
    """Return what the user should know: few rows, items left out of the fit, what a tolerance means."""
    few = [
        (rows / group.width, f"{group.name}: the calibration data give {rows} rows for {group.width} units")
        for group in planned.groups
        if 0 < (rows := planned.statistics.rows.get(group.name, 0)) < group.width
    ]
    notes = [f"{note}; more would be better" for _, note in sorted(few)[:MOST_FEW]]
    if len(few) > MOST_FEW:
        notes.append(f"{len(few) - MOST_FEW} more groups have fewer rows of calibration data than units")
    rows_of = planned.statistics.rows
    blind = [each.name for each in planned.groups if each.tied_to and not rows_of.get(each.name)]
    if blind and rows_of:
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
