"""Loss and quality on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective, Sums
from tpsprune.numerics.trees import Tree, at
from tpsprune.training.device import Execution

BATCH_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss of all items, and their quality: accuracy, or what ``Objective`` has in its place."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    inputs: Tree,
    labels: Tensor,
    *,
    prepare: Callable[[Tree], Tree],
    execution: Execution,
    objective: Objective = CROSS_ENTROPY,
) -> Score:
    """Score ``model`` on all items, in evaluation mode, without augmentation or label smoothing.

    Raises:
        RecipeError: a loss of the user's own raised, or has no quality defined.
    """
    total: Sums | None = None
    # Scores of every place of a sequence are held at once: the longer, the fewer sequences.
    at_a_time = max(1, BATCH_ITEMS // objective.places(labels))
    with torch.inference_mode(), evaluation_mode(model):
        for start in range(0, len(labels), at_a_time):
            chunk = slice(start, start + at_a_time)
            with execution.autocasting():
                output = call_model(model, execution.arrange(prepare(at(inputs, chunk))))
            sums = objective.sums(output, labels[chunk])
            total = sums if total is None else total + sums
    assert total is not None, "there is at least one item"
    loss, quality = objective.figures(total, labels)
    return Score(loss=loss, accuracy=quality)
