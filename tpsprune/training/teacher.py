"""A teacher: a trained model whose outputs another one learns, beside the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.distillation import distance
from tpsprune.numerics.forward import call_model
from tpsprune.numerics.objective import Objective
from tpsprune.numerics.trees import Tree
from tpsprune.training.device import Execution


@final
@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Adds to a loss the distance from a model's outputs: (1 − a) · loss + a · ``distance`` at τ.

    ``model`` is in evaluation mode and stays as it is; ``share`` is a, ``temperature`` τ. It sees each batch
    as the student does, augmented. Cost: a pass forward of the model a step, and its memory.

    Source: Hinton et al. 2015 (arXiv:1503.02531).
    """

    model: nn.Module
    share: float
    temperature: float

    def blend(
        self,
        loss: Tensor,
        output: Any,
        batch: Tree,
        labels: Tensor,
        *,
        objective: Objective,
        execution: Execution,
    ) -> Tensor:
        """Return the loss of a batch with the teacher's part in it; ``output`` is the student's."""
        with torch.no_grad(), execution.autocasting():
            wanted = call_model(self.model, batch)
        learned = distance(objective, output, wanted, labels, self.temperature)
        return (1.0 - self.share) * loss + self.share * learned
