"""The extraction of a ticket, stage by stage, as one transaction: a fault leaves the model as it was.

The stages have the names that ``ARCHITECTURE.md`` gives them; each is a call into the module of that stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from torch import Tensor, nn

from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import turn_heads
from tpsprune.pruning.costs import Times, timed
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.observations import hold_out, sample_items
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.planning import WidthPlan, choose_units, plan_otherwise, plan_widths
from tpsprune.pruning.prunability import layers_gaining_bias
from tpsprune.pruning.recalibration import recalibrate_norms
from tpsprune.pruning.reconstruction import reconstruct, share_held
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import add_biases, copy_model, hold_scale, mask_units, pruned_copy, shapes_of
from tpsprune.pruning.verification import verify
from tpsprune.recipe.prune import Allocation, Macs, Params, Prune, Tolerance
from tpsprune.records import GroupChange, Unpruned

RIVALS: Final[tuple[Allocation, ...]] = ("uniform", "equal-residual")
"""What greedy widths are held against where the quality is ``best``."""


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
    """The model at the dense shape with its consumers compensated and its pruned units masked.

    ``opened`` is the dense model with the attentions ``names`` open; ``fitted_share`` is the share of the
    calibration items on which layers were fitted.
    """

    opened: nn.Module
    masked: nn.Module
    names: tuple[str, ...]
    chosen: Mapping[str, Selection]
    new_biases: tuple[str, ...]
    fitted_share: float


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

    1. Groups of coupled units are found and proved prunable, in a copy with its attention opened; statistics
    of the dense model on the calibration data give what ``settings.widths`` needs, and that the widths that
    meet ``settings.target``. 2. In one traversal of the layers units are chosen and each layer is fitted to
    the output of the *dense* model's layer from its input in the pruned model, so that errors do not add up.
    3. The tensors are sliced once. 4. The ticket is verified against the same model with the units masked. 5.
    Batch-norm statistics are computed again where that lowers the error.

    Args:
        model: not changed, whatever happens; it may be in either mode and partly frozen.
        batches: prepared calibration batches on the model's device, a few hundred items or more in all,
            without labels.
        settings: the target and what may be done for it.
        labels: one tensor for each batch; only ``units = "taylor"`` uses them.
        clock: seconds of a forward pass of a model; only a target of latency needs it.
        seed: of units chosen at random.
        objective: what labels are for: cross-entropy over classes by default.

    Raises:
        PruneError: nothing can be pruned, the target is out of reach, the calibration data are empty or not
            finite, or the ticket failed its verification.

    Cost: the search for groups; a forward pass of the dense model, one of both, and what verification and
    batch norms take: two to four of the ticket and one of the dense model; the moments and solutions of the
    reconstruction.
    """
    times = Times()
    # Opened, traced, grouped, proved, listed, priced, measured, allocated.
    planned = plan_widths(
        model, batches, settings, labels=labels, clock=clock, seed=seed, objective=objective, times=times
    )
    if settings.quality == "best" and settings.widths == "greedy":
        with timed(times, "race"):
            planned = _race(model, batches, settings, planned)
    groups, narrowed, width_of = planned.groups, planned.narrowed, planned.width_of
    with timed(times, "walk"):
        # Chosen, compensated.
        fitted = _choose_and_compensate(model, batches, settings, planned)
        # Sliced.
        kept = {name: selection.units for name, selection in fitted.chosen.items()}
        pruned = [PrunedGroup.of(group, kept.get(group.name, range(group.width))) for group in groups]
        ticket = pruned_copy(fitted.masked, pruned)
        for group in narrowed:
            hold_scale(ticket, group, width_of[group.name])
    with timed(times, "verify"):
        widths = [width_of[group.name] for group in narrowed]
        macs_share = verify(ticket, fitted.masked, model, batches, narrowed, widths, planned.count, settings)
    with timed(times, "recalibrate"):
        # Repaired.
        if settings.recalibrate:
            ticket, _ = recalibrate_norms(ticket, model, batches)
    # Written down.
    present = {*shapes_of(fitted.opened), *(f"{name}.bias" for name in fitted.new_biases)}
    plan = Plan(
        target=str(settings.target),
        groups=_without_absent(pruned, present),
        new_biases=fitted.new_biases,
        opened=fitted.names,
        versions=versions(),
        model=signature_of(model),
    )
    changes = _changes(planned, fitted.chosen)
    notes = _notes(planned, sum(map(item_count, batches)), fitted.fitted_share, changes, settings)
    return Extraction(ticket, plan, changes, planned.prunability.unpruned, macs_share, notes, times)


def _race(model: nn.Module, batches: Sequence[Any], settings: Prune, planned: WidthPlan) -> WidthPlan:
    """Return the plan that errs least on calibration data held out, each compensated on the rest."""
    if not isinstance(settings.target, Macs | Params):
        return planned
    fit, held = hold_out(batches)
    plans = [planned, *(plan_otherwise(planned, settings, rival) for rival in RIVALS)]
    plans = list({plan.widths: plan for plan in reversed(plans)}.values())

    def error(plan: WidthPlan) -> float:
        return output_error(_choose_and_compensate(model, fit, settings, plan).masked, model, held)

    return min(plans, key=error) if len(plans) > 1 else planned


def _choose_and_compensate(
    model: nn.Module, batches: Sequence[Any], settings: Prune, planned: WidthPlan
) -> _Compensated:
    """Choose the units of each group, then fit the layers on the way, or only mask the pruned units."""
    narrowed, statistics = planned.narrowed, planned.statistics
    # Attention that keeps all its units is not opened.
    touched = {slice_.tensor for group in narrowed for slice_ in group.slices}
    names = tuple(name for name in planned.opened if any(each.startswith(f"{name}.") for each in touched))
    opened, _ = open_attention(model, names)
    turn_heads(opened, narrowed, statistics.score_moments)
    masked = copy_model(opened)
    new_biases = layers_gaining_bias(masked, narrowed, settings)
    add_biases(masked, new_biases)
    chosen = choose_units(statistics, opened, narrowed, planned.width_of, settings)
    share = 1.0
    if settings.compensate:
        share = share_held(statistics, batches, settings.activation_gib)
        if share < 1.0:
            items = sum(map(item_count, batches))
            batches = list(sample_items(batches, max(8, math.ceil(share * items)), items))
        chosen = reconstruct(
            opened,
            masked,
            batches,
            narrowed,
            planned.width_of,
            statistics,
            chosen=chosen,
            refits=settings.reconstruct,
        )
    else:
        for group in narrowed:
            mask_units(masked, group, PrunedGroup.of(group, chosen[group.name].units).removed)
    return _Compensated(opened, masked, names, chosen, new_biases, share)


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
    return tuple(
        GroupChange(
            group=group.name,
            width_before=group.width,
            width_after=width,
            effective_rank=rank,
            residual_share=residual.get(group.name, 0.0) if measured else None,
            kind=group.kind,
        )
        for group, width, rank in zip(planned.groups, planned.widths, ranks, strict=True)
    )


def _notes(
    planned: WidthPlan,
    items: int,
    share: float,
    changes: Sequence[GroupChange],
    settings: Prune,
) -> tuple[str, ...]:
    """Return what the user should know: few rows, items left out of the fit, a tolerance exceeded."""
    notes = [
        f"{group.name}: the calibration data give {rows} rows for {group.width} units; more would be better"
        for group in planned.groups
        if 0 < (rows := planned.statistics.rows(group)) < group.width
    ]
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
    # Widths were settled before anything was pruned.
    residual = {each.group: each.residual_share or 0.0 for each in changes}
    tolerance = settings.target.tolerance if isinstance(settings.target, Tolerance) else math.inf
    if beyond := sum(lost > tolerance for lost in residual.values()):
        worst = max(residual, key=lambda name: residual[name])
        notes.append(
            f"the tolerance of {tolerance:g} was held to the dense model's signals; with the layers "
            f"before pruned as well, {beyond} of {len(residual)} groups leave more, "
            f"at most {residual[worst]:.3g} ({worst})"
        )
    return tuple(notes)
