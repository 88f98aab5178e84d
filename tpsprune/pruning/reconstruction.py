"""Layerwise reconstruction: each layer of a ticket is fitted to the output of the dense model's layer.

Compensation gives a consumer one coefficient for each pair of signals, whatever the kernel position; the
refit solves for every weight, and it corrects layers that lost no input but whose inputs pruning has changed.

Shape letters: n signals of the dense model (units times features), k of the ticket, g groups of a layer, p
features of a group (inputs times kernel positions), q outputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.errors import PeersError, PruneError
from tpsprune.numerics.forward import evaluation_mode, widened
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import CalibrationStatistics, sample_signal_places
from tpsprune.pruning.compensation import (
    SAFE_RIDGE,
    Read,
    compensate,
    fit_interpolation,
    ridges_for,
    takes_intercept,
    weights_gram,
)
from tpsprune.pruning.groups import Group, PrunedGroup
from tpsprune.pruning.layers import (
    Mixer,
    channels_first,
    is_mixer,
    is_transposed_linear,
    length,
    mixer,
    tensor_axes,
)
from tpsprune.pruning.lockstep import LayerBatch, Stop, collect_all_calls, traverse_in_step
from tpsprune.pruning.observations import (
    JointMoments,
    JointSums,
    SplitMoments,
    count_features,
    count_places,
    count_windows,
    groups_of,
    read_outputs,
    read_signals,
    read_windows,
    sample_places,
    with_items,
)
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.surgery import elements_kept, scale_held, shapes_of

FORWARDS: Final = {each.forward for each in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
ALIKE: Final = 0.02
"""Of ridges whose errors differ by no more than this share the largest is taken, for small weights."""
EXACT: Final = 1e-12
"""An error, as a share of the variance, that is none."""
SINGLE_RIDGE: Final = 1e-4
"""The least ridge with which a system is well enough conditioned to be factored in single precision."""
MOST_FEATURES: Final = 4608
"""512 channels seen through a 3×3 kernel: 170 MB a matrix, and a dozen of them for a moment."""


def reconstruct(
    dense: nn.Module,
    ticket: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    chosen: Mapping[str, Selection],
    calls: Mapping[str, int],
    *,
    refits: bool = True,
    ranks: Mapping[str, int] | None = None,
    peers: AbstractPeers = ALONE,
) -> None:
    """Fit ``ticket`` to ``dense``, in place, in one traversal of the two.

    Each layer on the way that reads a pruned group, or inputs that pruning has changed, is fitted to those
    outputs of the dense model's layer that it still has, from its own inputs, so errors do not add up: by
    compensation, one coefficient for each pair of signals, and by the refit, for each weight.

    Args:
        dense: the model to reproduce.
        ticket: sliced to the units ``chosen``, with the biases it may have; scales held (``hold_scale``).
        batches: prepared calibration batches.
        groups: that lose units.
        chosen: the units that each of them keeps.
        calls: how often a layer is called in a pass; once where it is not named.
        refits: whether the refit is allowed; without it only consumers of pruned groups are fitted.
        ranks: of layers that are to have no more; they are refitted whatever their inputs are.
        peers: each passes its shards of the batches; they solve by turns, and tell the weights.

    Raises:
        PruneError: such a layer cannot be refitted, for the two models call it on other items (experts).
        PeersError: batches of another process call the layers in another order (experts).

    Cost: a forward pass of both models, the moments of each layer on the way (see ``observations``), and the
    solutions (see ``refit_layer``).
    """
    task = _Reconstruction(dense, ticket, batches, groups, chosen, calls, refits, ranks or {}, peers)
    with evaluation_mode(dense), evaluation_mode(ticket):
        for stop in traverse_in_step(dense, ticket, task.batches, task.names):
            task.fit(stop)
        task.leave()
    if missing := [name for name in task.ranks if name not in task.of_rank]:
        raise PruneError(f"{missing[0]}: the ticket calls it on other items than the dense model does")


def share_held(found: CalibrationStatistics, batches: Sequence[Any], gib: float) -> float:
    """Return what share of the items can wait at a layer in both models within ``gib`` GiB.

    Estimated as five times the largest input of a layer, for each item: in both models that input and what
    else the model's code holds on to meanwhile (the shortcut of a residual block), and the dense layer's
    output.
    """
    items = sum(map(item_count, batches))
    return min(1.0, gib * 2**30 / max(1, 5 * found.item_bytes * items))


@final
class _Reconstruction:
    def __init__(
        self,
        dense: nn.Module,
        ticket: nn.Module,
        batches: Sequence[Any],
        groups: Sequence[Group],
        chosen: Mapping[str, Selection],
        calls: Mapping[str, int],
        refits: bool,
        ranks: Mapping[str, int],
        peers: AbstractPeers,
    ) -> None:
        self.dense, self.ticket, self.peers = dense, ticket, peers
        self.places = [
            place for shard in peers.own_shards for place in range(shard, len(batches), peers.shards)
        ]
        """Where the batches of this process are in the whole."""
        self.batches = [batches[place] for place in self.places]
        self.calls, self.refits, self.ranks = calls, refits, ranks
        self.solver = 0
        """Whose turn it is to solve for a layer; one layer after the other is solved, each by another."""
        self.of_rank: set[str] = set()
        self.items = sum(map(item_count, batches))
        pruned = [PrunedGroup.of(group, chosen[group.name].units) for group in groups]
        self.kept_elements = elements_kept(shapes_of(dense), pruned)
        self.factors = {
            group.scores.query: factor
            for group, each in zip(groups, pruned, strict=True)
            if group.scores and (factor := scale_held(group, len(each.kept))) != 1.0
        }
        self.read: dict[str, list[Read]] = {}
        for group, each in zip(groups, pruned, strict=True):
            for consumer in group.consumers:
                self.read.setdefault(consumer.module, []).append(Read(consumer, group.width, each.kept))

    @property
    def names(self) -> list[str]:
        """Where to stop: at consumers, and at whatever else can be refitted."""
        mixers = [name for name, module in self.dense.named_modules() if name and is_mixer(module)]
        return list(dict.fromkeys([*self.read, *(mixers if self.refits else ())]))

    def fit(self, stop: Stop) -> None:
        """Fit a layer before it is called."""
        name, read = stop.module, self.read.get(stop.module, [])
        if not stop.batches or not is_mixer(self.dense.get_submodule(name)):
            return
        is_whole = len(stop.batches) == len(self.batches)
        if self.calls.get(name, 1) > 1:
            stop = Stop(name, collect_all_calls(self.dense, self.ticket, self.batches, name))
        module = self.dense.get_submodule(name)
        changed = bool(read) or name in self.ranks or any(not _are_equal(each) for each in stop.batches)
        # Where the two models route other items here (experts) no output belongs to an input.
        are_paired = not changed or all(_are_paired(module, each) for each in stop.batches)
        changed, are_paired = self._meet(name, is_whole, changed, are_paired)
        if not changed or not are_paired:
            return
        self.solver = (self.solver + 1) % self.peers.size
        refits = self.refits and self._may_be_refitted(name, read)
        for each in read:
            # The refit of such a layer has a coefficient for each of its inputs, as compensation has.
            if not refits or each.consumer.positions > 1 or mixer(self.dense, name).weight[0, 0].numel() > 1:
                self._compensate(each, read, stop)
        if refits:
            self._refit(stop)

    def leave(self) -> None:
        """Meet the other processes where the walk is over."""
        self._meet("", is_whole=True, changed=False, are_paired=True)

    def _meet(self, name: str, is_whole: bool, changed: bool, are_paired: bool) -> tuple[bool, bool]:
        """Check that all processes stop at the same layer, each with all of its batches.

        Returns:
            Whether inputs of the layer have changed in some process, and whether they are paired in all.

        Raises:
            PeersError: they do not: what a layer is called on hangs on the items (experts).
        """
        if self.peers.size == 1:
            return changed, are_paired
        found = self.peers.gather((name, is_whole, changed, are_paired))
        for rank, (theirs, whole, *_) in enumerate(found):
            if theirs != name or not whole:
                raise PeersError(
                    "the layers of this model are called in another order, or on fewer batches, on rank "
                    f"{rank} ('{theirs}', '{name}' on rank {self.peers.rank}): train it in one process"
                )

        return any(each[2] for each in found), all(each[3] for each in found)

    def _in_order(self, stop: Stop) -> Iterator[tuple[int, int, LayerBatch]]:
        """Yield what a layer has seen: the place of the batch, that of the call among all calls, and it."""
        calls = max(1, len(stop.batches) // len(self.places))
        for rank, each in enumerate(stop.batches):
            place = self.places[min(rank // calls, len(self.places) - 1)]
            yield place, rank if self.peers.shards == 1 else place * calls + rank % calls, each

    def _tell(self, module: Mixer) -> None:
        """Give all processes the weights that one has found."""
        found = [each.data for each in (module.weight, module.bias) if each is not None]
        self.peers.write(found, self.solver)

    def _compensate(self, own: Read, read: Sequence[Read], stop: Stop) -> None:
        module, like = mixer(self.ticket, stop.module), mixer(self.dense, stop.module)
        outputs_q = self._outputs(stop.module)
        narrow = own.in_ticket(length(like, "in"), read, outputs_q)
        sums = JointSums(self.peers)
        for place, rank, each in self._in_order(stop):
            places_s = sample_signal_places(like, each.dense, own.consumer, own.width, self.items, rank)
            y_bsn = read_signals(like, each.dense, own.consumer, own.width, places_s)
            x_bsk = read_signals(module, each.pruned, narrow, len(own.kept), places_s)
            sums.add(x_bsk[:, :, None], y_bsn[:, :, None], place)
        moments = sums.moments()
        if self.peers.rank == self.solver:
            found = fit_interpolation(
                moments,
                own.signals,
                weights_gram(like, own.consumer, own.width),
                intercept=takes_intercept(module),
                ridges=ridges_for(module.weight.dtype),
            )
            factor = self.factors.get(stop.module, 1.0)
            compensate(module, like, own, narrow, found, outputs_q, factor)
        self._tell(module)

    @torch.no_grad()
    def _refit(self, stop: Stop) -> None:
        module, like = mixer(self.ticket, stop.module), mixer(self.dense, stop.module)
        outputs_q, factor = self._outputs(stop.module), self.factors.get(stop.module, 1.0)
        sums = JointSums(self.peers)
        count = count_places(count_features(module), self.items, layers=groups_of(module))
        for place, rank, each in self._in_order(stop):
            generator = torch.Generator().manual_seed(rank)
            places_s = sample_places(count_windows(module, each.pruned), count, generator)
            output = like.forward(each.dense) if each.output is None else each.output
            outputs_bsq = read_outputs(like, output, places_s)
            if outputs_q is not None:
                outputs_bsq = outputs_bsq[..., outputs_q.to(output.device)]
            outputs_bsgq = factor * outputs_bsq.reshape(*outputs_bsq.shape[:2], groups_of(module), -1)
            sums.add(read_windows(module, each.pruned, places_s), outputs_bsgq, place)
        if sums.rows:
            moments = sums.moments()
            if self.peers.rank == self.solver:
                refit_layer(module, moments, self.ranks.get(stop.module))
            self._tell(module)
            self.of_rank |= {stop.module} & self.ranks.keys()

    def _outputs(self, name: str) -> Tensor | None:
        """Return which outputs of a dense layer its narrow one has; none where it has all."""
        axis = tensor_axes(self.dense.get_submodule(name), "out")["weight"]
        return self.kept_elements.get(f"{name}.weight", {}).get(axis)

    def _may_be_refitted(self, name: str, read: Sequence[Read]) -> bool:
        if refusal_to_refit(self.ticket.get_submodule(name)):
            return False
        weight = mixer(self.ticket, name).weight
        owners = sum(weight is each for other in self.ticket.modules() for each in other._parameters.values())
        frozen = not weight.requires_grad and any(each.requires_grad for each in self.ticket.parameters())
        return owners == 1 and not (frozen and not read)


def _are_equal(each: LayerBatch) -> bool:
    return each.dense.shape == each.pruned.shape and torch.equal(each.dense, each.pruned)


def _are_paired(module: nn.Module, each: LayerBatch) -> bool:
    """Return whether both models have the same items and places at a layer."""
    shapes = [list(with_items(module, inputs).shape) for inputs in (each.dense, each.pruned)]
    for shape in shapes:
        del shape[1 if channels_first(module) else -1]
    return shapes[0] == shapes[1]


def refusal_to_refit(module: nn.Module) -> str:
    """Return why a layer cannot be refitted, or an empty string."""
    if not is_mixer(module):
        return f"{type(module).__name__} does not mix units"
    if isinstance(module, _ConvNd) and module.transposed:
        return "outputs of a transposed convolution see different parts of its kernel"
    if not is_transposed_linear(module) and type(module).forward not in FORWARDS:
        return f"{type(module).__name__} may compute something of its own"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrised"
    features = count_features(module)
    if features > MOST_FEATURES:
        return f"{features} features are more than {MOST_FEATURES}: the moments would take too much memory"
    return ""


def refit_layer(module: Mixer, moments: SplitMoments, rank: int | None = None) -> float | None:
    """Solve for a layer's weights and bias, in place. Return the ridge.

    W minimises E‖y − W x − b‖² + λ‖W − W₀‖², W₀ the weights as they are (compensated or not), λ = ridge · the
    mean variance of a feature. Of the ridges (``compensation.ridges_for``) and of W₀ itself the one is taken
    that does best on the items held out, fitted on the others, of such as do alike the largest; then all
    items are fitted. On these no layer does worse than it did. A layer without a bias is fitted through zero.
    Where the layer as it is does best on the items held out it is kept, and there is no ridge.

    With a ``rank`` the outputs that this W gives are projected on their strongest directions U: U Uᵀ W is the
    best of that rank (reduced-rank regression; Izenman 1975), and the bias is solved for again.

    Source: He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks",
    equation 3; Luo, Wu and Lin 2017, "ThiNet", section 3.3: there for the pruned layer alone.

    Cost: four or five times g·p³ / 3, those of larger ridges in single precision.
    """
    turned = is_transposed_linear(module)
    weight = module.weight.detach().T if turned else module.weight.detach()
    old_gqp = widened(weight.reshape(groups_of(module), -1, math.prod(weight.shape[1:])))
    parts = moments.about_zero() if module.bias is None else moments
    fit, held = parts.fit, parts.held
    bias_gq = None if module.bias is None else widened(module.bias.detach()).reshape(len(old_gqp), -1)
    ridge: float | None = SAFE_RIDGE
    if fit is not None and held is not None:
        errors = _try_ridges(
            lambda ridge: _error(held, *_solve(fit, old_gqp, ridge)), ridges_for(weight.dtype)
        )
        least = min(errors.values())
        alike = (each for each, error in errors.items() if error <= least + ALIKE * abs(least) + EXACT)
        ridge = max(alike) if least < _error(held, old_gqp, bias_gq) else None
    new_gqp, intercept_gq = old_gqp, bias_gq
    if ridge is not None:
        new_gqp, intercept_gq = _solve(parts.whole, old_gqp, ridge)
    if rank is not None and bool(new_gqp.isfinite().all()):
        new_gqp, intercept_gq = _projected(parts.whole, new_gqp, rank)
    elif ridge is None:
        return None
    if not bool(new_gqp.isfinite().all()):
        return None
    with torch.no_grad():
        fresh = new_gqp.to(weight.dtype).reshape(weight.shape)
        module.weight.copy_(fresh.T if turned else fresh)
        if module.bias is not None and intercept_gq is not None:
            module.bias.copy_(intercept_gq.flatten().to(module.bias.dtype))
    return ridge


def _projected(part: JointMoments, weight_gqp: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the weights of a rank whose outputs are nearest to those of other weights, and the intercept."""
    _, directions_gqq = torch.linalg.eigh(weight_gqp @ part.xx_gpp @ weight_gqp.mT)
    strongest_gqr = directions_gqq[:, :, weight_gqp.shape[1] - rank :]
    new_gqp = strongest_gqr @ (strongest_gqr.mT @ weight_gqp)
    return new_gqp, _intercept(part, new_gqp)


def _try_ridges(error_at: Callable[[float], float], ridges: Sequence[float]) -> dict[float, float]:
    """Return the errors at some of the ridges: downhill from the last but one, as of an error of one valley.

    What is not finite is infinite.
    """
    places = range(len(ridges))
    start = max(0, len(ridges) - 2)
    errors: dict[float, float] = {}

    def descend(step: int) -> int:
        """Follow the errors as long as they fall; return the steps that did."""
        place, before = start, at(start)
        while place + step in places and at(place + step) < before:
            place, before = place + step, at(place + step)
        return abs(place - start)

    def at(place: int) -> float:
        if ridges[place] not in errors:
            error = error_at(ridges[place])
            errors[ridges[place]] = error if math.isfinite(error) else math.inf
        return errors[ridges[place]]

    descend(-1) or descend(1)
    return errors


def _solve(part: JointMoments, old_gqp: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    variances_gp = part.xx_gpp.diagonal(dim1=1, dim2=2)
    scale_g11 = variances_gp.mean(1).clamp_min(torch.finfo(variances_gp.dtype).tiny)[:, None, None]
    ridged_gpp = part.xx_gpp.clone()
    ridged_gpp.diagonal(dim1=1, dim2=2).add_(ridge * scale_g11[:, :, 0])
    wrong_gpq = part.xy_gpq - part.xx_gpp @ old_gqp.mT
    change_gpq = _solve_system(ridged_gpp, wrong_gpq, single=ridge >= SINGLE_RIDGE)
    new_gqp = old_gqp + change_gpq.mT
    return new_gqp, _intercept(part, new_gqp)


def _intercept(part: JointMoments, weight_gqp: Tensor) -> Tensor:
    return part.mean_y_gq - (weight_gqp @ part.mean_x_gp[:, :, None])[:, :, 0]


def _solve_system(matrix_gpp: Tensor, right_gpq: Tensor, *, single: bool) -> Tensor:
    """Solve positive definite systems by Cholesky; ``single``: factored so, and refined once in double."""
    factor_gpp, failed_g = torch.linalg.cholesky_ex(matrix_gpp.float() if single else matrix_gpp)
    if single and bool(failed_g.any()):
        return _solve_system(matrix_gpp, right_gpq, single=False)
    # What rounding leaves of a singular matrix is no solution: nothing that is not finite wins.
    factor_gpp[failed_g > 0] = torch.nan
    found_gpq = torch.cholesky_solve(right_gpq.to(factor_gpp.dtype), factor_gpp).to(right_gpq.dtype)
    if single:
        left_gpq = right_gpq - matrix_gpp @ found_gpq
        found_gpq += torch.cholesky_solve(left_gpq.float(), factor_gpp).to(right_gpq.dtype)
    return found_gpq


def _error(part: JointMoments, weight_gqp: Tensor, bias_gq: Tensor | None) -> float:
    fitted_gqp = weight_gqp @ part.xx_gpp
    error_gq = part.yy_gq - 2 * (part.xy_gpq.mT * weight_gqp).sum(2) + (fitted_gqp * weight_gqp).sum(2)
    offset_gq = _intercept(part, weight_gqp)
    offset_gq = offset_gq if bias_gq is None else offset_gq - bias_gq
    total = part.yy_gq.sum().clamp_min(torch.finfo(part.yy_gq.dtype).tiny)
    return float((error_gq + offset_gq.square()).sum() / total)
