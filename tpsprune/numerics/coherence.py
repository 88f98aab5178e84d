"""Coherence of triads: phases, the weight triplet of a unit, and its product of pre-activations with labels.

No formula of a triadic regulariser has been published; every definition here is our own instantiation.

Shape letters: ``...`` any leading axes, ``n`` oscillators of a group, ``a`` and ``b`` first and second
token, ``c`` class, ``m`` unit, ``i`` pair of tokens or item, ``k`` frequency (1 and up), ``s`` sign pattern
or position of an item, ``j`` pair of a slice.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

_SLICE_ON_CPU: Final = 2**17
_SLICE_ELSEWHERE: Final = 2**25
"""Elements of one slice of pairs × units: what a core's cache holds, and what keeps a device busy."""


def order_parameters(phases_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return the complex order parameters z₁ = mean e^{iθ} and z₂ = mean e^{2iθ} over the last axis.

    |z₁| is 1 where all phases agree, |z₂| also where they agree up to half a turn. A common shift φ turns z₁
    by φ and z₂ by 2φ and leaves the moduli alone. Even phases give E|z₁| ≈ 0.886 n^(−1/2), not zero.
    Neither sees order of three and more clusters. Differentiable; one sine and one cosine per phase.

    Source: Kuramoto 1975; the second moment after Skardal and Arenas 2020 (arXiv 1909.08057).
    """
    cosine_n, sine_n = phases_n.cos(), phases_n.sin()
    first = torch.complex(cosine_n.mean(-1), sine_n.mean(-1))
    second = torch.complex((cosine_n.square() - sine_n.square()).mean(-1), (2.0 * cosine_n * sine_n).mean(-1))
    return first, second


def triadic_energy(phases_n: Tensor) -> Tensor:
    """Return E = mean_{ijk} [1 − cos(θ_i + θ_j − 2θ_k)] = 1 − Re(z₁² · conj z₂) over the last axis.

    All n³ ordered triads, those with equal indices included, in O(n) and without sampling. In [0, 2): 0 where
    all phases agree, near 1 where they are spread evenly. Invariant under a common shift, a common
    reflection and any order of the oscillators; does not see which oscillators form a triad.
    Differentiable.

    Source: our instantiation; the triad is the coupling of Skardal and Arenas 2020.
    """
    first, second = order_parameters(phases_n)
    return 1.0 - (first.square() * second.conj()).real


def triadic_force(phases_n: Tensor) -> Tensor:
    """Return the force on each oscillator, F_i = −n ∂E/∂θ_i, with the shape of ``phases_n``.

    In closed form F_i = 2 Im(z₁² e^{−2iθ_i}) − 2 Im(z₁ · conj z₂ · e^{iθ_i}): of order one whatever n is,
    zero in sum (the energy does not change under a common shift), at most 4 in size. Vanishes where all
    phases agree and nearly so where they are spread evenly: a purely triadic force does not start order by
    itself. Not differentiable twice by intent: meant for ``torch.no_grad``. One sine and one cosine per
    phase.

    Source: our instantiation; derivative of ``triadic_energy``.
    """
    cosine_n, sine_n = phases_n.cos(), phases_n.sin()
    double_cosine_n = cosine_n.square() - sine_n.square()
    double_sine_n = 2.0 * cosine_n * sine_n
    first = torch.complex(cosine_n.mean(-1, keepdim=True), sine_n.mean(-1, keepdim=True))
    second = torch.complex(double_cosine_n.mean(-1, keepdim=True), double_sine_n.mean(-1, keepdim=True))
    pull, push = first.square(), first * second.conj()
    return 2.0 * (
        pull.imag * double_cosine_n - pull.real * double_sine_n - push.imag * cosine_n - push.real * sine_n
    )


def unit_coherence(
    u_am: Tensor, v_bm: Tensor, o_mc: Tensor, first_i: Tensor, second_i: Tensor, label_i: Tensor
) -> Tensor:
    """Return T_m / (‖u_m‖ ‖v_m‖ ‖o_m‖) with T_m = Σ_i u_m(a_i) v_m(b_i) o_m(y_i), each centred over its axis.

    The triplet of a unit read through the data: ``first_i``, ``second_i`` and ``label_i`` are the token ids
    and the class of each training pair. Before any scale: divide by ``character_scale`` for the coherence
    R_m. Invariant under renaming tokens and classes, under positive scaling of u, v or o and under adding a
    constant to any of them; does not see whether different units agree. A unit with an all-zero factor gets 0
    and no gradient. Differentiable in ``u_am``, ``v_bm`` and ``o_mc``.

    Cost: three row gathers, three products of pairs × units and three ``index_add``, value and gradients
    together; memory of a slice of the pairs only, since the gradients are in closed form.

    Source: our instantiation; a trilinear form in the task's structure tensor.
    """
    u_am = u_am - u_am.mean(0)
    v_bm = v_bm - v_bm.mean(0)
    o_mc = o_mc - o_mc.mean(1, keepdim=True)
    triplet_m: Tensor = _TripletSum.apply(  # type: ignore[no-untyped-call]
        u_am, v_bm, o_mc.T.contiguous(), first_i, second_i, label_i
    )
    size_m = (
        torch.linalg.vector_norm(u_am, dim=0)
        * torch.linalg.vector_norm(v_bm, dim=0)
        * torch.linalg.vector_norm(o_mc, dim=1)
    )
    return _ratio(triplet_m, size_m)


def character_scale(pairs: int, vocabulary: int, classes: int) -> float:
    """Return s = pairs / (vocabulary · √(2 · classes)): what ``unit_coherence`` is for a perfect character.

    With u = cos(2πka/p + φ_a), v = cos(2πkb/p + φ_b), o = cos(2πkc/p + φ_a + φ_b) on the whole table of a +
    b mod p the summands average 1/4 and the squared norms are p/2, so that T = p²/4 = (p/2)^{3/2} · √(p/2)
    and s = √(p/2). On part of the table both T and s shrink to that share, T on average only: R may then
    come out a little above 1. Where classes are a quotient of the tokens (a + b mod ``classes``, which
    divides ``vocabulary``) s is exact too.

    >>> character_scale(59 * 59, 59, 59) == (59 / 2) ** 0.5
    True

    Source: derived here.
    """
    return float(pairs / (vocabulary * (2.0 * classes) ** 0.5))


def character_agreement(first_i: Tensor, second_i: Tensor, label_i: Tensor, modulus: int) -> float:
    """Return max over frequencies k ≥ 1 and sign patterns of |mean_i e^{2πik(a_i ± b_i ± y_i)/modulus}|.

    How far the labels themselves follow what ``fourier_coherence`` locks to, without any model: 1 for a + b,
    a − b and the like in cyclic order, up to constants; about √(ln(2 · modulus) / pairs) by chance. In
    [0, 1]. Sees only patterns in which all three turn at one frequency. Cost: four histograms and their
    transforms, and one wait for the device.

    Source: our instantiation; the empirical characteristic function on the cyclic group.
    """
    agreements = [
        torch.fft.rfft(torch.bincount(residue_i % modulus, minlength=modulus).float())[1:].abs().max()
        for residue_i in (
            first_i + second_i - label_i,
            first_i + second_i + label_i,
            first_i - second_i - label_i,
            first_i - second_i + label_i,
        )
    ]
    return float(torch.stack(agreements).max() / len(label_i))


def fourier_coherence(u_am: Tensor, v_bm: Tensor, o_mc: Tensor) -> Tensor:
    """Return R_m = Re Σ_k U V conj(O) / Σ_k |U V O|, with the best of the four sign patterns for each unit.

    U, V, O are the discrete Fourier transforms of u, v and o at frequencies 1 and up (so constants do not
    count); the patterns are none of the three conjugated, or one of them. In [−1, 1], and 1 where at every
    frequency the three phases lock, φ_a + φ_b = ψ or one of its sign variants. The choice itself carries no
    gradient. Invariant under positive scaling, under added constants and under reversing all three axes; sees
    order that is not there where tokens are not in cyclic order. All three axes must have one length p. A
    unit with an all-zero factor gets 0 and no gradient. Differentiable; three transforms of p × units.

    Source: our instantiation; the lock is that of arXiv 2602.16849 (modular addition), with an operand each.
    """
    u_km = torch.fft.rfft(u_am, dim=0)[1:]
    v_km = torch.fft.rfft(v_bm, dim=0)[1:]
    o_km = torch.fft.rfft(o_mc, dim=1).T[1:]
    same_km, opposite_km = u_km * v_km, u_km.conj() * v_km
    patterns_sm = torch.stack(
        [
            (same_km * o_km.conj()).real.sum(0),
            (same_km * o_km).real.sum(0),
            (opposite_km * o_km.conj()).real.sum(0),
            (opposite_km * o_km).real.sum(0),
        ]
    )
    return _ratio(patterns_sm.max(0).values, (same_km * o_km).abs().sum(0))


class _TripletSum(torch.autograd.Function):
    """T_m = Σ_i u_m(a_i) v_m(b_i) o_m(y_i), with ∂T/∂u_m(a) = Σ_{i: a_i = a} v_m(b_i) o_m(y_i), and so on.

    All three gradients come out of the forward pass, slice by slice: what does not fit the cache costs
    three times as much, and letting autograd keep the products of all pairs × units costs their memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u_am: Tensor,
        v_bm: Tensor,
        o_cm: Tensor,
        first_i: Tensor,
        second_i: Tensor,
        label_i: Tensor,
    ) -> Tensor:
        """Return T_m; keep its three partial derivatives."""
        by_first_am, by_second_bm, by_label_cm = (torch.zeros_like(x) for x in (u_am, v_bm, o_cm))
        elements = _SLICE_ON_CPU if u_am.device.type == "cpu" else _SLICE_ELSEWHERE
        pairs = max(1, elements // max(1, u_am.shape[1]))
        slices = (torch.split(column_i, pairs) for column_i in (first_i, second_i, label_i))
        for first_j, second_j, label_j in zip(*slices, strict=True):
            u_jm, v_jm = u_am.index_select(0, first_j), v_bm.index_select(0, second_j)
            o_jm = o_cm.index_select(0, label_j)
            by_label_cm.index_add_(0, label_j, u_jm * v_jm)
            by_first_am.index_add_(0, first_j, v_jm.mul_(o_jm))
            by_second_bm.index_add_(0, second_j, u_jm.mul_(o_jm))
        ctx.save_for_backward(by_first_am, by_second_bm, by_label_cm)
        return (by_label_cm * o_cm).sum(0)

    @staticmethod
    def backward(ctx: Any, *outward_m: Tensor) -> tuple[Tensor | None, ...]:
        """Return the partial derivatives times what comes from outside, none for the ids."""
        return (*(partial_xm * outward_m[0] for partial_xm in ctx.saved_tensors), None, None, None)


def _ratio(numerator_m: Tensor, size_m: Tensor) -> Tensor:
    """Return the quotient, or 0 without gradient where ``size_m`` is nothing."""
    alive_m = size_m > torch.finfo(size_m.dtype).tiny ** 0.5
    return torch.where(alive_m, numerator_m, 0.0) / torch.where(alive_m, size_m, 1.0)


def moment_coherence(gate_ism: Tensor, up_ism: Tensor | None, label_i: Tensor, degree: int = 2) -> Tensor:
    """Return R_m, the share of the variance of P_im that classes explain beyond chance, shape (m,).

    With h centred over items and positions, P_im = mean_s h_ism^degree, or mean_s g_ism u_ism of a gated
    unit's two factors (``degree`` is not read then); P̄_c its mean over the n_c items of class c, P̄ over all
    n, k the number of classes that occur:

        η² = Σ_c n_c (P̄_c − P̄)² / Σ_i (P_i − P̄)²,   R = (η² − f) / (1 − f),   f = (k − 1) / (n − 1).

    η² is the square of the largest correlation that P_im can have with any o_m(y_i), so that R_m is the
    triplet E[g u o(y)] of a unit at the o that suits it best, whatever the head computes. At most 1; about 0
    where labels are random. Invariant under renaming classes, order of items, shift and scale of h. A unit
    that never varies, and all of them where k or n is too small (k < 2, n ≤ k), gets 0 and no gradient. Does
    not see whether units agree, nor what a unit shows of a class that it shares with others. Differentiable
    once, in closed form. Cost: a handful of passes over the activations, no product of matrices.

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
