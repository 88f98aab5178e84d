"""The curvature of a loss: its Hessian, whole, of small models, and the index that it has.

Shape letters: p numbers of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from tpsprune.numerics.forward import evaluation_mode

MOST_PARAMETERS = 2000
NEGATIVE = 1e-3
"""An eigenvalue below minus this share of the largest in magnitude counts as negative, not as rounding."""


@dataclass(frozen=True, slots=True)
class Curvature:
    """Of a Hessian of ``parameters`` rows: the index (negative eigenvalues), the ends, the negative share.

    ``negative_share`` is Σ_{λ<0} |λ| / Σ |λ|: unlike the index it does not hang on where zero ends.
    """

    parameters: int
    index: int
    smallest: float
    largest: float
    negative_share: float


def loss_hessian(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Tensor:
    """Return the Hessian (p, p) of a loss in all parameters of a model in evaluation mode, end to end.

    Exact, by forward over reverse differentiation. Of ReLU nets it does not see the kinks: within a region
    they are pieces of lower degree.

    Args:
        model: not changed.
        loss_of: the loss as a function of a model that computes as this one with other parameters.

    Raises:
        ValueError: there are more than 2,000 parameters; p² numbers and p passes would be too many.

    Cost: p passes forward and backward, batched; p² numbers.
    """
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    count = sum(each.numel() for each in parameters.values())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters; the exact Hessian is of {MOST_PARAMETERS:,} at most")
    flat_p = torch.cat([each.flatten() for each in parameters.values()]).double()
    sizes = [each.numel() for each in parameters.values()]
    state = {
        name: each.double() if each.is_floating_point() else each for name, each in model.named_buffers()
    }

    def loss(theta_p: Tensor) -> Tensor:
        parts = zip(parameters.items(), torch.split(theta_p, sizes), strict=True)
        held = {name: part.view(old.shape) for (name, old), part in parts}
        return loss_of(lambda *inputs: functional_call(model, {**held, **state}, inputs))  # type: ignore[arg-type]

    with evaluation_mode(model):
        found_pp: Tensor = hessian(loss)(flat_p)
    return found_pp.detach()


def curvature_of(hessian_pp: Tensor) -> Curvature:
    """Return index, ends and negative share of a Hessian.

    The index hangs on ``NEGATIVE``: most eigenvalues of a net lie near zero. Invariant to turning and to
    positive scale. Cost: one eigenvalue problem of p × p.
    """
    lambda_p = torch.linalg.eigvalsh(hessian_pp)
    size = float(lambda_p.abs().max())
    negative = float(lambda_p.clamp_max(0.0).abs().sum())
    total = float(lambda_p.abs().sum())
    return Curvature(
        parameters=len(lambda_p),
        index=int((lambda_p < -NEGATIVE * size).sum()),
        smallest=float(lambda_p[0]),
        largest=float(lambda_p[-1]),
        negative_share=negative / total if total > 0 else 0.0,
    )
