"""The extraction: a ticket drawn from a model as one transaction. It comes whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from tpsprune.numerics.forward import full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import turn_heads
from tpsprune.pruning.costs import Times, timed
from tpsprune.pruning.groups import Group, PrunedGroup
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.planning import WidthPlan, choose_units, plan_widths
from tpsprune.pruning.prunability import layers_gaining_bias
from tpsprune.pruning.reconstruction import reconstruct, share_held
from tpsprune.pruning.repair import recalibrate_norms
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import add_biases, copy_model, hold_scale, mask_units, pruned_copy, shapes_of
from tpsprune.pruning.verification import verify
from tpsprune.recipe.prune import Prune, Tolerance
from tpsprune.records import GroupChange, Unpruned


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """A ticket and all there is to say about it.

    ``plan`` replays the pruning on other weights; ``macs_share`` is counted on the ticket; ``notes`` are
    sentences the user should read; ``times`` says where the seconds went.
    """

    ticket: nn.Module
    plan: Plan
    changes: tuple[GroupChange, ...]
    unpruned: tuple[Unpruned, ...]
    macs_share: float
    notes: tuple[str, ...]
    times: Times = field(default_factory=Times)


@dataclass(frozen=True, slots=True, eq=False)
class _Reconstruction:
    """A model at the dense shape, compensated, its pruned units masked, and the units chosen by group.

    ``opened`` is the dense model in the shape in which it is pruned; ``share`` is that of the calibration
    data on which layers were fitted.
    """

    opened: nn.Module
    masked: nn.Module
    chosen: Mapping[str, Selection]
    new_biases: tuple[str, ...]
    share: float


@full_precision()
def extract(
    model: nn.Module,
    probe: Sequence[Any],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
) -> Extraction:
    """Draw a ticket from ``model``: fewer units, the weights that read them compensated for the pruned ones.

    1. Groups of coupled units are found and proved prunable, in a copy with its attention opened; calibration
    statistics of the dense model give what ``settings.widths`` needs, and that the widths that meet
    ``settings.target``. 2. In one pass over the layers units are chosen and each layer is fitted to what the
    *dense* model gives there, from what the pruned model feeds it, so that errors do not pile up. 3. The
    tensors are sliced once. 4. The ticket is verified against the same model with the units masked.
    5. Batch-norm statistics are taken anew where that helps.

    Args:
        model: not changed, whatever happens; it may be in either mode and partly frozen.
        probe: prepared batches on the model's device, a few hundred items or more in all; no labels.
        settings: the target and what may be done for it.
        labels: one tensor for each batch; ``units = "taylor"`` alone looks at them.
        clock: seconds of a forward pass of a model; a target of latency alone needs it.
        seed: of units chosen at random.
        objective: what labels are for: cross-entropy over classes by default.

    Raises:
        PruneError: nothing can be pruned, the target is out of reach, the probe is empty or not finite, or
            the ticket failed its verification.

    Cost: the search for groups; a forward pass of the dense model, one of both, and what verification and
    batch norms take: two to four of the ticket and one of the dense model; the moments and solutions of the
    reconstruction.
    """
    times = Times()
    # Groups are found, proved prunable and priced; widths are chosen by calibration statistics.
    ahead = plan_widths(
        model, probe, settings, labels=labels, clock=clock, seed=seed, objective=objective, times=times
    )
    groups = ahead.survey.groups
    widths = {group.name: width for group, width in zip(groups, ahead.widths, strict=True)}
    narrowed = [group for group in groups if widths[group.name] < group.width]
    # Attention that keeps all its units stays closed.
    touched = {slice_.tensor for group in narrowed for slice_ in group.slices}
    names = tuple(name for name in ahead.names if any(tensor.startswith(f"{name}.") for tensor in touched))
    with timed(times, "walk"):
        # Units are chosen and the layers that read them fitted, at the dense shape.
        done = _reconstruct(model, probe, settings, ahead, narrowed, widths, names)
        # The tensors are sliced.
        units = {name: selection.units for name, selection in done.chosen.items()}
        pruned = [PrunedGroup.of(group, units.get(group.name, range(group.width))) for group in groups]
        ticket = pruned_copy(done.masked, pruned)
        for group in narrowed:
            hold_scale(ticket, group, widths[group.name])
    with timed(times, "verify"):
        kept = [widths[group.name] for group in narrowed]
        macs_share = verify(ticket, done.masked, model, probe, narrowed, kept, ahead.count, settings)
    with timed(times, "recalibrate"):
        if settings.recalibrate:
            ticket, _ = recalibrate_norms(ticket, model, probe)
    # What was done is written down, for a replay and for the user.
    held = {*shapes_of(done.opened), *(f"{name}.bias" for name in done.new_biases)}
    plan = Plan(
        target=str(settings.target),
        groups=_without_absent(pruned, held),
        new_biases=done.new_biases,
        opened=names,
        versions=versions(),
        model=signature_of(model),
    )
    changes = _changes(ahead, done.chosen)
    notes = _notes(ahead, probe, done.share, changes, settings)
    return Extraction(ticket, plan, changes, ahead.survey.unpruned, macs_share, notes, times)


def _reconstruct(
    model: nn.Module,
    probe: Sequence[Any],
    settings: Prune,
    ahead: WidthPlan,
    narrowed: Sequence[Group],
    widths: Mapping[str, int],
    names: Sequence[str],
) -> _Reconstruction:
    """Choose the units of each group, and fit or mask the layers that read them, at the dense shape."""
    opened, _ = open_attention(model, names)
    turn_heads(opened, narrowed, ahead.statistics.score_moments)
    work = copy_model(opened)
    new_biases = layers_gaining_bias(work, narrowed, settings)
    add_biases(work, new_biases)
    chosen = choose_units(ahead.statistics, opened, narrowed, widths, settings)
    share = 1.0
    if settings.compensate:
        share = share_held(ahead.statistics, probe, settings.activation_gib)
        batches = list(probe)
        if share < 1.0:
            most = sum(map(item_count, probe))
            batches = list(sample_items(probe, max(8, math.ceil(share * most)), most))
        chosen = reconstruct(
            opened,
            work,
            batches,
            narrowed,
            widths,
            ahead.statistics,
            chosen=chosen,
            refits=settings.reconstruct,
        )
    else:
        for group in narrowed:
            mask_units(work, group, PrunedGroup.of(group, chosen[group.name].units).removed)
    return _Reconstruction(opened, work, chosen, new_biases, share)


def _without_absent(pruned: Sequence[PrunedGroup], held: set[str]) -> tuple[PrunedGroup, ...]:
    """Return groups with the tensors that there are: no biases that were not added, no closed attention."""
    groups = (
        replace(group, slices=tuple(each for each in group.slices if each.tensor in held)) for group in pruned
    )
    return tuple(group for group in groups if group.slices)


def _changes(ahead: WidthPlan, chosen: Mapping[str, Selection]) -> tuple[GroupChange, ...]:
    groups = ahead.survey.groups
    ranks: Sequence[float | None] = ahead.evidence.ranks or [None] * len(groups)
    left = {
        name: selection.residual_shares[-1] for name, selection in chosen.items() if ahead.statistics.moments
    }
    return tuple(
        GroupChange(
            group=group.name,
            width_before=group.width,
            width_after=width,
            effective_rank=rank,
            residual_share=left.get(group.name, 0.0) if ahead.statistics.moments else None,
            kind=group.kind,
        )
        for group, width, rank in zip(groups, ahead.widths, ranks, strict=True)
    )


def _notes(
    ahead: WidthPlan,
    probe: Sequence[Any],
    share: float,
    changes: Sequence[GroupChange],
    settings: Prune,
) -> tuple[str, ...]:
    """Return what the user should know: too few rows, fewer items fitted, a tolerance that was passed."""
    notes = [
        f"{group.name}: the calibration data give {rows} rows for {group.width} units; more would be better"
        for group in ahead.survey.groups
        if 0 < (rows := ahead.statistics.rows(group)) < group.width
    ]
    if share < 1.0:
        notes.append(
            f"layers were fitted on {share:.0%} of the {sum(map(item_count, probe))} calibration items, to "
            "hold no more activations than prune.activation_gib allows"
        )
    # Widths were settled before anything was pruned.
    left = {each.group: each.residual_share or 0.0 for each in changes}
    tolerance = settings.target.tolerance if isinstance(settings.target, Tolerance) else math.inf
    if beyond := sum(lost > tolerance for lost in left.values()):
        worst = max(left, key=lambda name: left[name])
        notes.append(
            f"the tolerance of {tolerance:g} was held to the dense model's signals; with the layers "
            f"before pruned as well, {beyond} of {len(left)} groups leave more, "
            f"at most {left[worst]:.3g} ({worst})"
        )
    return tuple(notes)
