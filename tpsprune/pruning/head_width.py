"""The width of attention heads: queries and keys rotated so that their last dimensions can be pruned.

A head's scores are x Aᵀ B yᵀ, with A = [W_q b_q], B = [W_k b_k], and x, y the inputs of q and k with a one
appended: A and B themselves are determined only up to a basis of the head's dimensions. In the basis of the
singular vectors of AᵀB the first r dimensions give the best scores that r dimensions can give.

The order of use: ``propose_head_widths`` gives candidates, which ``trial`` proves. Then, on a copy of the
dense model, ``rotate_heads`` for each group of kind "head-width" (which leaves the outputs as they were),
``residual_shares`` and ``score_rank`` for the choice of a width r, ``surgery.mask_units`` of the dimensions
from r on, ``PrunedGroup.of(group, range(r))``, and on the ticket ``surgery.hold_scale``. Nothing of the basis
is in the plan: a replay takes the first r dimensions of other weights as they are, and where a module's scale
follows the width, at the scale it has then.

Shape letters: e inputs (q and k may have different ones), h query heads, g key heads, s = h / g query heads
that share a key head, d dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.spectra import effective_rank
from tpsprune.pruning.attention import (
    OF_ALL_HEADS,
    Attention,
    Heads,
    Number,
    Part,
    find_attentions,
    guess_heads,
    is_width,
    numbers_around,
)
from tpsprune.pruning.coupling import Candidate, Proposal
from tpsprune.pruning.groups import Attribute, Group, Scores, Slice
from tpsprune.pruning.layers import fault_of, tensor_axes, tensor_named
from tpsprune.pruning.trial import are_close, outputs_of, restoring

HEAD_WIDTH: Final = ".head-width"
"""Follows the name of the projection of queries in the name of a group."""
MOST_WAYS: Final = 12
ROTATED_OTHERWISE: Final = (
    "its queries and keys are turned by position (rotary) or normed, or read elsewhere too: "
    "their basis may not change"
)
NOISE: Final = 1e-14
"""Share of a Gram matrix's largest eigenvalue below which a direction is rounding: 1e-7 of a length."""
UNSEEN: Final = 1e-8
"""Weight of a direction of the inputs that no row showed: it comes last and remains as it was."""


def propose_head_widths(model: nn.Module, subject: nn.Module, batch: Any) -> list[Candidate]:
    """Return candidates of kind "head-width", unproved, one for each attention.

    A unit is dimension u of all heads' queries and keys. What may not be rotated to another basis at full
    width comes with that as its fault. The ways of the others differ in how many heads there are, which
    numbers that modules store follow the width, and whether the module's scale does: the first whose pruned
    model equals the masked one is the right one. Of queries, keys and values in one layer there is no
    candidate: it is split by one width, which that of the values would have to follow.

    Args:
        model: the model.
        subject: the same, randomised; it is rotated and restored.
        batch: that it is called on.

    Cost: a forward pass for each attention, and one more for each further guess at its heads.
    """
    found: dict[str, list[Proposal]] = {}
    whole = None
    for attention in find_attentions(model):
        parts = {part.role: part for part in attention.parts}
        if "q" not in parts or "k" not in parts or parts["q"].module + HEAD_WIDTH in found:
            continue
        if whole is None:
            whole = outputs_of(subject, batch)
        proposals = []
        numbers = numbers_around(model, attention)
        for heads, group in _layouts(model, attention, numbers, parts["q"], parts["k"]):
            faults = [fault for name in group.producers if (fault := fault_of(model.get_submodule(name)))]
            fault = faults[0] if faults else _fault_of_basis(subject, group, batch, whole)
            ways = [group] if fault else _ways(group, numbers, heads)
            proposals += [Proposal(each, fault) for each in ways]
        if proposals:
            # A guess that may be rotated is tried before one that may not: its fault is the one to report.
            found[proposals[0].group.name] = sorted(proposals, key=lambda each: bool(each.fault))
    return [Candidate(tuple((each,) for each in ways[:MOST_WAYS])) for ways in found.values()]


def _layouts(
    model: nn.Module, attention: Attention, numbers: tuple[Number, ...], query: Part, key: Part
) -> Iterator[tuple[Heads, Group]]:
    """Yield each guess at the heads and their order with the group it makes, likeliest first."""
    for heads in guess_heads(model, attention, numbers, least=1):
        if heads.key != heads.width:
            continue
        slices = tuple(
            Slice(f"{part.module}.{tensor}", axis, 0, 1, many, heads.width if many > 1 else 0)
            for part, many in ((query, heads.queries), (key, heads.keys))
            for tensor, axis in tensor_axes(model.get_submodule(part.module), "out").items()
        )
        for tiled in (False, True) if 1 < heads.keys < heads.queries else (False,):
            yield (
                heads,
                Group(
                    name=f"{query.module}{HEAD_WIDTH}",
                    width=heads.width,
                    producers=(query.module, key.module),
                    members=(),
                    consumers=(),
                    slices=slices,
                    cores=(attention.place,),
                    kind="head-width",
                    scores=Scores(query.module, key.module, heads.queries, heads.keys, heads.value, tiled),
                ),
            )


def _ways(group: Group, numbers: Iterable[Number], heads: Heads) -> Iterator[Group]:
    """Yield a group in its ways, likeliest first: which numbers follow it, and whether the scale does.

    Of the numbers: those of one head and of all heads, of one, of all, none.
    """
    own = [each for each in numbers if each.value == heads.width and is_width(each.name)]
    sizes = {heads.queries * heads.width, heads.keys * heads.width}
    inner = [
        each for each in numbers if each.value in sizes and each not in own and OF_ALL_HEADS.search(each.name)
    ]
    sets = (
        tuple(Attribute(each.module, each.name, each.value // heads.width) for each in chosen)
        for chosen in ([*own, *inner], own, inner, [])
    )
    assert group.scores is not None
    for attributes in dict.fromkeys(sets):
        for follows in (False, True):
            yield replace(group, attributes=attributes, scores=replace(group.scores, scale_follows=follows))


def _fault_of_basis(subject: nn.Module, group: Group, batch: Any, whole: list[Tensor]) -> str:
    """Return why the dimensions of a randomised model's heads may not change their basis, or nothing."""
    with restoring(subject, (group,)):
        rotate_heads(subject, group)
        return "" if are_close(whole, outputs_of(subject, batch)) else ROTATED_OTHERWISE


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


def rotate_heads(model: nn.Module, group: Group, moments: ScoreMoments | None = None) -> Tensor:
    """Rotate the queries and keys of ``group``, in place, and return what share each dimension carries.

    With M_q, M_k the second moments, AᵀB is weighted: M_q^{½} Aᵀ B M_k^{½} = U S Vᵀ. The new
    A' = T A and B' = T^{-T} B have M_q^{½} A'ᵀ = U S^{½} and M_k^{½} B'ᵀ = V S^{½}: kept to r
    dimensions, they leave the least mean squared error of the scores, over all pairs of a row of the one and
    a row of the other, that rank r can. Without moments M = 1. Query heads that share a key head are stacked,
    A = [A_1 … A_s] side by side, and share T. At full rank every score is what it was, on any input: T is
    found from d × d matrices, as Aᵀ = Q_q R_q with R_qᵀ R_q = A M_q Aᵀ and R_q R_kᵀ = U S Vᵀ give
    T = S^{½} Uᵀ R_q^{-T}. Directions no row showed count next to nothing and come last.

    Returns:
        Shape (d,), descending, of sum 1: S² of each key head over its own sum, averaged over the heads. A
        head whose scores are all zero is left out; where all are, the result is zero.

    Args:
        model: its q and k are rewritten, in their number types; half precision rounds the new weights.
        group: of kind "head-width".
        moments: of the inputs that the pruned model gives them.

    Source: Eckart & Young 1936; weighted as in SVD-LLM (Wang et al. 2024, arXiv 2403.07378), on both sides.

    Cost: 2·h·d·e² with moments, h·d²·e without, g·d³.
    """
    scores = group.scores
    if scores is None:
        raise TypeError(f"{group.name} is no group of head width")
    with torch.no_grad():
        query = _rows(model, scores.query, scores.queries)
        key = _rows(model, scores.key, scores.keys)
        a_hde, b_gde = torch.cat(query, dim=-1), torch.cat(key, dim=-1)
        heads = torch.arange(scores.queries)
        sharing_gs = heads.reshape(-1, scores.keys).T if scores.tiled else heads.reshape(scores.keys, -1)
        q_gdd = _gram(a_hde, moments.query if moments else None)[sharing_gs].sum(1)
        k_gdd = _gram(b_gde, moments.key if moments else None)
        (root_q, inverse_q), (root_k, inverse_k) = _root(q_gdd), _root(k_gdd)
        u_gdd, s_gd, vt_gdd = torch.linalg.svd(root_q @ root_k.mT)
        half_gd1 = s_gd.sqrt()[..., None]
        turn_q_gdd, turn_k_gdd = half_gd1 * (u_gdd.mT @ inverse_q.mT), half_gd1 * (vt_gdd @ inverse_k.mT)
        turn_q_hdd = turn_q_gdd.new_empty(scores.queries, *turn_q_gdd.shape[1:])
        turn_q_hdd[sharing_gs] = turn_q_gdd[:, None].expand(-1, sharing_gs.shape[1], -1, -1)
        _write_rows(model, scores.query, turn_q_hdd, query)
        _write_rows(model, scores.key, turn_k_gdd, key)
        energy_gd: Tensor = s_gd.square()
        total_g1 = energy_gd.sum(1, keepdim=True)
        not_zero = total_g1[:, 0] > 0
        if not bool(not_zero.any()):
            return energy_gd[0]
        return (energy_gd[not_zero] / total_g1[not_zero]).mean(0)


def residual_shares(energy_d: Tensor) -> tuple[float, ...]:
    """Return, for each r from 1 to d, the share of the squared scores that is lost with r dimensions."""
    tail_d = energy_d.flip(0).cumsum(0).flip(0)
    return (*tail_d[1:].tolist(), 0.0)


def score_rank(energy_d: Tensor) -> float:
    """Return the effective rank of the scores, in dimensions, at least 1."""
    return max(1.0, float(effective_rank(energy_d)))


def _tensors(model: nn.Module, name: str) -> Iterator[Tensor]:
    """Yield weight and bias of a projection, as far as there are, with outputs on axis 0."""
    for tensor_name, axis in tensor_axes(model.get_submodule(name), "out").items():
        if (tensor := tensor_named(model, f"{name}.{tensor_name}")) is not None:
            yield tensor.movedim(axis, 0)


def _rows(model: nn.Module, name: str, heads: int) -> list[Tensor]:
    """Return weight and bias of a projection by head, (heads, d, inputs) and (heads, d, 1)."""
    # Apple's MPS has no double precision and no decompositions.
    return [
        (tensor.cpu() if tensor.device.type == "mps" else tensor)
        .double()
        .reshape(heads, len(tensor) // heads, -1)
        for tensor in _tensors(model, name)
    ]


def _write_rows(model: nn.Module, name: str, turn: Tensor, parts: list[Tensor]) -> None:
    for tensor, part in zip(_tensors(model, name), parts, strict=True):
        tensor.copy_((turn @ part).reshape(tensor.shape))


def _gram(a_hde: Tensor, moment_ee: Tensor | None) -> Tensor:
    """Return A M Aᵀ of each head; M loses its last row and column where there is no bias."""
    if moment_ee is None:
        return a_hde @ a_hde.mT
    inputs = a_hde.shape[2]
    m_ee = moment_ee.to(a_hde)[:inputs, :inputs]
    unseen = UNSEEN * m_ee.diagonal().mean()
    return a_hde @ m_ee @ a_hde.mT + unseen * (a_hde @ a_hde.mT)


def _root(gram_gdd: Tensor) -> tuple[Tensor, Tensor]:
    """Return R with RᵀR = G, and its pseudo-inverse."""
    values_gd, vectors_gdd = torch.linalg.eigh(gram_gdd)
    is_noise = values_gd <= NOISE * gram_gdd.shape[-1] * values_gd[..., -1:]
    length_gd = values_gd.clamp_min(0.0).masked_fill(is_noise, 0.0).sqrt()
    inverse_gd = length_gd.reciprocal().masked_fill(length_gd == 0, 0.0)
    return length_gd[..., None] * vectors_gdd.mT, vectors_gdd * inverse_gd[..., None, :]
