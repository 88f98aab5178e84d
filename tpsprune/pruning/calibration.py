"""Calibration: statistics of the dense model on the calibration data, without labels.

They are the moments of each consumer's inputs; what an error at each layer's outputs costs at the end of the
network; and, where the settings need them, the importance of each unit and of each dimension of a head.

Shape letters: b items, n signals (units times features), q outputs of a layer, e inputs of a layer.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import (
    call_model,
    evaluation_mode,
    flat_tensors,
    item_tensors,
    observe_inputs,
    sound_backward,
    widened,
)
from tpsprune.numerics.moments import Moments, MomentSums
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.spectra import effective_rank
from tpsprune.numerics.trees import is_whole, item_count, take_items
from tpsprune.pruning.compensation import weights_gram
from tpsprune.pruning.groups import Consumer, Group
from tpsprune.pruning.head_width import ScoreMoments, rotate_heads, second_moment
from tpsprune.pruning.importances import score_units
from tpsprune.pruning.layers import channels_first, is_mixer, length, mixer
from tpsprune.pruning.observations import (
    count_places,
    count_signal_places,
    read_signals,
    sample_items,
    sample_places,
    with_items,
)
from tpsprune.pruning.selection import Reading, Selection, pivoted_cholesky, select
from tpsprune.pruning.widths import needed_evidence
from tpsprune.recipe.prune import Prune

BY_OUTPUTS: Final = ("interpolation", "pivoted-cholesky")
"""Units that are chosen by their outputs; for others the moments are not needed."""
LEAST_SHARE: Final = 0.25
LEAST_ROWS: Final = 4096
SLOPE_ITEMS: Final = 32
"""How many items are enough for sensitivities: a mean of squares over them and over all places."""
SLOPES_AT_A_TIME: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationStatistics:
    """Statistics of a dense model on the calibration data.

    ``moments`` are those of each consumer's signals, ``calls`` how often a layer is called in a pass,
    ``sensitivity`` what an error at its outputs costs at the end, ``item_bytes`` the largest input that any
    of these layers has of one item, ``scores`` importances of units that are chosen by such.
    ``score_moments`` are those of the inputs of q and k of each group of kind "head-width", ``energies`` what
    each dimension of its heads carries once they are turned (``turn_heads``). ``rows`` are the most
    observations that any consumer of a group gave, by the group's name; empty where none were needed.
    """

    moments: Mapping[Consumer, Moments] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    sensitivity: Mapping[str, Tensor] = field(default_factory=dict)
    item_bytes: int = 0
    scores: Mapping[str, Tensor] | None = None
    score_moments: Mapping[str, ScoreMoments | None] = field(default_factory=dict)
    energies: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def reading(self, model: nn.Module, group: Group, consumer: Consumer) -> Reading:
        """Return what a consumer reads of a group in the dense model."""
        covariance_nn = self.moments[consumer].covariance_nn
        cost_q = self.sensitivity.get(consumer.module)
        gram_nn = weights_gram(mixer(model, consumer.module), consumer, group.width, cost_q)
        return Reading(covariance_nn, gram_nn, consumer.features)

    def readings(self, model: nn.Module, group: Group) -> list[Reading]:
        """Return what all consumers that were called read of a group."""
        return [self.reading(model, group, each) for each in group.consumers if each in self.moments]

    def select(
        self, model: nn.Module, group: Group, count: int, *, picked: Sequence[int] | None = None
    ) -> Selection:
        """Select units of a group by the dense model alone, or return the residual shares of units picked."""
        if readings := self.readings(model, group):
            return select(readings, count, picked=picked)
        # Nobody reads the units of a group whose consumers are never called.
        return Selection(tuple(range(count)) if picked is None else tuple(picked), (0.0,) * count)

    def select_by_cholesky(self, model: nn.Module, group: Group, count: int) -> Selection:
        """Select units by pivoted Cholesky of the covariance, weighted by the consumers' weights.

        Of consumers to which units are different numbers of signals those that are like the first count.
        """
        roots = ((each, each.gram_nn.diagonal().clamp_min(0).sqrt()) for each in self._alike(model, group))
        total_nn = _sum_of_shares([root_n[:, None] * each.covariance_nn * root_n for each, root_n in roots])
        return pivoted_cholesky(total_nn, count, features=len(total_nn) // group.width)

    def effective_rank(self, model: nn.Module, group: Group) -> float:
        """Return the effective rank of the units' signals as their consumers weight them, in units.

        That of G^½ Σ G^½, G the Gram matrix of a consumer's weights, each consumer's over its trace: a
        direction that no consumer reads is no dimension. Of consumers to which units are different numbers of
        signals those that are like the first count.
        """
        weighted: list[Tensor] = []
        for each in self._alike(model, group) if self.readings(model, group) else ():
            values_n, vectors_nn = torch.linalg.eigh(each.gram_nn)
            root_nn = vectors_nn * values_n.clamp_min(0).sqrt() @ vectors_nn.T
            weighted.append(root_nn @ each.covariance_nn @ root_nn)
        if not weighted:  # Nothing reached it.
            return 1.0
        rank = float(effective_rank(torch.linalg.eigvalsh(_sum_of_shares(weighted))))
        return max(1.0, rank * group.width / len(weighted[0]))

    def _alike(self, model: nn.Module, group: Group) -> list[Reading]:
        readings = self.readings(model, group)
        return [each for each in readings if each.features == readings[0].features]


def _sum_of_shares(covariances: Sequence[Tensor]) -> Tensor:
    """Return the sum of covariances, each over its trace."""
    tiny = torch.finfo(covariances[0].dtype).tiny
    return torch.stack([each_nn / each_nn.trace().clamp_min(tiny) for each_nn in covariances]).sum(0)


def collect_statistics(
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None,
    seed: int,
    objective: Objective = CROSS_ENTROPY,
    peers: AbstractPeers = ALONE,
) -> CalibrationStatistics:
    """Collect of the dense model what the settings need.

    Args:
        model: its attention open; the heads of groups of kind "head-width" are turned, in place.
        batches: prepared calibration batches.
        groups: of the model.
        settings: which units and widths.
        labels: for ``units = "taylor"``.
        seed: for ``units = "random"``.
        objective: what ``units = "taylor"`` takes the gradient of.
        peers: each passes its shards of the batches, which are the same in all.

    Raises:
        PruneError: the model's outputs on the batches are not finite; see ``importances.score_units``.

    Cost: a quarter to the whole of a forward pass, r·n² for each consumer, r some 8 n; a pass forward and
    backward of 32 items.
    """
    consumed = [group for group in groups if group.consumers]
    with_scores = [group for group in groups if group.scores is not None]
    score_moments = _score_moments(model, batches, with_scores, peers)
    energies = turn_heads(model, groups, score_moments)
    found = CalibrationStatistics()
    by_outputs = settings.units in BY_OUTPUTS
    if settings.compensate or by_outputs or needed_evidence(settings) & {"ranks", "residuals"}:
        found = _measure(model, batches, consumed, peers)
    else:
        with torch.no_grad(), evaluation_mode(model):
            for rank, batch in enumerate(batches):
                _check_finite(call_model(model, take_items(batch, torch.arange(2))), rank)
    scores = None
    if not by_outputs:
        scores = score_units(
            model, batches, consumed, settings.units, labels=labels, seed=seed, objective=objective
        )
    return replace(found, scores=scores, score_moments=score_moments, energies=energies)


def _measure(
    model: nn.Module, batches: Sequence[Any], groups: Sequence[Group], peers: AbstractPeers
) -> CalibrationStatistics:
    """Take the moments of every consumer in one pass, or as much of one as they need; count the calls."""
    width_of = {consumer: group.width for group in groups for consumer in group.consumers}
    readers: dict[str, list[Consumer]] = {}
    for consumer in width_of:
        readers.setdefault(consumer.module, []).append(consumer)
    mixers = [name for name, module in model.named_modules() if name and is_mixer(module)]
    sums: dict[Consumer, MomentSums] = {}
    shifts: dict[Consumer, Tensor] = {}
    places: dict[Consumer, int] = {}
    calls: Counter[str] = Counter()
    items = sum(map(item_count, batches))
    few = take_items(batches[0], torch.arange(2))
    rank = largest = 0

    def count(name: str, inputs: Tensor) -> None:
        nonlocal largest
        calls[name] += 1
        there = item_count(few) if is_whole(few) else len(inputs)
        largest = max(largest, inputs.numel() * inputs.element_size() // max(1, there))
        module = model.get_submodule(name)
        places.update({each: count_signal_places(module, inputs, each) for each in readers.get(name, ())})
        if peers.shards > 1:  # Shards are summed up about one shift, which all know beforehand.
            shifts.update({each: read(name, inputs, each).mean(0) for each in readers.get(name, ())})

    def read(name: str, inputs: Tensor, consumer: Consumer) -> Tensor:
        module = model.get_submodule(name)
        places_s = sample_signal_places(module, inputs, consumer, width_of[consumer], items, rank)
        return read_signals(module, inputs, consumer, width_of[consumer], places_s).flatten(0, 1)

    def shift_of(consumer: Consumer) -> Tensor | None:
        if peers.shards == 1:
            return None
        weight = mixer(model, consumer.module).weight
        # Of a layer that two items do not reach (experts) no mean is known, and zero is as good as another.
        nothing = weight.new_zeros(width_of[consumer] * consumer.features)
        return shifts.get(consumer, nothing)

    def add(name: str, inputs: Tensor) -> None:
        for consumer in readers.get(name, ()):
            sums[consumer].add(read(name, inputs, consumer))

    with torch.no_grad(), evaluation_mode(model):
        with observe_inputs(model, {*readers, *mixers}, count):
            call_model(model, few)
        share = _share_needed(groups, places, items)
        of_shards: list[dict[Consumer, MomentSums]] = []
        with observe_inputs(model, readers, add):
            for shard in peers.own_shards:
                sums = {consumer: MomentSums(shift_of(consumer)) for consumer in width_of}
                of_shards.append(sums)
                for rank in range(shard, len(batches), peers.shards):
                    batch = batches[rank]
                    part = take_items(batch, torch.arange(math.ceil(share * item_count(batch) - 1e-9)))
                    _check_finite(call_model(model, part), rank)
    reached = [each.module for each in width_of if any(of_shard[each].rows for of_shard in of_shards)]
    peers.agree("which layers calibration items reach (experts are cut in one process)", reached)
    whole = {
        consumer: MomentSums.summed([of_shard[consumer] for of_shard in of_shards], peers)
        for consumer in width_of
        if consumer.module in reached
    }
    moments = {consumer: each.moments() for consumer, each in whole.items() if each.rows}
    cost = peers.first_tensors(lambda: measure_sensitivities(model, batches, list(readers)), peers.last)
    usual = statistics.median(float(each.mean()) for each in cost.values()) if cost else 1.0
    return CalibrationStatistics(
        moments,
        calls,
        # A layer without a slope (it runs where no gradient is taken) counts as others do.
        {name: cost.get(name, torch.full((length(mixer(model, name), "out"),), usual)) for name in readers},
        largest,
        rows={
            group.name: max((moments[each].rows for each in group.consumers if each in moments), default=0)
            for group in groups
        },
    )


def _share_needed(groups: Sequence[Group], places: Mapping[Consumer, int], items: int) -> float:
    """Return what share of the items gives two rows for each signal, and 4,096 of them, to every group.

    Each group by its consumer of most places; never less than a quarter.
    """
    share = LEAST_SHARE
    for group in groups:
        rows = max((places.get(each, 0) for each in group.consumers), default=0) * items
        signals_n = group.width * group.consumers[0].features
        share = max(share, max(LEAST_ROWS, 2 * signals_n) / rows if rows else 0.0)
    return min(1.0, share)


def sample_signal_places(
    module: nn.Module, inputs: Tensor, consumer: Consumer, width: int, items: int, batch_rank: int
) -> Tensor:
    """Return the places at which a consumer's signals are read: of one batch always the same."""
    generator = torch.Generator().manual_seed(batch_rank)
    count = count_places(width * consumer.features, items)
    return sample_places(count_signal_places(module, inputs, consumer), count, generator)


def turn_heads(
    model: nn.Module, groups: Sequence[Group], moments: Mapping[str, ScoreMoments | None]
) -> dict[str, Tensor]:
    """Turn the heads of groups of kind "head-width", in place; return what each dimension carries."""
    return {
        group.name: rotate_heads(model, group, moments[group.name])
        for group in groups
        if group.scores is not None
    }


def _score_moments(
    model: nn.Module, batches: Sequence[Any], groups: Sequence[Group], peers: AbstractPeers
) -> dict[str, ScoreMoments | None]:
    """Return the second moments of the inputs of q and k; none where they are convolutions."""
    both = {name for group in groups if group.scores for name in (group.scores.query, group.scores.key)}
    names = sorted(name for name in both if not channels_first(model.get_submodule(name)))
    sums = {name: MomentSums() for name in names}
    shifts: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    items = sum(map(item_count, batches))

    def read(inputs: Tensor) -> Tensor:
        inputs_bse = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        places_s = sample_places(inputs_bse.shape[1], count_places(inputs.shape[-1], items), generator)
        return inputs_bse[:, places_s.to(inputs.device)].flatten(0, 1)

    def shift_of(name: str) -> Tensor | None:
        if peers.shards == 1:
            return None
        weight = mixer(model, name).weight
        return shifts.get(name, weight.new_zeros(length(model.get_submodule(name), "in")))

    def note_shift(name: str, inputs: Tensor) -> None:
        shifts[name] = read(inputs).mean(0)

    def add(name: str, inputs: Tensor) -> None:
        sums[name].add(read(inputs))

    of_shards = []
    if names:
        with torch.no_grad(), evaluation_mode(model):
            if peers.shards > 1:
                with observe_inputs(model, names, note_shift):
                    call_model(model, take_items(batches[0], torch.arange(2)))
            with observe_inputs(model, names, add):
                for shard in peers.own_shards:
                    sums = {name: MomentSums(shift_of(name)) for name in names}
                    of_shards.append(sums)
                    for rank in range(shard, len(batches), peers.shards):
                        if peers.shards > 1:  # Then the places of a batch hang on no other batch.
                            generator.manual_seed(rank)
                        call_model(model, batches[rank])
    whole = {name: MomentSums.summed([each[name] for each in of_shards], peers) for name in names}
    moments = {name: each.moments() for name, each in whole.items() if each.rows}
    found = {name: second_moment(each.mean_n, each.covariance_nn) for name, each in moments.items()}
    return {
        group.name: ScoreMoments(found[group.scores.query], found[group.scores.key])
        if group.scores and {group.scores.query, group.scores.key} <= found.keys()
        else None
        for group in groups
    }


def measure_sensitivities(
    model: nn.Module, batches: Sequence[Any], names: Sequence[str], *, seed: int = 0
) -> dict[str, Tensor]:
    """Return for each layer ``sensitivity_q``: what a unit of variance at an output costs at the end.

    With z_q(s) a layer's output q at place s and o the model's outputs, each over its standard deviation,

        d_q = Σ_s E[ (∂(v·o) / ∂z_q(s))² ],      v of independent random signs,

    is the mean squared error of o, summed, per variance of an independent small error at z_q. It does not
    see that errors of places and layers are correlated, nor the effect of a large error.

    Args:
        model: called in evaluation mode; its parameters' flags are restored.
        batches: prepared calibration batches; some 32 items are used.
        names: of layers.
        seed: of the signs.

    Returns:
        A tensor for each layer that the outputs depend on; double precision where there is one. Nothing at
        all where the model has no gradient.

    Cost: a pass forward and backward over those items.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    seen = 0
    with evaluation_mode(model), _all_gradients(model), torch.enable_grad(), sound_backward(model):
        for batch in sample_items(batches, SLOPE_ITEMS, SLOPES_AT_A_TIME):
            outs_of: dict[str, list[Tensor]] = {name: [] for name in names}
            with ExitStack() as stack:
                for name in names:

                    def keep(
                        _module: nn.Module, _args: Any, out: Any, outs: list[Tensor] = outs_of[name]
                    ) -> Tensor | None:
                        if not isinstance(out, Tensor) or not out.requires_grad:
                            return None
                        outs.append(out)
                        # What comes next may work in place: the slope is wanted before it.
                        return out.clone()

                    stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
                outputs = [out for out in item_tensors(call_model(model, batch)) if out.requires_grad]
            flat = [(name, out) for name, outs in outs_of.items() for out in outs]
            if not outputs or not flat:
                return {}
            total = torch.stack([_project(out, generator) for out in outputs]).sum()
            try:
                slopes = torch.autograd.grad(total, [out for _, out in flat], allow_unused=True)
            except RuntimeError:  # Code that works in place may run and still have no gradient.
                return {}
            for (name, _), slope in zip(flat, slopes, strict=True):
                if slope is not None:
                    module = model.get_submodule(name)
                    axis = 1 if channels_first(module) else -1
                    squares_q = (
                        widened(with_items(module, slope)).square().movedim(axis, -1).flatten(0, -2).sum(0)
                    )
                    sums[name] = sums.get(name, torch.zeros_like(squares_q)) + squares_q
            seen += item_count(batch)
    return {name: squares_q / seen for name, squares_q in sums.items() if bool(squares_q.isfinite().all())}


def _project(out: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random sum of an output's elements, each output over its spread in this batch."""
    signs = torch.randint(0, 2, out.shape, generator=generator).to(out) * 2 - 1
    spread = out.detach().float().std(correction=0).to(out.dtype)
    # An output that does not vary has no scale of its own, and nothing to lose.
    spread = torch.where(spread > 0, spread, torch.inf)
    projected: Tensor = (out * signs / spread).float().sum() / max(1, out[0].numel()) ** 0.5
    return projected


@contextmanager
def _all_gradients(model: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def check_calibration_data(model: nn.Module, batches: Sequence[Any]) -> None:
    """Refuse calibration data that are empty or not finite, or that the model cannot be called with.

    Raises:
        PruneError: the message quotes the model's own code.
    """
    if not len(batches) or not all(map(item_count, batches)):
        raise PruneError(
            "the calibration data are empty: at least one batch is needed to measure the units on"
        )
    for rank, batch in enumerate(batches):
        if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(batch)):
            raise PruneError(f"calibration batch {rank} holds values that are not finite")
    try:
        with torch.no_grad(), evaluation_mode(model):
            output = call_model(model, take_items(batches[0], torch.arange(2)))
    except Exception as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        whole = is_whole(batches[0])
        part = "" if whole else "two items of "
        lie = "" if whole else "; items lie along the first axis, or items= of tpsprune.extract counts them"
        raise PruneError(
            f"the model cannot be called on {part}calibration batch 0: {message} (a tensor or a tuple "
            f"is passed by position, a mapping by keyword{lie})"
        ) from error
    if next(flat_tensors(output), None) is None:
        raise PruneError(
            f"the model returns {type(output).__name__} without a tensor of numbers: nothing can be matched"
        )


def _check_finite(output: Any, rank: int) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(output)):
        raise PruneError(
            f"the model's output on calibration batch {rank} is not finite: training may have diverged"
        )
