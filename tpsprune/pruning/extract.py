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
from tpsprune.pruning.calibration import CalibrationStatistics, turn_heads
from tpsprune.pruning.compensation import can_gain_bias
from tpsprune.pruning.cutting import cut_copy, fresh_copy, silence
from tpsprune.pruning.groups import Group, GroupCut
from tpsprune.pruning.head_width import hold_scale
from tpsprune.pruning.layers import mixer
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.planning import choose_units, plan_widths
from tpsprune.pruning.reconstruction import reconstruct, share_held
from tpsprune.pruning.repair import recalibrate_norms
from tpsprune.pruning.replay import add_biases
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.times import Times, timed
from tpsprune.pruning.verify import verify
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Target, Tolerance
from tpsprune.records import GroupChange, LeftAlone

__all__ = ["Extraction", "extract"]


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """A ticket and all there is to say about it.

    ``plan`` replays the cut on other weights; ``macs_share`` is counted on the ticket; ``notes`` are
    sentences the user should read; ``times`` says where the seconds went.
    """

    ticket: nn.Module
    plan: Plan
    changes: tuple[GroupChange, ...]
    left_alone: tuple[LeftAlone, ...]
    macs_share: float
    notes: tuple[str, ...]
    times: Times = field(default_factory=Times)


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
    """Draw a ticket from ``model``: fewer units, the rest taught to say what those that go said.

    1. The survey finds groups of coupled units, in a copy with its attention opened. 2. A look at the dense
    model gives what ``settings.widths`` needs, and that the widths that meet ``settings.target``. 3. In one
    walk of the dense and the cut model units are chosen and each layer is fitted to what the *dense* model's
    puts out, from what the model as cut so far feeds it; errors do not pile up. 4. The tensors are sliced
    once. 5. The ticket is verified against the same model with the units silenced. 6. Batch-norm statistics
    are taken anew where that helps.

    Args:
        model: not changed, whatever happens; it may be in either mode and partly frozen.
        probe: prepared batches on the model's device, a few hundred items or more in all; no labels.
        settings: the target and what may be done for it.
        labels: one tensor for each batch; ``units = "taylor"`` alone looks at them.
        clock: seconds of a forward pass of a model; a target of latency alone needs it.
        seed: of units chosen at random.
        objective: what labels are for: cross-entropy over classes by default.

    Raises:
        PruneError: nothing can be cut, the target is out of reach, the probe is empty or not finite, or
            the ticket failed its verification.

    Cost: the survey; a forward pass of the dense model, one of both, and what the proof and batch norms
    take: two to four of the ticket and one of the dense model; the moments and solutions of the walk.
    """
    times = Times()
    ahead = plan_widths(
        model, probe, settings, labels=labels, clock=clock, seed=seed, objective=objective, times=times
    )
    groups, found, evidence, widths = ahead.survey.groups, ahead.statistics, ahead.evidence, ahead.widths
    cut = {group.name: width for group, width in zip(groups, widths, strict=True) if width < group.width}
    names = tuple(
        name for name in ahead.names if any(_touches(group, name) for group in groups if group.name in cut)
    )
    with timed(times, "walk"):
        losing = [group for group in groups if group.name in cut]
        opened, _ = open_attention(model, names)
        turn_heads(opened, losing, found.score_moments)
        work = fresh_copy(opened)
        new_biases = _gaining_bias(work, losing, settings)
        add_biases(work, new_biases)
        chosen = choose_units(found, opened, losing, cut, settings)
        share = share_held(found, probe, settings.activation_gib) if settings.fold else 1.0
        if settings.fold:
            walked = list(probe)
            if share < 1.0:
                most = sum(map(item_count, probe))
                walked = list(sample_items(probe, max(8, math.ceil(share * most)), most))
            chosen = reconstruct(
                opened, work, walked, losing, cut, found, chosen=chosen, refits=settings.refit
            )
        else:
            for group in losing:
                silence(work, group, GroupCut.of(group, chosen[group.name].units).removed)
        kept = {name: selection.units for name, selection in chosen.items()}
        cuts = tuple(GroupCut.of(group, kept.get(group.name, range(group.width))) for group in groups)
        ticket = cut_copy(work, cuts)
        for group in losing:
            hold_scale(ticket, group, cut[group.name])
    with timed(times, "verify"):
        kept_widths = [cut[group.name] for group in losing]
        macs_share = verify(ticket, work, model, probe, losing, kept_widths, ahead.count, settings)
    with timed(times, "recalibrate"):
        if settings.recalibrate:
            ticket, _ = recalibrate_norms(ticket, model, probe)
    shapes = {name: tuple(tensor.shape) for name, tensor in opened.state_dict().items()}
    plan = Plan(
        target=str(settings.target),
        groups=_present(cuts, shapes, new_biases),
        new_biases=new_biases,
        opened=names,
        versions=versions(),
        model=signature_of(model),
    )
    ranks: Sequence[float | None] = evidence.ranks or [None] * len(groups)
    changes = tuple(
        GroupChange(
            group=group.name,
            width_before=group.width,
            width_after=width,
            effective_rank=rank,
            residual_share=_left(chosen, group.name) if found.moments else None,
            kind=group.kind,
        )
        for group, width, rank in zip(groups, widths, ranks, strict=True)
    )
    notes = (*_notes(groups, found, probe, share), *_beyond(changes, settings.target))
    return Extraction(ticket, plan, changes, ahead.survey.left_alone, macs_share, notes, times)


def _left(chosen: Mapping[str, Selection], name: str) -> float:
    return chosen[name].residual_shares[-1] if name in chosen else 0.0


def _touches(group: Group, module: str) -> bool:
    return any(slice_.tensor.startswith(f"{module}.") for slice_ in group.slices)


def _gaining_bias(model: nn.Module, groups: Sequence[Group], settings: Prune) -> tuple[str, ...]:
    if not (settings.fold and settings.new_biases):
        return ()
    names = (consumer.module for group in groups for consumer in group.consumers)
    return tuple(name for name in dict.fromkeys(names) if can_gain_bias(mixer(model, name)))


def _present(
    cuts: Sequence[GroupCut], shapes: Mapping[str, Any], new_biases: Sequence[str]
) -> tuple[GroupCut, ...]:
    """Return the cuts with the tensors that there are: no biases that were not added, no closed attention."""
    held = {*shapes, *(f"{module}.bias" for module in new_biases)}
    answer = [replace(cut, slices=tuple(each for each in cut.slices if each.tensor in held)) for cut in cuts]
    return tuple(cut for cut in answer if cut.slices)


def _notes(
    groups: Sequence[Group], found: CalibrationStatistics, probe: Sequence[Any], share: float
) -> tuple[str, ...]:
    notes = [
        f"{group.name}: the calibration data give {rows} rows for {group.width} units; more would be better"
        for group in groups
        if 0 < (rows := found.rows(group)) < group.width
    ]
    if share < 1.0:
        notes.append(
            f"layers were fitted on {share:.0%} of the {sum(map(item_count, probe))} calibration items, to "
            "hold no more activations than prune.activation_gib allows"
        )
    return tuple(notes)


def _beyond(changes: Sequence[GroupChange], target: Target) -> list[str]:
    """Say where more is left unsaid than was tolerated: widths were settled before anything was cut."""
    if not isinstance(target, Tolerance):
        return []
    left = {each.group: each.residual_share or 0.0 for each in changes}
    worst = max(left, key=lambda name: left[name])
    beyond = sum(share > target.tolerance for share in left.values())
    if not beyond:
        return []
    return [
        f"the tolerance of {target.tolerance:g} was held to the dense model's signals; with the layers "
        f"before cut as well, {beyond} of {len(left)} groups leave more, at most {left[worst]:.3g} ({worst})"
    ]
