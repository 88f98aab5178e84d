"""One look at the dense model: what every consumer is fed, and what follows for the widths.

Shape letters: n signals (units times features).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.moments import Moments, MomentSums
from tpsprune.numerics.spectra import effective_rank
from tpsprune.numerics.trees import item_count, taken
from tpsprune.pruning.compensation import gram_of
from tpsprune.pruning.groups import Consumer, Group
from tpsprune.pruning.layers import length, mixer
from tpsprune.pruning.lockstep import hooked
from tpsprune.pruning.rows import draw, signal_places, signals, wanted
from tpsprune.pruning.selection import Reading, Selection, pivoted_cholesky, select
from tpsprune.pruning.sensitivity import sensitivities
from tpsprune.pruning.trial import flat_tensors

__all__ = ["Look", "check_called", "check_probe", "look", "places_of"]

LEAST_SHARE: Final = 0.25
LEAST_ROWS: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the probe shows of a dense model.

    ``moments`` are those of each consumer's signals, ``calls`` how often a layer is called in a pass,
    ``sensitivity`` what an error at its outputs costs at the end, ``item_bytes`` the most that any of these
    layers is fed of one item.
    """

    moments: Mapping[Consumer, Moments] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    sensitivity: Mapping[str, Tensor] = field(default_factory=dict)
    item_bytes: int = 0

    def reading(self, model: nn.Module, group: Group, consumer: Consumer) -> Reading:
        """Return what a consumer makes of a group in the dense model."""
        covariance_nn = self.moments[consumer].covariance_nn
        cost_q = self.sensitivity.get(consumer.module)
        gram_nn = gram_of(mixer(model, consumer.module), consumer, group.width, cost_q)
        return Reading(covariance_nn, covariance_nn, covariance_nn, gram_nn, consumer.features)

    def readings(self, model: nn.Module, group: Group) -> list[Reading]:
        """Return what all consumers that were called make of a group."""
        return [self.reading(model, group, each) for each in group.consumers if each in self.moments]

    def selection(
        self, model: nn.Module, group: Group, count: int, *, given: Sequence[int] | None = None
    ) -> Selection:
        """Pick units of a group by what the dense model says, or tell the shares left by units given."""
        return select(self.readings(model, group), count, given=given)

    def cholesky(self, model: nn.Module, group: Group, count: int) -> Selection:
        """Pick units by pivoted Cholesky of the covariance weighted by what the consumers hear.

        Of consumers to which units are different numbers of signals those that are like the first count.
        """
        weighted = []
        for each in _alike(self.readings(model, group)):
            root_n = each.gram_nn.diagonal().clamp_min(0).sqrt()
            heard_nn = root_n[:, None] * each.yy_nn * root_n
            weighted.append(heard_nn / heard_nn.trace().clamp_min(torch.finfo(heard_nn.dtype).tiny))
        total_nn = torch.stack(weighted).sum(0)
        return pivoted_cholesky(total_nn, count, features=len(total_nn) // group.width)

    def effective_rank(self, model: nn.Module, group: Group) -> float:
        """Return the effective rank of what the units say, as far as their consumers hear it, in units.

        That of the covariance between the square roots of the consumers' Gram matrix, each consumer's over
        its trace: a direction nobody listens to is no dimension. Of consumers to which units are different
        numbers of signals those that are like the first count.
        """
        heard = []
        for each in _alike(self.readings(model, group)):
            values_n, vectors_nn = torch.linalg.eigh(each.gram_nn)
            root_nn = vectors_nn * values_n.clamp_min(0).sqrt() @ vectors_nn.T
            heard_nn = root_nn @ each.yy_nn @ root_nn
            heard.append(heard_nn / heard_nn.trace().clamp_min(torch.finfo(heard_nn.dtype).tiny))
        rank = float(effective_rank(torch.linalg.eigvalsh(torch.stack(heard).sum(0))))
        return max(1.0, rank * group.width / len(heard[0]))

    def rows(self, group: Group) -> int:
        """Return the most observations that any consumer of a group gave."""
        return max((self.moments[each].rows for each in group.consumers if each in self.moments), default=0)


def look(model: nn.Module, probe: Sequence[Any], groups: Sequence[Group], names: Sequence[str]) -> Look:
    """Run the probe, or as much of it as the moments need, through the dense model once.

    Args:
        model: called in evaluation mode.
        probe: prepared batches.
        groups: whose consumers are read.
        names: further layers whose calls are counted.

    Raises:
        PruneError: what the model puts out on a batch is not finite.

    Cost: a quarter to the whole of a forward pass, and r·n² for each consumer, r some 8 n.
    """
    width_of = {consumer: group.width for group in groups for consumer in group.consumers}
    readers: dict[str, list[Consumer]] = {}
    for consumer in width_of:
        readers.setdefault(consumer.module, []).append(consumer)
    sums = {consumer: MomentSums() for consumer in width_of}
    places: dict[Consumer, int] = {}
    calls: Counter[str] = Counter()
    items = sum(map(item_count, probe))
    rank = largest = 0

    def count(name: str, given: Tensor) -> None:
        nonlocal largest
        calls[name] += 1
        largest = max(largest, given.numel() * given.element_size() // max(1, len(given)))
        module = model.get_submodule(name)
        places.update({each: signal_places(module, given, each) for each in readers.get(name, ())})

    def see(name: str, given: Tensor) -> None:
        module = model.get_submodule(name)
        for consumer in readers.get(name, ()):
            chosen_s = places_of(module, given, consumer, width_of[consumer], items, rank)
            signals_bsn = signals(module, given, consumer, width_of[consumer], chosen_s)
            sums[consumer].add(signals_bsn.flatten(0, 1))

    with torch.no_grad(), evaluation_mode(model):
        with hooked(model, {*readers, *names}, count):
            call_model(model, taken(probe[0], torch.arange(2)))
        share = _share(groups, places, items)
        with hooked(model, readers, see):
            for batch in probe:
                part = taken(batch, torch.arange(math.ceil(share * item_count(batch) - 1e-9)))
                _check_said(call_model(model, part), rank)
                rank += 1
    cost = sensitivities(model, probe, list(readers))
    usual = statistics.median(float(each.mean()) for each in cost.values()) if cost else 1.0
    return Look(
        {consumer: each.moments() for consumer, each in sums.items() if each.rows},
        calls,
        # A layer without a slope (it runs where no gradient is taken) counts as others do.
        {name: cost.get(name, torch.full((length(mixer(model, name), "out"),), usual)) for name in readers},
        largest,
    )


def _alike(readings: Sequence[Reading]) -> list[Reading]:
    return [each for each in readings if each.features == readings[0].features]


def _share(groups: Sequence[Group], places: Mapping[Consumer, int], items: int) -> float:
    """Return what share of the probe gives two rows for each signal, and 4,096 of them, to every group.

    Each group by its consumer of most places; never less than a quarter.
    """
    share = LEAST_SHARE
    for group in groups:
        rows = max((places.get(each, 0) for each in group.consumers), default=0) * items
        signals_n = group.width * group.consumers[0].features
        share = max(share, max(LEAST_ROWS, 2 * signals_n) / rows if rows else 0.0)
    return min(1.0, share)


def places_of(
    module: nn.Module, given: Tensor, consumer: Consumer, width: int, items: int, batch_rank: int
) -> Tensor:
    """Return the places at which a consumer's signals are read, the same whenever the batch comes by."""
    generator = torch.Generator().manual_seed(batch_rank)
    count = wanted(width * consumer.features, items)
    return draw(signal_places(module, given, consumer), count, generator)


def check_called(model: nn.Module, probe: Sequence[Any]) -> None:
    """Refuse a probe that is empty or not finite, or that the model cannot be called with.

    Raises:
        PruneError: what the model's own code said is in the message.
    """
    if not len(probe) or not all(map(item_count, probe)):
        raise PruneError("the probe is empty: at least one batch is needed to see what the units say")
    for rank, batch in enumerate(probe):
        if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(batch)):
            raise PruneError(f"probe batch {rank} holds values that are not finite")
    try:
        with torch.no_grad(), evaluation_mode(model):
            answer = call_model(model, taken(probe[0], torch.arange(2)))
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PruneError(
            f"the model cannot be called on two items of probe batch 0: {said} (a tensor or a tuple goes in "
            "by position, a mapping by keyword; items lie along the first axis)"
        ) from error
    if not any(True for _ in flat_tensors(answer)):
        raise PruneError(
            f"the model answers {type(answer).__name__} without a tensor of numbers: there is nothing to "
            "match"
        )


def check_probe(model: nn.Module, probe: Sequence[Any]) -> None:
    """Refuse a probe on a few of whose items the model is not finite.

    Raises:
        PruneError: the message names the batch.
    """
    with torch.no_grad(), evaluation_mode(model):
        for rank, batch in enumerate(probe):
            _check_said(call_model(model, taken(batch, torch.arange(2))), rank)


def _check_said(output: Any, rank: int) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in flat_tensors(output)):
        raise PruneError(
            f"the model's output on probe batch {rank} is not finite: training may have diverged"
        )
