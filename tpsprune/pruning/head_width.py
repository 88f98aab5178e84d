"""The width of attention heads: queries and keys turned so that their last dimensions can go.

A head's scores are x Aᵀ B yᵀ, with A = [W_q b_q], B = [W_k b_k], and x, y the inputs of q and k with a one
appended: A and B themselves are known only up to a basis of the head's dimensions. In the basis of the
singular vectors of AᵀB the first r dimensions give the best scores that r dimensions can give.

The order of use, on a copy of the dense model: ``rotated`` for each group of kind "head-width" (the model
says what it said before), ``residual_shares`` and ``rank_of`` for the choice of a width r,
``cutting.silence`` of the dimensions from r on, the cut ``GroupCut.of(group, range(r))``, and on the ticket
``hold_scale``. Nothing of the basis is in the plan: a replay takes the first r dimensions of other weights as
they are, and where a module's scale follows the width, at the scale it has then.

Shape letters: e inputs (q and k may have different ones), h query heads, g key heads, s = h / g query heads
that share a key head, d dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.spectra import effective_rank
from tpsprune.pruning.groups import Group, Scores
from tpsprune.pruning.layers import tensor_axes, tensor_named

__all__ = ["ScoreMoments", "hold_scale", "rank_of", "residual_shares", "rotated", "second_moment"]

NOISE: Final = 1e-14
"""Share of a Gram matrix's largest eigenvalue below which a direction is rounding: 1e-7 of a length."""
UNSEEN: Final = 1e-8
"""Weight of a direction of the inputs that no row showed: it comes last and stays what it was."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMoments:
    """Second moments of the inputs of q and of k, each with a one appended (``second_moment``)."""

    query: Tensor
    key: Tensor


def second_moment(mean_e: Tensor, covariance_ee: Tensor) -> Tensor:
    """Return E[x xᵀ] of x with a one appended, (e + 1, e + 1), from mean and biased covariance."""
    mean_1e = mean_e[None]
    upper = torch.cat([covariance_ee + mean_1e.T * mean_1e, mean_1e.T], dim=1)
    return torch.cat([upper, torch.cat([mean_1e, mean_1e.new_ones(1, 1)], dim=1)])


def rotated(model: nn.Module, group: Group, moments: ScoreMoments | None = None) -> Tensor:
    """Turn the queries and keys of ``group``, in place, and return what share each dimension carries.

    With M_q, M_k the second moments, AᵀB is weighted: M_q^{½} Aᵀ B M_k^{½} = U S Vᵀ. The new
    A' = T A and B' = T^{-T} B have M_q^{½} A'ᵀ = U S^{½} and M_k^{½} B'ᵀ = V S^{½}: kept to r
    dimensions, they leave the least mean squared error of the scores, over all pairs of a row of the one and
    a row of the other, that rank r can. Without moments M = 1. Query heads that share a key head are stacked,
    A = [A_1 … A_s] side by side, and share T. At full rank every score is what it was, on any input: T is
    found from d × d matrices, as Aᵀ = Q_q R_q with R_qᵀ R_q = A M_q Aᵀ and R_q R_kᵀ = U S Vᵀ give
    T = S^{½} Uᵀ R_q^{-T}. Directions no row showed count next to nothing and come last.

    Returns:
        Shape (d,), descending, of sum 1: S² of each key head over its own sum, averaged over the heads. A
        head that scores nothing is left out; where all are, the answer is zero.

    Args:
        model: its q and k are rewritten, in their number types; half precision rounds the new weights.
        group: of kind "head-width".
        moments: of the inputs as the cut model feeds them.

    Source: Eckart & Young 1936; weighted as in SVD-LLM (Wang et al. 2024, arXiv 2403.07378), on both sides.

    Cost: 2·h·d·e² with moments, h·d²·e without, g·d³.
    """
    scores = _scores(group)
    with torch.no_grad():
        query, key = (_rows(model, name, heads) for name, heads in _sides(scores))
        a_hde, b_gde = (torch.cat(list(each), dim=-1) for each in (query, key))
        sharing = _sharing(scores)
        q_gdd = _gram(a_hde, moments.query if moments else None)[sharing].sum(1)
        k_gdd = _gram(b_gde, moments.key if moments else None)
        turn_q_gdd, turn_k_gdd, s_gd = _turns(q_gdd, k_gdd)
        turn_q_hdd = torch.empty_like(a_hde[:, :, :1]).expand(-1, -1, a_hde.shape[1]).clone()
        turn_q_hdd[sharing] = turn_q_gdd[:, None].expand(-1, sharing.shape[1], -1, -1)
        _write(model, scores.query, turn_q_hdd, query)
        _write(model, scores.key, turn_k_gdd, key)
        return _shares(s_gd)


def residual_shares(energy_d: Tensor) -> tuple[float, ...]:
    """Return, for each r from 1 to d, the share of the squared scores that is lost with r dimensions."""
    tail_d = energy_d.flip(0).cumsum(0).flip(0)
    return (*tail_d[1:].tolist(), 0.0)


def rank_of(energy_d: Tensor) -> float:
    """Return the effective rank of the scores, in dimensions, at least 1."""
    return max(1.0, float(effective_rank(energy_d)))


def hold_scale(ticket: nn.Module, group: Group, kept: int) -> None:
    """Undo, in place, what a module makes of its scale when its heads are ``kept`` wide: q · (kept / d)^½.

    For any group; it does nothing where the module's scale stays. To be done once, on the ticket, after the
    cut and not on the model it is compared to: there the heads are as wide as they were.
    """
    if group.scores is None or not group.scores.scale_follows:
        return
    with torch.no_grad():
        for _, tensor in _tensors(ticket, group.scores.query):
            tensor.mul_((kept / group.width) ** 0.5)


def _scores(group: Group) -> Scores:
    if group.scores is None:
        raise TypeError(f"{group.name} is no group of head width")
    return group.scores


def _sides(scores: Scores) -> tuple[tuple[str, int], tuple[str, int]]:
    return (scores.query, scores.queries), (scores.key, scores.keys)


def _sharing(scores: Scores) -> Tensor:
    """Return the query heads of each key head, (g, s)."""
    heads = torch.arange(scores.queries)
    return heads.reshape(-1, scores.keys).T if scores.tiled else heads.reshape(scores.keys, -1)


def _tensors(model: nn.Module, name: str) -> Iterator[tuple[int, Tensor]]:
    """Yield weight and bias of a projection, as far as there are, with the axis of its outputs."""
    for tensor_name, axis in tensor_axes(model.get_submodule(name), "out").items():
        if (tensor := tensor_named(model, f"{name}.{tensor_name}")) is not None:
            yield axis, tensor


def _rows(model: nn.Module, name: str, heads: int) -> tuple[Tensor, ...]:
    """Return weight and bias of a projection by head, (heads, d, inputs) and (heads, d, 1)."""
    # Apple's MPS has no double precision and no decompositions.
    return tuple(
        (tensor.cpu() if tensor.device.type == "mps" else tensor)
        .double()
        .movedim(axis, 0)
        .reshape(heads, len(tensor.movedim(axis, 0)) // heads, -1)
        for axis, tensor in _tensors(model, name)
    )


def _write(model: nn.Module, name: str, turn: Tensor, parts: tuple[Tensor, ...]) -> None:
    for (axis, tensor), part in zip(_tensors(model, name), parts, strict=True):
        rows = tensor.movedim(axis, 0)
        rows.copy_((turn @ part).reshape(rows.shape))


def _gram(a_hde: Tensor, moment_ee: Tensor | None) -> Tensor:
    """Return A M Aᵀ of each head; M loses its last row and column where there is no bias."""
    if moment_ee is None:
        return a_hde @ a_hde.mT
    inputs = a_hde.shape[2]
    m_ee = moment_ee.to(a_hde)[:inputs, :inputs]
    unseen = UNSEEN * m_ee.diagonal().mean()
    return a_hde @ m_ee @ a_hde.mT + unseen * (a_hde @ a_hde.mT)


def _turns(q_gdd: Tensor, k_gdd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what queries and keys are multiplied by from the left, and the singular values of the scores."""
    (root_q, inverse_q), (root_k, inverse_k) = _root(q_gdd), _root(k_gdd)
    u_gdd, s_gd, vt_gdd = torch.linalg.svd(root_q @ root_k.mT)
    half_gd1 = s_gd.sqrt()[..., None]
    return half_gd1 * (u_gdd.mT @ inverse_q.mT), half_gd1 * (vt_gdd @ inverse_k.mT), s_gd


def _root(gram_gdd: Tensor) -> tuple[Tensor, Tensor]:
    """Return R with RᵀR = G, and its pseudo-inverse."""
    values_gd, vectors_gdd = torch.linalg.eigh(gram_gdd)
    is_noise = values_gd <= NOISE * gram_gdd.shape[-1] * values_gd[..., -1:]
    length_gd = values_gd.clamp_min(0.0).masked_fill(is_noise, 0.0).sqrt()
    inverse_gd = length_gd.reciprocal().masked_fill(length_gd == 0, 0.0)
    return length_gd[..., None] * vectors_gdd.mT, vectors_gdd * inverse_gd[..., None, :]


def _shares(s_gd: Tensor) -> Tensor:
    energy_gd = s_gd.square()
    total_g1 = energy_gd.sum(1, keepdim=True)
    loud = total_g1[:, 0] > 0
    if not bool(loud.any()):
        return energy_gd[0]
    return (energy_gd[loud] / total_g1[loud]).mean(0)
