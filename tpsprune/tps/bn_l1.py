"""``bn-l1``: an L1 penalty on batch-norm scales. A baseline on the switch of TPS; no triads, no phases."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.records import TaskFacts
from tpsprune.tps.variant import Group, Variant, trainable_weights, working_precision

__all__ = ["BatchNormL1"]


@final
class BatchNormL1(Variant):
    """The penalty that published Early-Bird tickets were trained with: λ · Σ |γ| over all batch-norm scales.

    Not triadic phase synchronisation, but what it has to beat where a model is trained to be cut: scales
    of units that the task can spare go to zero. λ is the published coefficient on the plain sum, 1e-4
    there. A group is one batch norm, and E_g = G · Σ |γ| over its scales, G the number of groups, so that
    the mean over groups is the sum over the model; each scale is pulled to zero by λ · sign(γ), and not at
    all where it is zero. Published code adds the same to the gradients after the backward pass; in the
    loss, gradient clipping sees it too, and so does the optimiser's preconditioner.

    Does not see weights: a layer without batch norm is left alone, and what scales lose the next layer's
    weights can gain. With ``sqrt-n`` it is no longer the published penalty. Cost: one sum over the scales.
    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming" (arXiv
    1708.06519), equation 1; You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957).
    """

    name: ClassVar[str] = "bn-l1"
    needs: ClassVar[str] = "a batch norm with trainable scales"

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:  # noqa: ARG004 -- any task will do
        """Return what is not here, or ``None``."""
        return None if trainable_weights(model, (_BatchNorm,)) else "this model has none"

    def __init__(self, model: nn.Module) -> None:
        scales = trainable_weights(model, (_BatchNorm,))
        self.groups = tuple(Group(name, scale.numel()) for name, scale in scales.items())
        self._scales = tuple(scales.values())

    def energies(self, label_i: Tensor | None = None) -> Tensor:  # noqa: ARG002 -- scales have no labels
        """Return G · Σ |γ| of each batch norm."""
        sums = [working_precision(scale).abs().sum() for scale in self._scales]
        return torch.stack(sums) * len(sums)

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return the energy by group: as a mean over groups, the sum of all |γ|."""
        return {"tps_energy": self.energies()}
