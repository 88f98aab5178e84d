"""The extraction: a ticket drawn from a model as one transaction. It comes whole or not at all.

Shape letters: n units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.spectra import effective_rank
from tpsprune.pruning.cutting import cut_copy, fresh_copy, silence
from tpsprune.pruning.fold import can_gain_bias, fold_in, interpolation, takes_intercept
from tpsprune.pruning.groups import Consumer, Group, GroupCut
from tpsprune.pruning.layers import input_axis, mixer, units_first
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.reach import surveyed
from tpsprune.pruning.recalibrate import recalibrated
from tpsprune.pruning.replay import add_biases
from tpsprune.pruning.selection import Reading, Selection, select
from tpsprune.pruning.statistics import PairMoments, call_order, pair_moments
from tpsprune.pruning.trial import flat_tensors
from tpsprune.pruning.verify import verify
from tpsprune.pruning.widths import Evidence, choose_widths
from tpsprune.recipe.prune import Prune
from tpsprune.records import GroupChange, LeftAlone

__all__ = ["Extraction", "extract"]


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """A ticket and all there is to say about it.

    ``plan`` replays the cut on other weights; ``macs_share`` is counted on the ticket; ``notes`` are
    sentences the user should read.
    """

    ticket: nn.Module
    plan: Plan
    changes: tuple[GroupChange, ...]
    left_alone: tuple[LeftAlone, ...]
    macs_share: float
    notes: tuple[str, ...]


def extract(model: nn.Module, probe: Sequence[Any], settings: Prune) -> Extraction:
    """Draw a ticket from ``model``: fewer units, the rest taught to say what those that go said.

    1. The survey finds groups of coupled units. 2. Effective ranks of what the consumers are fed give
    the widths that meet ``settings.target``. 3. Consumer by consumer in the order of the forward pass: units
    are chosen when their first consumer is reached, and each consumer's weights are fitted so that it
    hears what the *dense* model fed it, from what the model as cut so far feeds it; errors do not pile
    up. 4. The tensors are sliced once. 5. Batch-norm statistics are taken anew where that helps. 6. The
    ticket is verified against the same model with the units silenced.

    Args:
        model: not changed, whatever happens; it may be in either mode and partly frozen.
        probe: prepared batches on the model's device, a few hundred items or more in all; no labels.
        settings: the target and what may be done for it.

    Raises:
        PruneError: nothing can be cut, the target is out of reach, the probe is empty or not finite, or
            the ticket failed its verification.

    Cost: the survey, two forward passes over the probe for each consumer, and n³ for each group.
    """
    _check_probe(model, probe)
    found, dense_count, macs = surveyed(model, probe[0], settings)
    groups = found.groups
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    at_dense = pair_moments(model, model, probe, _widths_at(groups))
    ranks = [_effective_rank(model, group, at_dense) for group in groups]
    names = [group.name for group in groups]
    widths = choose_widths(macs, Evidence(ranks=ranks), settings, names=names)

    work = fresh_copy(model)
    new_biases = _gaining_bias(work, groups, settings)
    add_biases(work, new_biases)
    chosen = _select_and_fold(model, work, probe, groups, widths, settings)
    cuts = tuple(GroupCut.of(group, chosen[group.name].units) for group in groups)
    ticket = cut_copy(work, cuts)
    macs_share = verify(ticket, work, model, probe, groups, widths, dense_count, settings)
    if settings.recalibrate:
        ticket, _ = recalibrated(ticket, model, probe)
    plan = Plan(
        target=str(settings.target),
        groups=tuple(_present(cut, shapes, new_biases) for cut in cuts),
        new_biases=new_biases,
        versions=versions(),
        model=signature_of(model),
    )
    changes = tuple(
        GroupChange(
            group=group.name,
            width_before=group.width,
            width_after=width,
            effective_rank=rank if settings.widths == "effective-rank" else None,
            residual_share=chosen[group.name].residual_shares[-1],
        )
        for group, width, rank in zip(groups, widths, ranks, strict=True)
    )
    return Extraction(ticket, plan, changes, found.left_alone, macs_share, _notes(groups, at_dense))


def _select_and_fold(
    model: nn.Module,
    work: nn.Module,
    probe: Sequence[Any],
    groups: Sequence[Group],
    widths: Sequence[int],
    settings: Prune,
) -> dict[str, Selection]:
    """Choose units and rewrite the consumers of ``work`` in place, in the order of the forward pass."""
    owner = {consumer: group for group in groups for consumer in group.consumers}
    width_of = {group.name: width for group, width in zip(groups, widths, strict=True)}
    chosen: dict[str, Selection] = {}
    for consumer in call_order(model, probe[0], tuple(owner)):
        group = owner[consumer]
        fresh = group.name not in chosen
        if not fresh and not settings.fold:
            continue
        needed = dict.fromkeys(group.consumers if fresh else (consumer,), group.width)
        # Without a fold nothing holds the cut model to the dense one: units are judged where they did well.
        moments = pair_moments(model, work if settings.fold else model, probe, needed)
        if fresh:
            readings = [_reading(model, each, moments[each]) for each in needed]
            chosen[group.name] = select(readings, width_of[group.name])
            silence(work, group, GroupCut.of(group, chosen[group.name].units).removed)
        if settings.fold:
            module = mixer(work, consumer.module)
            kept = tuple(sorted(chosen[group.name].units))
            mapping = interpolation(moments[consumer], kept, intercept=takes_intercept(module))
            fold_in(module, mixer(model, consumer.module), consumer, kept, *mapping)
    return chosen


def _reading(model: nn.Module, consumer: Consumer, moments: PairMoments) -> Reading:
    module = mixer(model, consumer.module)
    weight = module.weight
    rows = units_first(
        weight.detach(), input_axis(module), consumer.offset, len(moments.xx_nn), consumer.block
    )
    flat = rows.flatten(1).to(moments.xx_nn.dtype)
    return Reading(moments.xx_nn, moments.xy_nn, moments.yy_nn, flat @ flat.T)


def _effective_rank(model: nn.Module, group: Group, moments: Mapping[Consumer, PairMoments]) -> float:
    """Return the effective rank of what the units say, as far as their consumers hear it.

    That of the covariance between the square roots of the consumers' Gram matrix, each consumer's over
    its trace: a direction nobody listens to is no dimension.
    """
    heard = []
    for consumer in group.consumers:
        reading = _reading(model, consumer, moments[consumer])
        values_n, vectors_nn = torch.linalg.eigh(reading.gram_nn)
        root_nn = vectors_nn * values_n.clamp_min(0).sqrt() @ vectors_nn.T
        heard_nn = root_nn @ reading.yy_nn @ root_nn
        heard.append(heard_nn / heard_nn.trace().clamp_min(1e-30))
    return max(1.0, float(effective_rank(torch.linalg.eigvalsh(torch.stack(heard).sum(0)))))


def _gaining_bias(model: nn.Module, groups: Sequence[Group], settings: Prune) -> tuple[str, ...]:
    if not (settings.fold and settings.new_biases):
        return ()
    names = (consumer.module for group in groups for consumer in group.consumers)
    return tuple(name for name in dict.fromkeys(names) if can_gain_bias(mixer(model, name)))


def _widths_at(groups: Sequence[Group]) -> dict[Consumer, int]:
    return {consumer: group.width for group in groups for consumer in group.consumers}


def _present(cut: GroupCut, shapes: Mapping[str, Any], new_biases: Sequence[str]) -> GroupCut:
    held = {*shapes, *(f"{module}.bias" for module in new_biases)}
    slices = tuple(slice_ for slice_ in cut.slices if slice_.tensor in held)
    return GroupCut(cut.name, cut.width, cut.kept, slices)


def _check_probe(model: nn.Module, probe: Sequence[Any]) -> None:
    if not len(probe):
        raise PruneError("the probe is empty: at least one batch is needed to see what the units say")
    for rank, batch in enumerate(probe):
        if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(batch)):
            raise PruneError(f"probe batch {rank} holds values that are not finite")
    with torch.no_grad(), evaluation_mode(model):
        for rank, batch in enumerate(probe):
            if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(call_model(model, batch))):
                raise PruneError(
                    f"the model's output on probe batch {rank} is not finite: training may have diverged"
                )


def _notes(groups: Sequence[Group], moments: Mapping[Consumer, PairMoments]) -> tuple[str, ...]:
    return tuple(
        f"{group.name}: the probe gives {rows} rows for {group.width} units; more data would choose better"
        for group in groups
        if (rows := max(moments[consumer].rows for consumer in group.consumers)) < group.width
    )
