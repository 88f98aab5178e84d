"""Batch-norm statistics taken anew, kept only where that helps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.forward import call_model, evaluation_mode, item_tensors
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.rows import some

__all__ = ["output_error", "recalibrated"]

TRIAL_ITEMS: Final = 32


def output_error(model: nn.Module, dense: nn.Module, probe: Sequence[Any]) -> float:
    """Return the mean square difference of two models' outputs, over the variance of the second's.

    Variance is about each output's mean over all items of the probe, however they are batched; of outputs
    that do not vary (a single item) the mean square takes its place.
    """
    return _error(_said(model, probe), _said(dense, probe))


def _said(model: nn.Module, probe: Iterable[Any]) -> Iterator[list[Tensor]]:
    for batch in probe:
        with torch.no_grad(), evaluation_mode(model):
            said = list(item_tensors(call_model(model, batch)))
        # Not within: two of these take turns, and modes would be put back in the wrong order.
        yield said


def _error(found: Iterable[list[Tensor]], wanted: Iterable[list[Tensor]]) -> float:
    error = 0.0
    spread: list[_Spread] = []
    for ours, theirs in zip(found, wanted, strict=True):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            error += float((a - b).float().square().sum())
            if place == len(spread):
                spread.append(_Spread(b.float().mean(0)))
            spread[place].add(b.float())
    whole = sum(each.squares() for each in spread) or sum(each.raw for each in spread)
    return error / max(whole, 1e-30)


class _Spread:
    """Running sums of an output about its first batch's mean."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.items = 0
        self.sum = torch.zeros_like(shift, dtype=torch.float32)
        self.square = self.raw = 0.0

    def add(self, output: Tensor) -> None:
        self.raw += float(output.square().sum())
        # A last batch of another length (sequences) has no common mean: about its own then.
        if output.shape[1:] != self.shift.shape:
            self.square += float((output - output.mean(0)).square().sum())
            return
        away = output - self.shift
        self.items += len(away)
        self.sum += away.sum(0)
        self.square += float(away.square().sum())

    def squares(self) -> float:
        """Return the sum of squares about the mean of all items."""
        return max(0.0, self.square - float(self.sum.square().sum()) / max(1, self.items))


def recalibrated(ticket: nn.Module, dense: nn.Module, probe: Sequence[Any]) -> tuple[nn.Module, bool]:
    """Return the ticket with batch-norm statistics of the probe data where that lowers its output error.

    Every batch norm that keeps running statistics takes the plain average over the probe batches, in
    one pass; other modules stay in evaluation mode. The error is against the dense model's outputs on
    32 of the items; where statistics of these alone do not lower it, the whole probe is not asked. It does
    not see what the probe does not hold.

    Returns:
        The ticket or its recalibrated copy, and whether it is the copy.
    """
    if not _norms(ticket):
        return ticket, False
    few = [part for part in some(probe, TRIAL_ITEMS, TRIAL_ITEMS) if item_count(part) > 1]
    if not few:
        return ticket, False
    wanted = list(_said(dense, few))
    before = _error(_said(ticket, few), wanted)
    if _error(_said(_anew(ticket, few), few), wanted) >= before:
        return ticket, False
    anew = _anew(ticket, probe)
    return (anew, True) if _error(_said(anew, few), wanted) < before else (ticket, False)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def _anew(ticket: nn.Module, probe: Sequence[Any]) -> nn.Module:
    anew = copy.deepcopy(ticket)
    with torch.no_grad(), evaluation_mode(anew), _averaging(_norms(anew)):
        for batch in (each for each in probe if item_count(each) > 1):
            call_model(anew, batch)
    return anew


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average what passes, from nothing; momentum and step count come back afterwards."""
    before = [
        (norm, norm.momentum, norm.num_batches_tracked.clone())
        for norm in norms
        if norm.num_batches_tracked is not None
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum, tracked in before:
        norm.momentum = momentum
        norm.num_batches_tracked = tracked
