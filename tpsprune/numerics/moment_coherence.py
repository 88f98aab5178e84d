"""How far a unit's product of pre-activations tells classes apart: a triad of input, input and label.

No formula of a triadic regulariser has been published; the definition here is our own instantiation.

Shape letters: ``i`` items, ``s`` positions of an item, ``m`` units, ``c`` classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["moment_coherence"]


def moment_coherence(gate_ism: Tensor, up_ism: Tensor | None, label_i: Tensor, degree: int = 2) -> Tensor:
    """Return R_m, the share of the variance of P_im that classes explain beyond chance, shape (m,).

    With h centred over items and positions, P_im = mean_s h_ism^degree, or mean_s g_ism u_ism of a gated
    unit's two factors (``degree`` is not read then); P̄_c its mean over the n_c items of class c, P̄ over all
    n, k the number of classes that occur:

        η² = Σ_c n_c (P̄_c − P̄)² / Σ_i (P_i − P̄)²,   R = (η² − f) / (1 − f),   f = (k − 1) / (n − 1).

    η² is the square of the largest correlation that P_im can have with any o_m(y_i), so that R_m is the
    triplet E[g u o(y)] of a unit at the o that suits it best, whatever the head says. At most 1; about 0
    where labels are random. Invariant under renaming classes, order of items, shift and scale of h. A
    unit that never varies, and all of them where k or n is too small to tell (k < 2, n ≤ k), gets 0 and
    no gradient. Does not see whether units agree, nor what a unit says of a class it shares with others.
    Differentiable once, in closed form. Cost: a handful of passes over the activations, no product of
    matrices.

    Source: our instantiation; η² is Fisher's correlation ratio (1925), less chance after Kelley 1935.
    """
    if up_ism is None and degree == 2:
        squared_m: Tensor = _OfSquares.apply(gate_ism, label_i)  # type: ignore[no-untyped-call]
        return squared_m
    coherence_m: Tensor = _OfProducts.apply(gate_ism, up_ism, label_i, degree)  # type: ignore[no-untyped-call]
    return coherence_m


class _OfSquares(torch.autograd.Function):
    """R_m of h²: four passes over the activations in all, and one copy of them kept.

    With a the slope of R by P_im over the number of positions and h centred, ∂R/∂h_ism = 2 (a_im h_ism −
    mean over items and positions of the same), where that mean needs the h̄_im over positions alone.
    """

    @staticmethod
    def forward(ctx: Any, gate_ism: Tensor, label_i: Tensor) -> Tensor:
        """Return R_m; keep the centred activations and what they are multiplied with."""
        mean_im = gate_ism.mean(1)
        mean_m = mean_im.mean(0)
        gate_ism = gate_ism - mean_m
        positions = gate_ism.shape[1]
        if positions > 1:
            square_im = torch.linalg.vector_norm(gate_ism, dim=1).square_().div_(positions)
        else:
            square_im = gate_ism[:, 0].square()
        coherence_m, slope_im = _explained(square_im, label_i)
        offset_m = (slope_im * (mean_im - mean_m)).mean(0)
        ctx.save_for_backward(gate_ism, slope_im.div_(positions), offset_m.div_(positions))
        return coherence_m

    @staticmethod
    def backward(ctx: Any, *outward_m: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivative times what comes from outside, none for labels."""
        gate_ism, slope_im, offset_m = ctx.saved_tensors
        twice_m = 2.0 * outward_m[0]
        return torch.addcmul(-twice_m * offset_m, gate_ism, (twice_m * slope_im)[:, None]), None


class _OfProducts(torch.autograd.Function):
    """R_m of h³, or of the two factors of gated units."""

    @staticmethod
    def forward(ctx: Any, gate_ism: Tensor, up_ism: Tensor | None, label_i: Tensor, degree: int) -> Tensor:
        """Return R_m; keep its derivative by each factor."""
        gate_ism = gate_ism - gate_ism.mean((0, 1))
        if up_ism is not None:
            up_ism = up_ism - up_ism.mean((0, 1))
        # What a factor is multiplied with; the product is passed over in place: fresh memory costs more.
        other_ism = up_ism if up_ism is not None else gate_ism ** (degree - 1)
        product_im = gate_ism * other_ism
        product_im = product_im.mean(1) if gate_ism.shape[1] > 1 else product_im[:, 0]
        coherence_m, slope_im = _explained(product_im, label_i)
        slope_ism = slope_im.div_(gate_ism.shape[1])[:, None]
        if up_ism is None:
            saved = [_centred(other_ism * slope_ism).mul_(degree)]
        else:
            saved = [_centred(up_ism * slope_ism), _centred(gate_ism * slope_ism)]
        ctx.save_for_backward(*saved)
        return coherence_m

    @staticmethod
    def backward(ctx: Any, *outward_m: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivatives times what comes from outside, none for labels and degree."""
        saved = [by_factor_ism * outward_m[0] for by_factor_ism in ctx.saved_tensors]
        return saved[0], saved[1] if len(saved) == 2 else None, None, None


def _explained(product_im: Tensor, label_i: Tensor) -> tuple[Tensor, Tensor]:
    """Return R_m and ∂R/∂P_im = 2 [(P̄_{c(i)} − P̄) − η² (P_i − P̄)] / ((1 − f) Σ_i (P_i − P̄)²)."""
    deviation_im = product_im - product_im.mean(0)
    items, units = deviation_im.shape
    count_c = torch.bincount(label_i)
    present = int((count_c > 0).sum())
    sum_cm = deviation_im.new_zeros(len(count_c), units).index_add_(0, label_i, deviation_im)
    mean_cm = sum_cm / count_c.clamp(min=1)[:, None]
    all_m = (deviation_im * deviation_im).sum(0)
    alive_m = all_m > torch.finfo(all_m.dtype).tiny ** 0.5
    if present < 2 or items <= present:
        alive_m = torch.zeros_like(alive_m)
    size_m = torch.where(alive_m, all_m, 1.0)
    explained_m = torch.where(alive_m, (mean_cm * sum_cm).sum(0) / size_m, 0.0)
    chance = (present - 1) / (items - 1) if items > present else 0.0
    slope_m = torch.where(alive_m, 2.0 / ((1.0 - chance) * size_m), 0.0)
    slope_im = mean_cm.mul_(slope_m).index_select(0, label_i)
    slope_im = slope_im.addcmul_(deviation_im, slope_m * explained_m, value=-1.0)
    return torch.where(alive_m, (explained_m - chance) / (1.0 - chance), 0.0), slope_im


def _centred(by_factor_ism: Tensor) -> Tensor:
    """Return the derivative by a factor before it was centred."""
    by_factor_ism -= by_factor_ism.mean((0, 1))
    return by_factor_ism
