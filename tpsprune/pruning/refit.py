"""The refit: all weights of a layer solved anew, so that it puts out what the dense model's layer did.

The fold gives a consumer one coefficient for each pair of units, whatever the kernel position; the refit
solves for the whole kernel, and it mends layers that lost no input, whose inputs the cut has moved.

Shape letters: c input elements, g groups of the layer, p features of a group (inputs times kernel
positions), q outputs of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import widened
from tpsprune.pruning.compensation import ridges_for
from tpsprune.pruning.layers import Mixer, is_mixer, is_transposed_linear
from tpsprune.pruning.observations import Joint, Joints
from tpsprune.pruning.rows import feature_count, indexed

__all__ = ["Refit", "refit", "refit_fault"]

FORWARDS: Final = {each.forward for each in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
ALIKE: Final = 0.02
"""Of ridges whose errors differ by no more than this share the largest is taken: weights stay small."""
EXACT: Final = 1e-12
"""An error, as a share of the variance, that is none."""
SAFE: Final = 1e-2
"""The ridge where nothing can be held out."""
MOST_FEATURES: Final = 4608
"""512 channels seen through a 3×3 kernel: 170 MB a matrix, and a dozen of them for a moment."""


@dataclass(frozen=True, slots=True)
class Refit:
    """What a refit did: mean square errors over the variance of y before and after, and the ridge taken.

    The shares are of all items; ``ridge`` is ``None`` where the layer as it was did best on those held out.
    """

    before_share: float
    after_share: float
    ridge: float | None


def refit_fault(module: nn.Module, alive_c: Tensor) -> str:
    """Return why a layer cannot be refitted, or an empty string.

    Args:
        module: any layer.
        alive_c: whether each element of its input axis is still there.
    """
    if not is_mixer(module):
        return f"{type(module).__name__} does not mix units"
    if isinstance(module, _ConvNd) and module.transposed:
        return "outputs of a transposed convolution see different parts of its kernel"
    if not is_transposed_linear(module) and type(module).forward not in FORWARDS:
        return f"{type(module).__name__} may compute something of its own"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrised"
    features = feature_count(module, alive_c)
    if features > MOST_FEATURES:
        return f"{features} features are more than {MOST_FEATURES}: the moments would take too much memory"
    return ""


def refit(module: Mixer, moments: Joints, alive_c: Tensor) -> Refit:
    """Solve a layer's weights and bias anew, in place; inputs that are gone keep weights of zero.

    W minimises E‖y − W x − b‖² + λ‖W − W₀‖², W₀ the weights as they are (folded or not), λ = ridge · the
    mean variance of a feature. Of the ridges (``fold.ridges_for``) and of W₀ itself the one is taken that
    does best on the items held out, fitted on the others, of such as do alike the largest; then all items
    are fitted. On these no layer does
    worse than it did. A layer without a bias is fitted through zero.

    Source: He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural networks",
    equation 3; Luo, Wu and Lin 2017, "ThiNet", section 3.3: there for the pruned layer alone.

    Cost: five times g·p³ / 3.
    """
    turned = is_transposed_linear(module)
    weight = module.weight.detach().T if turned else module.weight.detach()
    groups = module.groups if isinstance(module, _ConvNd) else 1
    kept = alive_c.nonzero()[:, 0] if indexed(module) else torch.arange(weight.shape[1], device=weight.device)
    old_gqp = widened(weight.reshape(groups, -1, *weight.shape[1:])[:, :, kept].flatten(2))
    parts = moments.raw() if module.bias is None else moments
    whole, fit, held = parts.whole, parts.fit, parts.held
    bias_gq = None if module.bias is None else widened(module.bias.detach()).reshape(groups, -1)
    before = _error(whole, old_gqp, bias_gq)
    ridge = SAFE
    if fit is not None and held is not None:
        errors = {each: _error(held, *_solved(fit, old_gqp, each)) for each in ridges_for(weight.dtype)}
        finite = {each: error for each, error in errors.items() if math.isfinite(error)}
        least = min(finite.values(), default=math.inf)
        if not least < _error(held, old_gqp, bias_gq):
            return Refit(before, before, None)
        ridge = max(each for each, error in finite.items() if error <= (1 + ALIKE) * least + EXACT)
    new_gqp, intercept_gq = _solved(whole, old_gqp, ridge)
    if not bool(new_gqp.isfinite().all()):
        return Refit(before, before, None)
    with torch.no_grad():
        fresh = torch.zeros_like(weight).reshape(groups, -1, *weight.shape[1:])
        fresh[:, :, kept] = new_gqp.reshape(*new_gqp.shape[:2], len(kept), *weight.shape[2:]).to(weight.dtype)
        fresh = fresh.reshape(weight.shape)
        module.weight.copy_(fresh.T if turned else fresh)
        if module.bias is not None:
            module.bias.copy_(intercept_gq.flatten().to(module.bias.dtype))
    return Refit(before, _error(whole, new_gqp, intercept_gq), ridge)


def _solved(part: Joint, old_gqp: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    variances_gp = part.xx_gpp.diagonal(dim1=1, dim2=2)
    scale_g11 = variances_gp.mean(1).clamp_min(torch.finfo(variances_gp.dtype).tiny)[:, None, None]
    ridged_gpp = part.xx_gpp.clone()
    ridged_gpp.diagonal(dim1=1, dim2=2).add_(ridge * scale_g11[:, :, 0])
    wrong_gpq = part.xy_gpq - part.xx_gpp @ old_gqp.mT
    factor_gpp, failed_g = torch.linalg.cholesky_ex(ridged_gpp)
    # What rounding leaves of a singular matrix is no answer: nothing that is not finite wins.
    factor_gpp[failed_g > 0] = torch.nan
    change_gpq = torch.cholesky_solve(wrong_gpq, factor_gpp)
    new_gqp = old_gqp + change_gpq.mT
    return new_gqp, part.mean_y_gq - (new_gqp @ part.mean_x_gp[:, :, None])[:, :, 0]


def _error(part: Joint, weight_gqp: Tensor, bias_gq: Tensor | None) -> float:
    fitted_gqp = weight_gqp @ part.xx_gpp
    error_gq = part.yy_gq - 2 * (part.xy_gpq.mT * weight_gqp).sum(2) + (fitted_gqp * weight_gqp).sum(2)
    offset_gq = part.mean_y_gq - (weight_gqp @ part.mean_x_gp[:, :, None])[:, :, 0]
    offset_gq = offset_gq if bias_gq is None else offset_gq - bias_gq
    total = part.yy_gq.sum().clamp_min(torch.finfo(part.yy_gq.dtype).tiny)
    return float((error_gq + offset_gq.square()).sum() / total)
