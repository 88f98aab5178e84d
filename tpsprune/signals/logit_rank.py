"""Logit rank: how many directions the model's answers use.

Shape letters: b items, c classes.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["LogitRank", "numerical_rank"]


def numerical_rank(rows_bc: Tensor, share: float) -> int:
    """Return how many singular values are larger than ``share`` of the largest; zero for zeros.

    Invariant to scale, to turning and to the order of items. Not centred, as in the source: a common
    offset of all answers is a direction. Cost: b·c².
    """
    sigma = torch.linalg.svdvals(rows_bc.to(torch.float64) if rows_bc.device.type != "mps" else rows_bc)
    return int((sigma > share * sigma[0]).sum()) if float(sigma[0]) > 0 else 0


@final
class LogitRank(AbstractMemoryless):
    """Reads ``logit_rank``: the numerical rank of the logits of all probe items.

    Softmax networks whose logits start small reach ranks far below the number of classes. The published
    threshold was not to be found; ``share`` is ``watch.rank_share``, and the rank depends on it.
    Cost: a forward pass over the probe.

    Source: "Unpacking softmax" 2025 (arXiv 2506.01562), section 2.1.
    """

    name = "logit_rank"

    def __init__(self, *, share: float) -> None:
        self.share = share

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read the rank of the answers to the probe."""
        with torch.no_grad(), evaluation_mode(view.model):
            said = [logits_of(call_model(view.model, batch)) for batch in view.probe]
        if not said or any(each.ndim < 2 for each in said):
            reason = "the model's answer is no table of logits"
            return memory, (view.without(self.name, "dimensions", Status.NOT_APPLICABLE, reason),)
        logits_bc = torch.cat([each.flatten(0, -2) for each in said])
        if not bool(logits_bc.isfinite().all()):
            reason = "a logit is not finite"
            return memory, (view.without(self.name, "dimensions", Status.NOT_FINITE, reason),)
        return memory, (view.reading(self.name, numerical_rank(logits_bc, self.share), "dimensions"),)
