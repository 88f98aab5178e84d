"""Batch-norm statistics taken anew, kept only where that helps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.pruning.trial import flat_tensors

__all__ = ["output_error", "recalibrated"]


def output_error(model: nn.Module, dense: nn.Module, probe: Sequence[Any]) -> float:
    """Return the mean square difference of two models' outputs, over the variance of the second's."""
    error = spread = 0.0
    with torch.no_grad(), evaluation_mode(model), evaluation_mode(dense):
        for batch in probe:
            found = flat_tensors(call_model(model, batch))
            for a, b in zip(found, flat_tensors(call_model(dense, batch)), strict=True):
                error += float((a - b).float().square().sum())
                spread += float((b - b.mean(0)).float().square().sum())
    return error / max(spread, 1e-30)


def recalibrated(ticket: nn.Module, dense: nn.Module, probe: Sequence[Any]) -> tuple[nn.Module, bool]:
    """Return the ticket with batch-norm statistics of the probe data where that lowers its output error.

    Every batch norm that keeps running statistics takes the plain average over the probe batches, in
    one pass; other modules stay in evaluation mode. The error is against the dense model's outputs on
    the same data, so it does not see what the probe does not hold.

    Returns:
        The ticket or its recalibrated copy, and whether it is the copy.
    """
    anew = copy.deepcopy(ticket)
    norms = [
        module for module in anew.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return ticket, False
    with torch.no_grad(), evaluation_mode(anew), _averaging(norms):
        for batch in probe:
            call_model(anew, batch)
    if output_error(anew, dense, probe) < output_error(ticket, dense, probe):
        return anew, True
    return ticket, False


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
