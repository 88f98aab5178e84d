"""Numbers that sum up a spectrum: how many directions matter, and where it breaks off.

Shape letters: k eigenvalues or singular values; w rows of a window; p coordinates. Leading axes, where
a function speaks of ``...``, are independent spectra.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpsprune.numerics.forward import widened

COLUMNS_AT_A_TIME = 4096


def effective_rank(eigenvalues_k: Tensor) -> Tensor:
    """Return exp(−Σ p ln p) with p = λ / Σ λ, over the last axis: between 1 and k, and 0 for a zero spectrum.

    m equal eigenvalues give m. Negative ones (rounding) count as zero. Invariant to scale and order; it
    does not see which directions carry the spectrum.

    Source: Roy & Vetterli 2007, equation 3, on covariance eigenvalues instead of singular values.
    """
    share_k, is_zero = _shares(eigenvalues_k)
    entropy: Tensor = torch.special.entr(share_k).sum(-1)
    return entropy.exp().masked_fill(is_zero, 0.0)


def participation_ratio(eigenvalues_k: Tensor) -> Tensor:
    """Return (Σ λ)² / Σ λ², over the last axis: between 1 and k, and 0 for a zero spectrum.

    m equal eigenvalues give m; never above the effective rank. Negative eigenvalues count as zero.
    """
    share_k, is_zero = _shares(eigenvalues_k)
    return share_k.square().sum(-1).reciprocal().masked_fill(is_zero, 0.0)


def _shares(eigenvalues_k: Tensor) -> tuple[Tensor, Tensor]:
    positive_k = eigenvalues_k.clamp_min(0.0)
    total = positive_k.sum(-1, keepdim=True)
    return positive_k / total.masked_fill(total == 0, 1.0), (total == 0).squeeze(-1)


def corrected_participation_ratio(ratio: float, rows: int, *, at_most: float) -> float:
    """Return the participation ratio freed of the bias of estimating it from ``rows`` independent rows.

    1 / PR_rows ≈ 1 / PR + 1 / rows, so PR ≈ 1 / (1 / PR_rows − 1 / rows): within 2 % at 256 rows for a true
    ratio of 500 to 1,000. The correction explodes where PR_rows nears ``rows``; the result is limited to
    ``at_most``, the number of units. Rows that are not independent are corrected too little.
    """
    if ratio <= 0.0:
        return 0.0
    inverse = 1.0 / ratio - 1.0 / rows
    return min(at_most, 1.0 / inverse) if inverse > 0.0 else at_most


def row_spectrum(rows_wp: Tensor) -> Tensor:
    """Return the singular values of ``rows_wp``, largest first, by way of its w × w Gram matrix.

    Rows are neither centred nor scaled. Not finite rows give NaN. Values below 1e-8 of the largest are
    rounding. Cost: w²·p multiply-adds in double precision, a stretch of columns at a time.
    """
    gram_ww = widened(rows_wp.new_zeros(len(rows_wp), len(rows_wp)))
    for stretch in torch.split(rows_wp, COLUMNS_AT_A_TIME, dim=1):
        wide = widened(stretch)
        gram_ww += wide @ wide.T
    # Checked by hand: eigvalsh raises on what is not finite.
    if not gram_ww.isfinite().all():
        return torch.full_like(gram_ww[0], torch.nan)
    eigenvalues_w: Tensor = torch.linalg.eigvalsh(gram_ww)
    return eigenvalues_w.flip(0).clamp_min(0.0).sqrt()


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a spectrum breaks off: after its ``k``-th value, which is ``ratio`` times the next."""

    k: int
    ratio: float


def edge(singular_values_k: Tensor, max_k: int) -> Edge:
    """Return the largest σ_j / σ_{j+1} over j ≤ ``max_k``, and its j.

    Values below 1e-8 of σ_1 count as that much, so that an exactly low rank gives a large ratio, not an
    infinite one; a zero spectrum has no edge: ``Edge(0, 1.0)``. ``max_k`` of half the window keeps
    the ragged tail out. Invariant to scale.

    Source: Xu 2026 (arXiv 2603.28964), definition 3.1.
    """
    if not singular_values_k[0] > 0.0:
        return Edge(0, 1.0)
    floored_k = singular_values_k.clamp_min(1e-8 * float(singular_values_k[0]))
    ratios_k = floored_k[:-1] / floored_k[1:]
    best = int(ratios_k[:max_k].argmax())
    return Edge(best + 1, float(ratios_k[best]))


def edge_stability(singular_values_k: Tensor, earlier_k: Tensor, k: int) -> float:
    """Return max(0, 1 − Σⱼ (λⱼ − λ'ⱼ)² / gap²): how little a spectrum has moved, measured by its edge.

    λ = σ² are the eigenvalues of the Gram matrix now, λ' those at the reading before, both largest first;
    the gap is the distance of λ_k from the nearest other. 1 is unmoved, 0 moved by the gap or more. The sum
    is the least ‖G − Q G' Qᵀ‖²_F over all rotations Q (Hoffman and Wielandt 1953), so that directions which
    turn while lengths stay are not seen. Invariant to scale.

    Source: Xu 2026 (arXiv 2603.28964), its code: α_j, with C = 1.
    """
    now_k, before_k = singular_values_k.square(), earlier_k.square()
    others_k = torch.cat((now_k[: k - 1], now_k[k:]))
    gap = (others_k - now_k[k - 1]).abs().min()
    moved = (now_k - before_k).square().sum()
    return float((1.0 - moved / gap.square()).clamp_min(0.0)) if gap > 0.0 else 0.0


def gap_23(singular_values_k: Tensor) -> Tensor:
    """Return σ₂² − σ₃²: a gap of eigenvalues at a fixed place, unlike the ratio at the moving edge.

    It scales with the square of the rows. Source: Xu 2026 (arXiv 2602.16746), its code.
    """
    return singular_values_k[1].square() - singular_values_k[2].square()
