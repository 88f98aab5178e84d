"""Loss and accuracy on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.training.device import Execution

__all__ = ["Score", "evaluate"]

BATCH_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """Mean cross-entropy (nats) and the share of items whose highest score is their label."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor, torch.Generator | None], Tensor],
    execution: Execution,
) -> Score:
    """Score ``model`` on all items, in evaluation mode, without augmentation or label smoothing."""
    loss = torch.zeros((), dtype=torch.float64, device=labels.device)
    hits = torch.zeros((), dtype=torch.int64, device=labels.device)
    with torch.inference_mode(), evaluation_mode(model):
        for start in range(0, len(labels), BATCH_ITEMS):
            chunk = slice(start, start + BATCH_ITEMS)
            with execution.autocasting():
                batch = execution.arrange(prepare(inputs[chunk], None))
                logits_bc = logits_of(call_model(model, batch)).float()
            loss += functional.cross_entropy(logits_bc, labels[chunk], reduction="sum")
            hits += (logits_bc.argmax(dim=1) == labels[chunk]).sum()
    return Score(loss=loss.item() / len(labels), accuracy=hits.item() / len(labels))
