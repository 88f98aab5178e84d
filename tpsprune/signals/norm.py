"""The length of all trainable parameters: the baseline that topology must beat."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["Norm", "parameter_norm"]


def parameter_norm(model: nn.Module) -> Tensor:
    """Return ‖θ‖₂ over trainable parameters, shared ones once; zero without any.

    It does not see directions: a model that only turns keeps its norm. Cost: one read of the parameters.
    """
    lengths = [
        torch.linalg.vector_norm(parameter.detach(), dtype=torch.float32)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    return torch.linalg.vector_norm(torch.stack(lengths)) if lengths else torch.zeros(())


@final
class Norm(AbstractMemoryless):
    """Reads ``norm`` (``parameter_norm``)."""

    name = "norm"

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read the norm."""
        return memory, (view.reading(self.name, float(parameter_norm(view.model)), ""),)
