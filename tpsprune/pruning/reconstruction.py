"""Layer by layer: which units stay is settled, and the layer is fitted to what the dense model's says.

Shape letters: n signals (units times features), c input elements, p features of a layer, q outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import evaluation_mode
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import Look, places_of
from tpsprune.pruning.compensation import fold_in, gram_of, interpolation, ridges_for, takes_intercept
from tpsprune.pruning.cutting import silence
from tpsprune.pruning.groups import Consumer, Group, GroupCut
from tpsprune.pruning.layers import is_mixer, length, mixer
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.lockstep import Stop, fed_in_full, side_by_side
from tpsprune.pruning.norms import masked, norms_over_units
from tpsprune.pruning.observations import Joints, JointSums
from tpsprune.pruning.refit import refit, refit_fault
from tpsprune.pruning.rows import (
    answers,
    draw,
    feature_count,
    patch_places,
    patches,
    signals,
    wanted,
)
from tpsprune.pruning.selection import Selection, select

__all__ = ["reconstruct", "share_held"]

REFIT_ROWS: Final = 32768
"""Windows from which a layer is solved at the least: with fewer a small one fits to what was drawn."""


def reconstruct(
    dense: nn.Module,
    work: nn.Module,
    probe: Sequence[Any],
    groups: Sequence[Group],
    widths: Mapping[str, int],
    seen: Look,
    *,
    chosen: Mapping[str, Selection],
    refits: bool = True,
) -> dict[str, Selection]:
    """Choose the units of each group and fit ``work`` to ``dense``, in place, in one walk of the two.

    A group's units are chosen when its first consumer is reached, by what that is fed in the model as cut so
    far and what the dense model's is; where a norm over the units comes before, when that is reached, by the
    dense model alone. From there on the group's consumers are deaf to the units that go. Then each layer on
    the way that hears a cut, or what a cut has moved, is fitted to put out what the dense model's layer
    does, so errors do not pile up: by the fold, one coefficient for each pair of signals, and by the refit,
    for each weight.

    Args:
        dense: what to aim at.
        work: a copy of it, with the biases it may have; silenced afterwards.
        probe: prepared batches.
        groups: that lose units.
        widths: to how many units, by group.
        seen: of the dense model.
        chosen: groups whose units somebody else has chosen.
        refits: whether the refit is allowed; without it only consumers of cut groups are fitted.

    Cost: a forward pass of both models, the moments of each layer on the way (see ``rows``), and the
    solutions (see ``refit``).
    """
    task = _Reconstruction(dense, work, probe, seen, widths, dict(chosen), refits)
    task.hold(groups)
    with evaluation_mode(dense), evaluation_mode(work):
        for stop in side_by_side(dense, work, probe, task.names):
            task.settle(stop)
    for group in groups:  # A group whose consumers were never called is never heard.
        if group.name not in task.settled:
            task.choose(group, None)
    return task.chosen


def share_held(seen: Look, probe: Sequence[Any], gib: float) -> float:
    """Return what share of the probe can wait at a layer in both models within ``gib`` GiB.

    Estimated as five times the largest input of a layer, for each item: in both models that input and what
    else the model's code holds on to meanwhile (the shortcut of a residual block), and the dense layer's
    answer.
    """
    items = sum(map(item_count, probe))
    return min(1.0, gib * 2**30 / max(1, 5 * seen.item_bytes * items))


@final
@dataclass(slots=True, eq=False)
class _Reconstruction:
    dense: nn.Module
    work: nn.Module
    probe: Sequence[Any]
    seen: Look
    widths: Mapping[str, int]
    chosen: dict[str, Selection]
    refits: bool
    settled: set[str] = field(default_factory=set)
    readers: dict[str, list[tuple[Group, Consumer]]] = field(default_factory=dict)
    norms: dict[str, list[Group]] = field(default_factory=dict)
    alive: dict[str, Tensor] = field(default_factory=dict)
    fresh: dict[Consumer, Joints] = field(default_factory=dict)
    muted: dict[str, list[Group]] = field(default_factory=dict)

    def hold(self, groups: Sequence[Group]) -> None:
        """Note who hears which group; norms over units are replaced by such as can be told who is gone."""
        for group in groups:
            if not group.consumers:  # Dimensions of heads: what makes them is deaf from the start.
                self.choose(group, None)
                for name in group.producers:
                    self.muted.setdefault(name, []).append(group)
            for consumer in group.consumers:
                self.readers.setdefault(consumer.module, []).append((group, consumer))
            for member in group.members:
                norm = self.work.get_submodule(member)
                if norms_over_units(norm):
                    self.norms.setdefault(member, []).append(group)
                    none = torch.empty(0, dtype=torch.int64)
                    self.work.set_submodule(member, masked(norm, length(norm, "both"), none))

    @property
    def names(self) -> list[str]:
        """Where to stop: at norms over units, at consumers, and at whatever else can be refitted."""
        mixers = [name for name, module in self.dense.named_modules() if name and is_mixer(module)]
        return list(dict.fromkeys([*self.norms, *self.readers, *(mixers if self.refits else ())]))

    def settle(self, stop: Stop) -> None:
        """Do at a layer what is to be done before it is called."""
        self.fresh.clear()
        for group in self.norms.get(stop.module, ()):
            if group.name not in self.settled:
                self.choose(group, None)
        heard = self.readers.get(stop.module, [])
        if not stop.fed or not is_mixer(self.dense.get_submodule(stop.module)):
            return
        if self.seen.calls.get(stop.module, 1) > 1 and (heard or self.settled):
            stop = Stop(stop.module, fed_in_full(self.dense, self.work, self.probe, stop.module))
        if any(each.dense.shape != each.cut.shape for each in stop.fed):
            # The two models send other items here (experts): what to say to which is not known.
            for group, _ in heard:
                if group.name not in self.settled:
                    self.choose(group, None)
            return
        for group, _ in heard:
            if group.name not in self.settled:
                self.choose(group, stop)
        fits = self.refits and bool(self.settled) and self._may_be_refitted(stop.module)
        for group, consumer in heard:
            # The refit of such a layer has a coefficient for each of its inputs, as the fold has.
            if not fits or consumer.positions > 1 or self._kernel(stop.module) > 1:
                self._fold(group, consumer, stop)
        if fits:
            self._refit(stop)
        for group in self.muted.get(stop.module, ()):
            silence(self.work, group, self._removed(group))

    def choose(self, group: Group, stop: Stop | None) -> None:
        """Choose a group's units, at a stop of its first consumer or before, and silence the others."""
        count = self.widths[group.name]
        if group.name not in self.chosen:
            readings = []
            for consumer in (each for each in group.consumers if each in self.seen.moments):
                reading = self.seen.reading(self.dense, group, consumer)
                if stop is not None and consumer.module == stop.module:
                    self.fresh[consumer] = self._joints(group, consumer, stop)
                    joint = self.fresh[consumer].whole
                    reading = replace(reading, xx_nn=joint.xx_gpp[0], xy_nn=joint.xy_gpq[0])
                readings.append(reading)
            if readings:
                self.chosen[group.name] = select(readings, count)
            else:
                self.chosen[group.name] = Selection(tuple(range(count)), (0.0,) * count)
        removed = self._removed(group)
        silence(self.work, group, removed)
        self.settled.add(group.name)
        for consumer in group.consumers:
            index = element_index(consumer, group.width)[list(removed)].flatten()
            self._alive(consumer.module)[index] = False

    def _removed(self, group: Group) -> tuple[int, ...]:
        return GroupCut.of(group, self.chosen[group.name].units).removed

    def _fold(self, group: Group, consumer: Consumer, stop: Stop) -> None:
        features = consumer.features
        kept_units = sorted(self.chosen[group.name].units)
        kept = tuple(unit * features + each for unit in kept_units for each in range(features))
        module, like = mixer(self.work, stop.module), mixer(self.dense, stop.module)
        if consumer in self.fresh:
            joints = self.fresh.pop(consumer).of_inputs(torch.tensor(kept))
        else:
            joints = self._joints(group, consumer, stop, kept)
        gram_nn = gram_of(like, consumer, group.width)
        ridges = ridges_for(module.weight.dtype)
        found = interpolation(joints, kept, gram_nn, intercept=takes_intercept(module), ridges=ridges)
        fold_in(module, like, consumer, group.width, kept, found)

    @torch.no_grad()
    def _refit(self, stop: Stop) -> None:
        module, like = mixer(self.work, stop.module), mixer(self.dense, stop.module)
        alive_c = self._alive(stop.module)
        sums = JointSums()
        count = wanted(feature_count(module, alive_c), self._items, least=REFIT_ROWS)
        for rank, each in enumerate(stop.fed):
            generator = torch.Generator().manual_seed(rank)
            chosen_s = draw(patch_places(module, each.cut), count, generator)
            said = like.forward(each.dense) if each.said is None else each.said
            sums.add(
                patches(module, each.cut, alive_c.to(each.cut.device), chosen_s),
                answers(module, said, chosen_s),
            )
        if sums.rows:
            refit(module, sums.joints(), alive_c)

    def _joints(
        self, group: Group, consumer: Consumer, stop: Stop, kept: tuple[int, ...] | None = None
    ) -> Joints:
        """Return the moments of what a consumer is fed by both models, of all signals or of those kept."""
        module = self.dense.get_submodule(stop.module)
        sums = JointSums()
        for rank, each in enumerate(stop.fed):
            chosen_s = places_of(module, each.dense, consumer, group.width, self._items, rank)
            y_bsn, x_bsn = (
                signals(module, given, consumer, group.width, chosen_s) for given in (each.dense, each.cut)
            )
            x_bsk = x_bsn if kept is None else x_bsn[..., list(kept)]
            sums.add(x_bsk[:, :, None], y_bsn[:, :, None])
        return sums.joints()

    @property
    def _items(self) -> int:
        return sum(map(item_count, self.probe))

    def _kernel(self, name: str) -> int:
        return mixer(self.dense, name).weight[0, 0].numel()

    def _may_be_refitted(self, name: str) -> bool:
        module = self.work.get_submodule(name)
        if refit_fault(module, self._alive(name)):
            return False
        weight = mixer(self.work, name).weight
        owners = sum(weight is each for other in self.work.modules() for each in other._parameters.values())
        frozen = not weight.requires_grad and any(each.requires_grad for each in self.work.parameters())
        return owners == 1 and not (frozen and bool(self._alive(name).all()))

    def _alive(self, name: str) -> Tensor:
        if name not in self.alive:
            module = mixer(self.work, name)
            self.alive[name] = torch.ones(length(module, "in"), dtype=torch.bool)
        return self.alive[name]
