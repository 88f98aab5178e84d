"""Layerwise reconstruction: units are chosen and each layer is fitted to the output of the dense model's.

Compensation gives a consumer one coefficient for each pair of signals, whatever the kernel position; the
refit solves for every weight, and it corrects layers that lost no input but whose inputs pruning has changed.

Shape letters: n signals (units times features), c input elements, g groups of a layer, p features of a group
(inputs times kernel positions), q outputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import evaluation_mode, widened
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import CalibrationStatistics, sample_signal_places
from tpsprune.pruning.compensation import (
    SAFE_RIDGE,
    compensate,
    fit_interpolation,
    ridges_for,
    takes_intercept,
    weights_gram,
)
from tpsprune.pruning.groups import Consumer, Group, PrunedGroup, element_index
from tpsprune.pruning.layers import (
    Mixer,
    is_mixer,
    is_transposed_linear,
    length,
    mask_norm,
    mixer,
    norms_over_units,
)
from tpsprune.pruning.lockstep import Stop, collect_all_calls, traverse_in_step
from tpsprune.pruning.observations import (
    JointMoments,
    JointSums,
    SplitMoments,
    count_features,
    count_places,
    count_windows,
    read_outputs,
    read_signals,
    read_windows,
    sample_places,
    selects_inputs,
)
from tpsprune.pruning.selection import Selection, select
from tpsprune.pruning.surgery import mask_units

FORWARDS: Final = {each.forward for each in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
ALIKE: Final = 0.02
"""Of ridges whose errors differ by no more than this share the largest is taken, for small weights."""
EXACT: Final = 1e-12
"""An error, as a share of the variance, that is none."""
MOST_FEATURES: Final = 4608
"""512 channels seen through a 3×3 kernel: 170 MB a matrix, and a dozen of them for a moment."""
REFIT_ROWS: Final = 32768
"""Windows from which a layer is solved at the least: with fewer a small one fits to the sample."""


def reconstruct(
    dense: nn.Module,
    work: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    widths: Mapping[str, int],
    found: CalibrationStatistics,
    *,
    chosen: Mapping[str, Selection],
    refits: bool = True,
) -> dict[str, Selection]:
    """Choose the units of each group and fit ``work`` to ``dense``, in place, in one traversal of the two.

    A group's units are chosen when its first consumer is reached, by that consumer's inputs in the model as
    pruned so far and in the dense model; where a norm over the units comes before, when that is reached, by
    the dense model alone. From there on the group's consumers are masked to the pruned units. Then each layer
    on the way that reads a pruned group, or inputs that pruning has changed, is fitted to the outputs of the
    dense model's layer, so errors do not add up: by compensation, one coefficient for each pair of signals,
    and by the refit, for each weight.

    Args:
        dense: the model to reproduce.
        work: a copy of it, with the biases it may have; masked afterwards.
        batches: prepared calibration batches.
        groups: that lose units.
        widths: to how many units, by group.
        found: the dense model's statistics.
        chosen: groups whose units are chosen already.
        refits: whether the refit is allowed; without it only consumers of pruned groups are fitted.

    Cost: a forward pass of both models, the moments of each layer on the way (see ``observations``), and the
    solutions (see ``refit_layer``).
    """
    task = _Reconstruction(dense, work, batches, found, widths, dict(chosen), refits)
    task.prepare(groups)
    with evaluation_mode(dense), evaluation_mode(work):
        for stop in traverse_in_step(dense, work, batches, task.names):
            task.settle(stop)
    for group in groups:  # A group whose consumers are never called is never read.
        if group.name not in task.settled:
            task.choose(group, None)
    return task.chosen


def share_held(found: CalibrationStatistics, batches: Sequence[Any], gib: float) -> float:
    """Return what share of the items can wait at a layer in both models within ``gib`` GiB.

    Estimated as five times the largest input of a layer, for each item: in both models that input and what
    else the model's code holds on to meanwhile (the shortcut of a residual block), and the dense layer's
    output.
    """
    items = sum(map(item_count, batches))
    return min(1.0, gib * 2**30 / max(1, 5 * found.item_bytes * items))


@final
@dataclass(slots=True, eq=False)
class _Reconstruction:
    dense: nn.Module
    work: nn.Module
    batches: Sequence[Any]
    found: CalibrationStatistics
    widths: Mapping[str, int]
    chosen: dict[str, Selection]
    refits: bool
    settled: set[str] = field(default_factory=set)
    consumers_at: dict[str, list[tuple[Group, Consumer]]] = field(default_factory=dict)
    norms: dict[str, list[Group]] = field(default_factory=dict)
    alive: dict[str, Tensor] = field(default_factory=dict)
    fresh: dict[Consumer, SplitMoments] = field(default_factory=dict)
    muted: dict[str, list[Group]] = field(default_factory=dict)

    def prepare(self, groups: Sequence[Group]) -> None:
        """List the consumers of each layer; replace norms over units by norms that can be masked."""
        for group in groups:
            if not group.consumers:  # Dimensions of heads: their producers are masked from the start.
                self.choose(group, None)
                for name in group.producers:
                    self.muted.setdefault(name, []).append(group)
            for consumer in group.consumers:
                self.consumers_at.setdefault(consumer.module, []).append((group, consumer))
            for member in group.members:
                norm = self.work.get_submodule(member)
                if norms_over_units(norm):
                    self.norms.setdefault(member, []).append(group)
                    none = torch.empty(0, dtype=torch.int64)
                    self.work.set_submodule(member, mask_norm(norm, length(norm, "both"), none))

    @property
    def names(self) -> list[str]:
        """Where to stop: at norms over units, at consumers, and at whatever else can be refitted."""
        mixers = [name for name, module in self.dense.named_modules() if name and is_mixer(module)]
        return list(dict.fromkeys([*self.norms, *self.consumers_at, *(mixers if self.refits else ())]))

    def settle(self, stop: Stop) -> None:
        """Choose units and fit the layer before it is called."""
        self.fresh.clear()
        for group in self.norms.get(stop.module, ()):
            if group.name not in self.settled:
                self.choose(group, None)
        read = self.consumers_at.get(stop.module, [])
        if not stop.batches or not is_mixer(self.dense.get_submodule(stop.module)):
            return
        if self.found.calls.get(stop.module, 1) > 1 and (read or self.settled):
            stop = Stop(stop.module, collect_all_calls(self.dense, self.work, self.batches, stop.module))
        # Where the two models route other items here (experts) no output belongs to an input.
        paired = all(each.dense.shape == each.pruned.shape for each in stop.batches)
        for group, _ in read:
            if group.name not in self.settled:
                self.choose(group, stop if paired else None)
        if not paired:
            return
        fits = self.refits and bool(self.settled) and self._may_be_refitted(stop.module)
        for group, consumer in read:
            # The refit of such a layer has a coefficient for each of its inputs, as compensation has.
            if not fits or consumer.positions > 1 or mixer(self.dense, stop.module).weight[0, 0].numel() > 1:
                self._compensate(group, consumer, stop)
        if fits:
            self._refit(stop)
        for group in self.muted.get(stop.module, ()):
            mask_units(self.work, group, self._removed(group))

    def choose(self, group: Group, stop: Stop | None) -> None:
        """Choose a group's units, at a stop of its first consumer or before, and mask the others."""
        count = self.widths[group.name]
        if group.name not in self.chosen:
            readings = []
            for consumer in (each for each in group.consumers if each in self.found.moments):
                reading = self.found.reading(self.dense, group, consumer)
                if stop is not None and consumer.module == stop.module:
                    self.fresh[consumer] = self._moments(group, consumer, stop)
                    whole = self.fresh[consumer].whole
                    reading = replace(reading, xx_nn=whole.xx_gpp[0], xy_nn=whole.xy_gpq[0])
                readings.append(reading)
            first = Selection(tuple(range(count)), (0.0,) * count)
            self.chosen[group.name] = select(readings, count) if readings else first
        removed = self._removed(group)
        mask_units(self.work, group, removed)
        self.settled.add(group.name)
        for consumer in group.consumers:
            index = element_index(consumer, group.width)[list(removed)].flatten()
            self._alive(consumer.module)[index] = False

    def _removed(self, group: Group) -> tuple[int, ...]:
        return PrunedGroup.of(group, self.chosen[group.name].units).removed

    def _compensate(self, group: Group, consumer: Consumer, stop: Stop) -> None:
        features = consumer.features
        kept_units = sorted(self.chosen[group.name].units)
        kept = tuple(unit * features + each for unit in kept_units for each in range(features))
        module, like = mixer(self.work, stop.module), mixer(self.dense, stop.module)
        if consumer in self.fresh:
            moments = self.fresh.pop(consumer).of_inputs(torch.tensor(kept))
        else:
            moments = self._moments(group, consumer, stop, kept)
        gram_nn = weights_gram(like, consumer, group.width)
        ridges = ridges_for(module.weight.dtype)
        found = fit_interpolation(moments, kept, gram_nn, intercept=takes_intercept(module), ridges=ridges)
        compensate(module, like, consumer, group.width, kept, found)

    @torch.no_grad()
    def _refit(self, stop: Stop) -> None:
        module, like = mixer(self.work, stop.module), mixer(self.dense, stop.module)
        alive_c = self._alive(stop.module)
        sums = JointSums()
        count = count_places(count_features(module, alive_c), self._items, least=REFIT_ROWS)
        for rank, each in enumerate(stop.batches):
            generator = torch.Generator().manual_seed(rank)
            places_s = sample_places(count_windows(module, each.pruned), count, generator)
            output = like.forward(each.dense) if each.output is None else each.output
            windows_bsgp = read_windows(module, each.pruned, alive_c.to(each.pruned.device), places_s)
            sums.add(windows_bsgp, read_outputs(module, output, places_s))
        if sums.rows:
            refit_layer(module, sums.moments(), alive_c)

    def _moments(
        self, group: Group, consumer: Consumer, stop: Stop, kept: tuple[int, ...] | None = None
    ) -> SplitMoments:
        """Return the moments of a consumer's signals in both models, of all signals or of those kept."""
        module = self.dense.get_submodule(stop.module)
        sums = JointSums()
        for rank, each in enumerate(stop.batches):
            places_s = sample_signal_places(module, each.dense, consumer, group.width, self._items, rank)
            y_bsn, x_bsn = (
                read_signals(module, inputs, consumer, group.width, places_s)
                for inputs in (each.dense, each.pruned)
            )
            x_bsk = x_bsn if kept is None else x_bsn[..., list(kept)]
            sums.add(x_bsk[:, :, None], y_bsn[:, :, None])
        return sums.moments()

    @property
    def _items(self) -> int:
        return sum(map(item_count, self.batches))

    def _may_be_refitted(self, name: str) -> bool:
        module = self.work.get_submodule(name)
        if refusal_to_refit(module, self._alive(name)):
            return False
        weight = mixer(self.work, name).weight
        owners = sum(weight is each for other in self.work.modules() for each in other._parameters.values())
        frozen = not weight.requires_grad and any(each.requires_grad for each in self.work.parameters())
        return owners == 1 and not (frozen and bool(self._alive(name).all()))

    def _alive(self, name: str) -> Tensor:
        if name not in self.alive:
            self.alive[name] = torch.ones(length(mixer(self.work, name), "in"), dtype=torch.bool)
        return self.alive[name]


def refusal_to_refit(module: nn.Module, alive_c: Tensor) -> str:
    """Return why a layer cannot be refitted, or an empty string.

    Args:
        module: any layer.
        alive_c: whether each element of its input axis is kept.
    """
    if not is_mixer(module):
        return f"{type(module).__name__} does not mix units"
    if isinstance(module, _ConvNd) and module.transposed:
        return "outputs of a transposed convolution see different parts of its kernel"
    if not is_transposed_linear(module) and type(module).forward not in FORWARDS:
        return f"{type(module).__name__} may compute something of its own"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrised"
    features = count_features(module, alive_c)
    if features > MOST_FEATURES:
        return f"{features} features are more than {MOST_FEATURES}: the moments would take too much memory"
    return ""


def refit_layer(module: Mixer, moments: SplitMoments, alive_c: Tensor) -> float | None:
    """Solve for a layer's weights and bias, in place; pruned inputs keep weights of zero. Return the ridge.

    W minimises E‖y − W x − b‖² + λ‖W − W₀‖², W₀ the weights as they are (compensated or not), λ = ridge · the
    mean variance of a feature. Of the ridges (``compensation.ridges_for``) and of W₀ itself the one is taken
    that does best on the items held out, fitted on the others, of such as do alike the largest; then all
    items are fitted. On these no layer does worse than it did. A layer without a bias is fitted through zero.
    Where the layer as it is does best on the items held out it is kept, and there is no ridge.

    Source: He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks",
    equation 3; Luo, Wu and Lin 2017, "ThiNet", section 3.3: there for the pruned layer alone.

    Cost: five times g·p³ / 3.
    """
    turned = is_transposed_linear(module)
    weight = module.weight.detach().T if turned else module.weight.detach()
    groups = module.groups if isinstance(module, _ConvNd) else 1
    every_c = torch.arange(weight.shape[1], device=weight.device)
    kept = alive_c.nonzero()[:, 0] if selects_inputs(module) else every_c
    old_gqp = widened(weight.reshape(groups, -1, *weight.shape[1:])[:, :, kept].flatten(2))
    parts = moments.about_zero() if module.bias is None else moments
    fit, held = parts.fit, parts.held
    bias_gq = None if module.bias is None else widened(module.bias.detach()).reshape(groups, -1)
    ridge = SAFE_RIDGE
    if fit is not None and held is not None:
        errors = {each: _error(held, *_solve(fit, old_gqp, each)) for each in ridges_for(weight.dtype)}
        finite = {each: error for each, error in errors.items() if math.isfinite(error)}
        least = min(finite.values(), default=math.inf)
        if not least < _error(held, old_gqp, bias_gq):
            return None
        ridge = max(each for each, error in finite.items() if error <= least + ALIKE * abs(least) + EXACT)
    new_gqp, intercept_gq = _solve(parts.whole, old_gqp, ridge)
    if not bool(new_gqp.isfinite().all()):
        return None
    with torch.no_grad():
        fresh = torch.zeros_like(weight).reshape(groups, -1, *weight.shape[1:])
        fresh[:, :, kept] = new_gqp.reshape(*new_gqp.shape[:2], len(kept), *weight.shape[2:]).to(weight.dtype)
        fresh = fresh.reshape(weight.shape)
        module.weight.copy_(fresh.T if turned else fresh)
        if module.bias is not None:
            module.bias.copy_(intercept_gq.flatten().to(module.bias.dtype))
    return ridge


def _solve(part: JointMoments, old_gqp: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    variances_gp = part.xx_gpp.diagonal(dim1=1, dim2=2)
    scale_g11 = variances_gp.mean(1).clamp_min(torch.finfo(variances_gp.dtype).tiny)[:, None, None]
    ridged_gpp = part.xx_gpp.clone()
    ridged_gpp.diagonal(dim1=1, dim2=2).add_(ridge * scale_g11[:, :, 0])
    wrong_gpq = part.xy_gpq - part.xx_gpp @ old_gqp.mT
    factor_gpp, failed_g = torch.linalg.cholesky_ex(ridged_gpp)
    # What rounding leaves of a singular matrix is no solution: nothing that is not finite wins.
    factor_gpp[failed_g > 0] = torch.nan
    change_gpq = torch.cholesky_solve(wrong_gpq, factor_gpp)
    new_gqp = old_gqp + change_gpq.mT
    return new_gqp, part.mean_y_gq - (new_gqp @ part.mean_x_gp[:, :, None])[:, :, 0]


def _error(part: JointMoments, weight_gqp: Tensor, bias_gq: Tensor | None) -> float:
    fitted_gqp = weight_gqp @ part.xx_gpp
    error_gq = part.yy_gq - 2 * (part.xy_gpq.mT * weight_gqp).sum(2) + (fitted_gqp * weight_gqp).sum(2)
    offset_gq = part.mean_y_gq - (weight_gqp @ part.mean_x_gp[:, :, None])[:, :, 0]
    offset_gq = offset_gq if bias_gq is None else offset_gq - bias_gq
    total = part.yy_gq.sum().clamp_min(torch.finfo(part.yy_gq.dtype).tiny)
    return float((error_gq + offset_gq.square()).sum() / total)
