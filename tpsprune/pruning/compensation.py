"""Compensation: consumers estimate the outputs of pruned units from those kept, by least squares.

Shape letters: n signals of the dense model (units times features), k signals that are kept, p positions of a
signal, q everything else a weight runs over (outputs, kernel positions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from tpsprune.numerics.forward import widened
from tpsprune.pruning.groups import Consumer, element_index
from tpsprune.pruning.layers import Mixer, consumer_weights, set_consumer_weights
from tpsprune.pruning.observations import JointMoments, SplitMoments

RIDGES: Final = (1e-8, 1e-4, 1e-2, 1.0)
"""What is tried on the items held out, as shares of the mean eigenvalue of the covariance of x."""
SAFE_RIDGE: Final = 1e-2
"""The ridge where nothing can be held out."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a consumer reads of one group: ``kept`` of ``width`` units."""

    consumer: Consumer
    width: int
    kept: tuple[int, ...]

    @property
    def signals(self) -> tuple[int, ...]:
        """The signals of the dense model that are kept."""
        features = self.consumer.features
        return tuple(unit * features + each for unit in self.kept for each in range(features))

    def in_ticket(self, inputs: int, read: Sequence[Read], outputs_q: Tensor | None) -> Consumer:
        """Return the consumer in the ticket.

        Args:
            inputs: of the dense layer.
            read: all that the layer reads of pruned groups.
            outputs_q: the dense layer's outputs that are kept; none where all are.
        """
        kept_c = torch.ones(inputs, dtype=torch.bool)
        for each in read:
            removed_u = torch.ones(each.width, dtype=torch.bool)
            removed_u[list(each.kept)] = False
            kept_c[element_index(each.consumer, each.width)[removed_u].flatten()] = False
        own = element_index(self.consumer, self.width)[self.kept[0]]
        place_f = (kept_c.cumsum(0) - 1)[own]
        outputs = self.consumer.outputs
        if outputs is not None and outputs_q is not None:
            low, high = (int((outputs_q < bound).sum()) for bound in outputs)
            outputs = low, high
        block, repeat = self.consumer.block, self.consumer.repeat
        stride = int(place_f[block] - place_f[0]) if repeat > 1 else 0
        return replace(self.consumer, offset=int(place_f[0]), stride=stride, outputs=outputs)


@dataclass(frozen=True, slots=True, eq=False)
class Interpolation:
    """The map from the kept signals to all of them, ``y ≈ map_nk · x + intercept_n``.

    ``ridge`` is ``None`` where removal did best on the items held out.
    """

    map_nk: Tensor
    intercept_n: Tensor
    ridge: float | None


def fit_interpolation(
    moments: SplitMoments,
    kept: tuple[int, ...],
    gram_nn: Tensor,
    *,
    intercept: bool,
    ridges: Sequence[float] = RIDGES,
) -> Interpolation:
    """Return the map that estimates the dense model's signals best from those that are kept.

    It minimises E‖y − A x − b‖² + λ‖A − A₀‖², x the kept signals in the pruned model, y all signals in the
    dense model, A₀ the map that leaves a kept signal as it is and drops the rest, λ = ridge · tr cov(x) / k.
    Of ``ridges`` and of A₀ itself the one is taken that gives the consumer, of Gram matrix WᵀW, the least
    output error on the items held out, fitted on the others; then all items are fitted. Removal (A₀, 0)
    is a candidate: on these no mean square is worse than its. Without an intercept b is zero and raw second
    moments take the place of covariances.

    Args:
        moments: of the k kept signals with all n, of one group (g = 1).
        kept: the signals that are kept, among the n.
        gram_nn: of the weights by which the consumer reads the signals.
        intercept: whether the consumer can take one.
        ridges: from which one is chosen.

    Cost: for each ridge k³/3 + n·k² + n²·k.

    Source: ridge regression towards a prior; with the next layer as its reader it is known as layer
    reconstruction (He, Zhang and Sun 2017, "Channel pruning for accelerating very deep neural
    networks", equation 3).
    """
    parts = moments if intercept else moments.about_zero()
    index_k = torch.tensor(kept, device=gram_nn.device)
    removal_nk = torch.zeros_like(parts.whole.xy_gpq[0].T)
    removal_nk[index_k, torch.arange(len(kept), device=index_k.device)] = 1.0
    zero_n = torch.zeros_like(parts.whole.mean_y_gq[0])
    chosen = SAFE_RIDGE
    if parts.fit is not None and parts.held is not None:
        found = {each: _error(parts.held, gram_nn, *_solve(parts.fit, removal_nk, each)) for each in ridges}
        errors = {each: error if math.isfinite(error) else math.inf for each, error in found.items()}
        chosen = min(errors, key=lambda each: errors[each])
        # Written so that an error that is not finite does not win.
        if not errors[chosen] < _error(parts.held, gram_nn, removal_nk, zero_n):
            return Interpolation(removal_nk, zero_n, None)
    map_nk, intercept_n = _solve(parts.whole, removal_nk, chosen)
    if not bool(map_nk.isfinite().all()):
        return Interpolation(removal_nk, zero_n, None)
    return Interpolation(map_nk, intercept_n if intercept else zero_n, chosen)


def ridges_for(dtype: torch.dtype) -> tuple[float, ...]:
    """Return the ridges that are tried for a layer of this number type.

    None is less than eight times its rounding: a weight that is solved more exactly than it is applied
    follows rounding, by as much as the root of one over the ridge.
    """
    least = 8 * torch.finfo(dtype).eps
    return tuple(sorted({max(least, ridge) for ridge in RIDGES}))


def can_gain_bias(module: Mixer) -> bool:
    """Return whether a layer without a bias may gain one."""
    return module.bias is None and not (isinstance(module, _ConvNd) and module.transposed)


def takes_intercept(module: Mixer) -> bool:
    """Return whether a constant at a layer's input is a constant at its output.

    It is not for a transposed convolution, whose outputs see different parts of the kernel.
    """
    return module.bias is not None and not (isinstance(module, _ConvNd) and module.transposed)


def compensate(
    module: Mixer,
    dense: Mixer,
    read: Read,
    narrow: Consumer,
    found: Interpolation,
    outputs_q: Tensor | None = None,
    factor: float = 1.0,
) -> None:
    """Rewrite a consumer of a ticket in place so that it reads ``A x + b`` in place of all signals.

    The intercept enters the bias once per position of a signal and of the kernel: at the rim of a padded
    convolution, where the dense model pads with zeros, it is too much by the padded positions.

    Args:
        module: the layer of the ticket.
        dense: the dense model's.
        read: what the dense layer reads of the group.
        narrow: the same consumer in the ticket.
        found: A and b.
        outputs_q: the dense layer's outputs that the ticket's has; none where it has all.
        factor: by which the outputs of the ticket's layer are to be the dense one's (``surgery.scale_held``).
    """
    old_npq = factor * consumer_weights(dense, read.consumer, read.width).detach().to(found.map_nk.dtype)
    if outputs_q is not None:
        low, high = read.consumer.outputs or (0, math.inf)
        own_q = outputs_q[(outputs_q >= low) & (outputs_q < high)] - low
        old_npq = old_npq.index_select(2, own_q.to(old_npq.device))
    new_kpq = torch.einsum("nk,np...->kp...", found.map_nk, old_npq)
    with torch.no_grad():
        set_consumer_weights(module, narrow, len(read.kept), new_kpq)
        if module.bias is not None:
            constant_q = torch.einsum("n,npo...->o...", found.intercept_n, old_npq)
            low, high = narrow.outputs or (0, len(module.bias))
            module.bias[low:high] += constant_q.reshape(len(constant_q), -1).sum(1).to(module.bias.dtype)


def weights_gram(
    module: Mixer, consumer: Consumer, width: int, sensitivity_q: Tensor | None = None
) -> Tensor:
    """Return W D Wᵀ of the weights by which a consumer reads the signals, over positions and outputs.

    D holds what an error at each output costs (``sensitivity_q``); without it all count alike.
    """
    rows_npq = widened(consumer_weights(module, consumer, width).detach())
    if sensitivity_q is not None:
        low, high = consumer.outputs or (0, len(sensitivity_q))
        rest = [1] * (rows_npq.ndim - 3)
        rows_npq = rows_npq * sensitivity_q[low:high].to(rows_npq).sqrt().reshape(1, 1, -1, *rest)
    rows_nq = rows_npq.flatten(1)
    return rows_nq @ rows_nq.T


def _solve(part: JointMoments, removal_nk: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    xx_kk, yx_nk = part.xx_gpp[0], part.xy_gpq[0].T
    scale = xx_kk.diagonal().mean().clamp_min(torch.finfo(xx_kk.dtype).tiny)
    ridged_kk = xx_kk + ridge * scale * torch.eye(len(xx_kk), dtype=xx_kk.dtype, device=xx_kk.device)
    map_nk = removal_nk + torch.linalg.solve(ridged_kk, (yx_nk - removal_nk @ xx_kk).T).T
    return map_nk, part.mean_y_gq[0] - map_nk @ part.mean_x_gp[0]


def _error(part: JointMoments, gram_nn: Tensor, map_nk: Tensor, intercept_n: Tensor) -> float:
    """Return tr(WᵀW E[(y − A x − b)(…)ᵀ]) but for what no map changes."""
    read_nk = gram_nn @ map_nk
    offset_n = part.mean_y_gq[0] - map_nk @ part.mean_x_gp[0] - intercept_n
    spread = (read_nk * (map_nk @ part.xx_gpp[0] - 2 * part.xy_gpq[0].T)).sum()
    return float(spread + offset_n @ gram_nn @ offset_n)
