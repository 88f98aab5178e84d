"""Batch-norm statistics taken anew on the calibration data, where that brings a ticket's outputs nearer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.output_error import error_of, predict

TRIAL_ITEMS: Final = 32


def recalibrate_norms(
    ticket: nn.Module, dense: nn.Module, batches: Sequence[Any], peers: AbstractPeers = ALONE
) -> tuple[nn.Module, bool]:
    """Return the ticket with batch-norm statistics of the calibration data where its error is lower so.

    Every batch norm that keeps running statistics takes the average over the batches, in one pass; other
    modules remain in evaluation mode. The error is against the dense model's outputs on 32 of the items;
    where statistics of these alone do not lower it, the other items are not used. It does not see what the
    calibration data do not hold. Each of the ``peers`` passes its shards of the batches.

    Returns:
        The ticket or its recalibrated copy, and whether it is the copy.
    """
    few = [part for part in sample_items(batches, TRIAL_ITEMS, TRIAL_ITEMS) if item_count(part) > 1]
    if not running_norms(ticket) or not few:
        return ticket, False
    wanted = list(predict(dense, few))
    before = error_of(predict(ticket, few), wanted)
    if error_of(predict(_recalibrated_copy(ticket, few), few), wanted) >= before:
        return ticket, False
    recalibrated = _recalibrated_copy(ticket, batches, peers)
    better = error_of(predict(recalibrated, few), wanted) < before
    return (recalibrated, True) if better else (ticket, False)


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def _recalibrated_copy(ticket: nn.Module, batches: Sequence[Any], peers: AbstractPeers = ALONE) -> nn.Module:
    other = copy.deepcopy(ticket)
    norms = running_norms(other)
    with torch.no_grad(), evaluation_mode(other), fixed_seed():
        if peers.shards == 1:
            _average_over(other, norms, batches)
            return other
        totals = [torch.zeros_like(each) for norm in norms for each in _running(norm)]
        count = torch.zeros(())
        for shard in peers.own_shards:
            own = _average_over(other, norms, batches[shard :: peers.shards])
            count += own
            for total, found in zip(totals, (each for norm in norms for each in _running(norm)), strict=True):
                total.add_(found, alpha=own)
        peers.sum([count, *totals])
        for total, running in zip(totals, (each for norm in norms for each in _running(norm)), strict=True):
            running.copy_(total / count)
    return other


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _average_over(model: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Any]) -> int:
    """Have batch norms take the average over batches of two items and more; return how many there were."""
    counted = [each for each in batches if item_count(each) > 1]
    with _averaging(norms):
        for batch in counted:
            call_model(model, batch)
    return len(counted)


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average what passes, from nothing; momentum and step count are restored afterwards."""
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
