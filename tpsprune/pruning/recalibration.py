"""Batch-norm statistics taken anew on the calibration data, where that brings a ticket's outputs nearer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.output_error import error_of, predict

TRIAL_ITEMS: Final = 32


def recalibrate_norms(ticket: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> tuple[nn.Module, bool]:
    """Return the ticket with batch-norm statistics of the calibration data where its error is lower so.

    Every batch norm that keeps running statistics takes the average over the batches, in one pass; other
    modules remain in evaluation mode. The error is against the dense model's outputs on 32 of the items;
    where statistics of these alone do not lower it, the other items are not used. It does not see what the
    calibration data do not hold.

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
    recalibrated = _recalibrated_copy(ticket, batches)
    better = error_of(predict(recalibrated, few), wanted) < before
    return (recalibrated, True) if better else (ticket, False)


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def _recalibrated_copy(ticket: nn.Module, batches: Sequence[Any]) -> nn.Module:
    other = copy.deepcopy(ticket)
    with torch.no_grad(), evaluation_mode(other), fixed_seed(), _averaging(running_norms(other)):
        for batch in (each for each in batches if item_count(each) > 1):
            call_model(other, batch)
    return other


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
