"""Commutator defect: whether it matters which of two minibatches is learned from first.

Shape letters: p numbers of all trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tpsprune.numerics.forward import evaluation_mode, logits_of
from tpsprune.numerics.objective import are_classes
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["CommutatorDefect", "commutator_defect"]

STEP_SIZE: Final = 1e-3
PAIRS: Final = 5

Slope = Callable[[Tensor], Tensor]


def commutator_defect(theta_p: Tensor, slope_a: Slope, slope_b: Slope, step_size: float = STEP_SIZE) -> float:
    """Return ‖θ_AB − θ_BA‖ / (‖η g_A‖ ‖η g_B‖): two steps of gradient descent in either order.

    θ_AB = θ − η g_A(θ) − η g_B(θ − η g_A(θ)), θ_BA the other way round. For small η it is
    ‖H_B g_A − H_A g_B‖ / (‖g_A‖ ‖g_B‖), the commutator of the two flows; zero for quadratic losses with
    one minimum and Hessians that commute. It is no share and grows with the curvature. A gradient of zero
    gives NaN.

    Args:
        theta_p: where to look.
        slope_a: the gradient of the loss on one batch, anywhere.
        slope_b: on the other.
        step_size: η.

    Cost: four gradients. In single precision some 10⁻⁷ / η of the gradients' own curvature is noise.

    Source: Xu 2026 (arXiv 2602.16746) and its code.
    """
    a_p, b_p = slope_a(theta_p), slope_b(theta_p)
    # Of the differences of gradients, not of parameters: those agree in all digits but the last.
    after_a_p = slope_b(theta_p - step_size * a_p) - b_p
    after_b_p = slope_a(theta_p - step_size * b_p) - a_p
    lengths = step_size * a_p.norm() * b_p.norm()
    return float((after_b_p - after_a_p).norm() / lengths)


@final
class CommutatorDefect(AbstractMemoryless):
    """Reads ``commutator_defect``: the median over five pairs of halves of the probe, drawn anew each time.

    Of cross-entropy, in evaluation mode: neither dropout nor the statistics of batch norms are touched. It
    rises long before a network generalises, and, on tasks it never learns, for nothing. Published work
    calls it risen at ten times the median of the first three readings and above 20.

    Cost: twenty gradients over half the probe: switch it on for a study, not by default.
    """

    name = "commutator_defect"

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read the defect."""
        if not view.labels or not all(isinstance(batch, Tensor) for batch in view.probe):
            reason = "the probe has no labels, or is no tensor"
            return memory, (view.without(self.name, "", Status.NOT_APPLICABLE, reason),)
        if not all(are_classes(label) for label in view.labels):
            reason = "the labels are no classes, one for each item"
            return memory, (view.without(self.name, "", Status.NOT_APPLICABLE, reason),)
        inputs, labels = torch.cat(view.probe), torch.cat(view.labels)
        parameters = {
            name: each.detach() for name, each in view.model.named_parameters() if each.requires_grad
        }
        if not parameters or len(inputs) < 2:
            reason = "one item makes no pair" if parameters else "no parameter is trained"
            return memory, (view.without(self.name, "", Status.NOT_APPLICABLE, reason),)
        theta_p = torch.cat([each.flatten() for each in parameters.values()])
        generator = torch.Generator().manual_seed(view.step)
        half = len(inputs) // 2
        defects = []
        with evaluation_mode(view.model):
            for _ in range(PAIRS):
                shuffled = torch.randperm(len(inputs), generator=generator).to(inputs.device)
                slope_a, slope_b = (
                    _slope(view.model, parameters, inputs[part], labels[part])
                    for part in (shuffled[:half], shuffled[half : 2 * half])
                )
                defects.append(commutator_defect(theta_p, slope_a, slope_b))
        return memory, (view.reading(self.name, median(defects), ""),)


def _slope(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any, labels: Tensor) -> Slope:
    """Return the gradient of the mean cross-entropy as a function of the flat parameters."""
    shapes = [(name, each.shape, each.numel()) for name, each in parameters.items()]

    def slope(theta_p: Tensor) -> Tensor:
        theta_p = theta_p.detach().requires_grad_()
        parts = torch.split(theta_p, [count for _, _, count in shapes])
        held = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        with torch.enable_grad():
            logits_bc = logits_of(functional_call(model, held, (inputs,)))
            loss = functional.cross_entropy(logits_bc, labels)
            return torch.autograd.grad(loss, theta_p)[0]

    return slope
