"""The fold: what the removed units said is said by those that stay, through their consumers' weights.

Shape letters: n units of the dense model, k units that stay, p block elements, q everything else a
weight runs over (outputs, kernel positions).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from tpsprune.pruning.groups import Consumer
from tpsprune.pruning.layers import Mixer, input_axis, units_first
from tpsprune.pruning.statistics import PairMoments

__all__ = ["RIDGE", "can_gain_bias", "fold_in", "interpolation", "takes_intercept"]

RIDGE = 1e-6
"""Ridge as a share of the mean variance of the units that stay, with rows in plenty."""
SCARCITY = 1e-2
"""How fast the ridge grows with the square of units per row."""


def interpolation(
    moments: PairMoments, kept: tuple[int, ...], *, intercept: bool, ridge: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the map ``A_nk`` and intercept ``b_n`` that say best what the dense units said.

    They minimise E‖y − A x_S − b‖² + λ‖A − A₀‖², x_S the units that stay as the cut model feeds them, y
    all units as the dense model did, A₀ the map that leaves a kept unit as it is and forgets the rest,
    λ = ridge · tr cov(x_S) / k; ``None`` takes ridge = 10⁻⁶ + 10⁻² (k / rows)². The plain cut (A₀, 0) is
    in the race: no mean square is worse than its. Without an intercept b is zero and raw second moments
    take the place of covariances.

    Cost: k³ + n·k².

    Source: ridge regression towards a prior; the fold of it into the next layer is known as layer
    reconstruction (He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural
    networks", equation 3).
    """
    index_k = torch.tensor(kept, device=moments.xx_nn.device)
    mean_k = moments.mean_x_n[index_k]
    xx_kk = moments.xx_nn[index_k][:, index_k]
    yx_nk = moments.xy_nn[index_k].T
    if not intercept:
        xx_kk = xx_kk + torch.outer(mean_k, mean_k)
        yx_nk = yx_nk + torch.outer(moments.mean_y_n, mean_k)
    prior_nk = torch.zeros_like(yx_nk)
    prior_nk[index_k, torch.arange(len(kept), device=index_k.device)] = 1.0
    ridge = RIDGE + SCARCITY * (len(kept) / moments.rows) ** 2 if ridge is None else ridge
    scale = xx_kk.diagonal().mean().clamp_min(torch.finfo(xx_kk.dtype).tiny)
    ridged_kk = xx_kk + ridge * scale * torch.eye(len(kept), dtype=xx_kk.dtype, device=xx_kk.device)
    change_nk = torch.linalg.solve(ridged_kk, (yx_nk - prior_nk @ xx_kk).T).T
    map_nk = prior_nk + change_nk
    intercept_n = moments.mean_y_n - map_nk @ mean_k if intercept else torch.zeros_like(moments.mean_y_n)
    return map_nk, intercept_n


def can_gain_bias(module: Mixer) -> bool:
    """Return whether a layer that has no bias may be given one."""
    return module.bias is None and not (isinstance(module, _ConvNd) and module.transposed)


def takes_intercept(module: Mixer) -> bool:
    """Return whether a constant at a layer's input is a constant at its output.

    It is not for a transposed convolution, whose outputs see different parts of the kernel.
    """
    return module.bias is not None and not (isinstance(module, _ConvNd) and module.transposed)


def fold_in(
    module: Mixer,
    dense: Mixer,
    consumer: Consumer,
    kept: tuple[int, ...],
    map_nk: Tensor,
    intercept_n: Tensor,
) -> None:
    """Rewrite one consumer in place so that it hears ``A x_S + b`` where it heard all units.

    The weight keeps its shape, with zeros for units that go; the dense layer's weight is where the new
    one is computed from. The intercept enters the bias once per block element and kernel position: at
    the rim of a padded convolution, where the dense model pads with zeros, it is too much by what the
    padding does not say.
    """
    width = len(map_nk)
    axis = input_axis(module)
    old_npq = units_first(dense.weight.detach(), axis, consumer.offset, width, consumer.block).to(
        map_nk.dtype
    )
    with torch.no_grad():
        new_npq = units_first(module.weight, axis, consumer.offset, width, consumer.block)
        new_npq.zero_()
        new_npq[list(kept)] = torch.einsum("nk,np...->kp...", map_nk, old_npq).to(new_npq.dtype)
        if module.bias is not None:
            heard = torch.einsum("n,npo...->o...", intercept_n, old_npq)
            module.bias += heard.reshape(len(heard), -1).sum(1).to(module.bias.dtype)
