"""Selection: which units are kept, those from which a linear map best estimates the outputs of all.

Shape letters: s consumers, n signals (units times features), u units, f features of a unit, k signals picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

FLOOR: Final = 1e-10
"""Share of the largest variance below which a signal adds nothing: rounding."""
PENDING: Final = 64
"""Picks between two updates of the whole matrices: the products of one are those of a matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one consumer reads: the covariance of the units' signals and its weights' Gram matrix.

    Each unit has ``features`` signals here, one after the other.
    """

    covariance_nn: Tensor
    gram_nn: Tensor
    features: int = 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Units in the order in which they were picked, and the share of the error that is left after each.

    ``loudness`` is the whole that the shares are of: the sum of the consumers' weighted variances.
    """

    units: tuple[int, ...]
    residual_shares: tuple[float, ...]
    loudness: float = 1.0

    def first(self, count: int) -> Selection:
        """Return the selection of fewer units: picks do not depend on how many follow."""
        return Selection(self.units[:count], self.residual_shares[:count], self.loudness)


def pivoted_cholesky(covariance_nn: Tensor, count: int, *, features: int = 1) -> Selection:
    """Pick ``count`` units by pivoted Cholesky: each the one with most variance given those before.

    The same pivots as a QR decomposition with column pivoting of the centred activations, at some 4·n² per
    pick instead of r·n, after one product of n³. ``residual_shares`` are traces of the Schur complement over
    the whole trace. It sees neither what the units are used for nor anything beyond second moments; weighted
    by what consumers make of them (``D Σ D``, D the roots of the Gram matrix's diagonal) a unit that nobody
    reads is last.
    A unit of several features is taken as a block, by the sum of their variances.

    Source: Golub and Van Loan 2013, "Matrix Computations", sections 4.2.8 and 5.4.2.
    """
    every_nn = torch.eye(len(covariance_nn)).to(covariance_nn)
    state = _State([Reading(covariance_nn, every_nn, features)])
    trace = covariance_nn.trace().clamp_min(torch.finfo(covariance_nn.dtype).tiny)
    units, shares = _Remaining([state]), []
    for _ in range(count):
        units.take(units.unpicked(state.variances(), -torch.inf).argmax())
        shares.append((units.unpicked(state.variances(), 0.0).sum() / trace).clamp_min(0))
    return Selection(units.picked(), tuple(torch.stack(shares).tolist()))


def select(readings: Sequence[Reading], count: int, *, picked: Sequence[int] | None = None) -> Selection:
    """Pick ``count`` units one by one, each the one that lowers the consumers' output error most.

    With x the units' signals, a consumer of weights W loses tr(W D Wᵀ · cov(x − x̂)), x̂ the least-squares
    estimate of x from the units picked, D the cost of an error at its outputs (``sensitivity``). Picking unit
    j gains tr(R_jj⁺ M_jj), with R the covariance of x and M = R W D Wᵀ R, both given the units already
    picked; for a unit of one signal that is m_jj / r_jj. A unit that nobody reads, or that the picked ones
    already explain, gains nothing. The weights of a convolution count at every kernel position as if
    positions were uncorrelated.

    Of equal units the lowest is picked. Cost: 6·m² per pick and consumer, m the signals not picked yet:
    2·n³ in all.

    Args:
        readings: one for each consumer.
        count: how many to pick.
        picked: units that are picked already, in their order; the shares left are those of these.

    Source: forward selection for sparse multivariate least squares; Chen, Billings and Luo 1989,
    "Orthogonal least squares methods", with several right-hand sides.
    """
    alike: dict[int, list[Reading]] = {}
    for reading in readings:
        alike.setdefault(reading.features, []).append(reading)
    states = [_State(each) for each in alike.values()]
    loudness = torch.stack(
        [(each.covariance_nn * each.gram_nn).sum().clamp_min(0) for each in readings]
    ).sum()
    whole = loudness.clamp_min(torch.finfo(loudness.dtype).tiny)
    left = loudness / whole
    units = _Remaining(states)
    shares: list[Tensor] = []
    for rank in range(count):
        gains_u = units.unpicked(torch.stack([state.gains() for state in states]).sum(0) / whole, -torch.inf)
        pick = gains_u.argmax() if picked is None else units.place(picked[rank])
        left = left - gains_u[pick]
        units.take(pick)
        shares.append(left.clamp_min(0))
    return Selection(units.picked(), tuple(torch.stack(shares).tolist()), float(loudness))


@final
class _Remaining:
    """The units of all states that are not picked yet, and for a while some that are.

    Given itself a unit adds nothing more: now and then those picked are dropped, and the states shrink.
    """

    def __init__(self, states: Sequence[_State]) -> None:
        self.states = states
        units = states[0].r_suff.shape[1]
        device = states[0].r_snn.device
        self.unit_u = torch.arange(units, device=device)
        self.place_u = self.unit_u.clone()
        self.picked_u = torch.zeros(units, dtype=torch.bool, device=device)
        self.taken: list[Tensor] = []

    def unpicked(self, values_u: Tensor, otherwise: float) -> Tensor:
        """Return the values, and what stands in their place for units that are picked."""
        return values_u.masked_fill(self.picked_u, otherwise)

    def place(self, unit: int) -> Tensor:
        """Return where a unit stands among those that are left."""
        return self.place_u[unit]

    def take(self, pick: Tensor) -> None:
        """Pick the unit at a place, in all states."""
        for state in self.states:
            state.take(pick)
        self.taken.append(self.unit_u[pick])
        self.picked_u[pick] = True
        if len(self.taken) % PENDING == 0:
            rest_u = (~self.picked_u).nonzero()[:, 0]
            for state in self.states:
                state.shrink(rest_u)
            self.unit_u, self.picked_u = self.unit_u[rest_u], self.picked_u[rest_u]
            self.place_u[self.unit_u] = torch.arange(len(rest_u), device=rest_u.device)

    def picked(self) -> tuple[int, ...]:
        """Return the units picked, in their order."""
        return tuple(torch.stack(self.taken).tolist()) if self.taken else ()


@final
class _State:
    """R and M given the units picked so far, of consumers that read as many signals of each unit.

    A pick of signals J changes R by −Cᵀ R_J and M by −Cᵀ V − Vᵀ C, with C = R_JJ⁺ R_J and V = M_J − M_JJ C /
    2. Both are kept as they were at the last update of the whole, with the changes since then kept apart: the
    rows of a pick are read through these, the diagonal blocks are always current.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.features = f = readings[0].features
        self.r_snn = torch.stack([each.covariance_nn for each in readings])
        self.m_snn = torch.stack(
            [each.covariance_nn @ each.gram_nn @ each.covariance_nn for each in readings]
        )
        tiny = torch.finfo(self.r_snn.dtype).tiny
        self.floor_s = (FLOOR * self.r_snn.diagonal(dim1=1, dim2=2).amax(1)).clamp_min(tiny)
        self.r_suff, self.m_suff = self._blocks(self.r_snn), self._blocks(self.m_snn)
        self.offsets_f = torch.arange(f, device=self.r_snn.device)
        self.pending = 0
        # C, V and R_J of the picks that are pending.
        self.low_xskn = self.r_snn.new_zeros(3, len(readings), max(PENDING, f), self.r_snn.shape[1])

    def variances(self) -> Tensor:
        """Return each unit's variance given those picked, over all consumers."""
        return self.r_suff.diagonal(dim1=2, dim2=3).sum((0, 2))

    def gains(self) -> Tensor:
        """Return by how much each unit would lower the consumers' error."""
        if self.features > 1:
            return (self._inverse(self.r_suff) * self.m_suff).sum((0, 2, 3))
        r_su, m_su, floor_s1 = self.r_suff[:, :, 0, 0], self.m_suff[:, :, 0, 0], self.floor_s[:, None]
        return (m_su / r_su.maximum(floor_s1)).masked_fill_(r_su <= floor_s1, 0.0).sum(0)

    def take(self, pick: Tensor) -> None:
        """Condition everything on one more unit."""
        f, k = self.features, self.pending
        index_f = pick * f + self.offsets_f
        low_xskn = self.low_xskn[:, :, :k]
        c_sfk, v_sfk, r_sfk = low_xskn[..., index_f].mT
        r_sfn = torch.baddbmm(self.r_snn[:, index_f], r_sfk, low_xskn[0], alpha=-1)
        m_sfn = torch.baddbmm(self.m_snn[:, index_f], v_sfk, low_xskn[0], alpha=-1)
        m_sfn.baddbmm_(c_sfk, low_xskn[1], alpha=-1)
        c_sfn = self._inverse(r_sfn[..., index_f][:, None])[:, 0] @ r_sfn
        v_sfn = torch.baddbmm(m_sfn, m_sfn[..., index_f], c_sfn, alpha=-0.5)
        picked_xsfn = torch.stack((c_sfn, v_sfn, r_sfn))
        if f == 1:
            c_su11, v_su11, r_su11 = picked_xsfn.mT[..., None]
            self.r_suff.addcmul_(c_su11, r_su11, value=-1)
            self.m_suff.addcmul_(c_su11, v_su11, value=-2)
        else:
            c_suff, v_suff, r_suff = picked_xsfn.mT.reshape(3, -1, self.r_suff.shape[1], f, f)
            self.r_suff = self.r_suff - c_suff @ r_suff.mT
            crossed_suff = c_suff @ v_suff.mT
            self.m_suff = self.m_suff - crossed_suff - crossed_suff.mT
        self.low_xskn[:, :, k : k + f] = picked_xsfn
        self.pending += f
        if self.pending + f > self.low_xskn.shape[2]:
            self._update()

    def shrink(self, rest_u: Tensor) -> None:
        """Forget all units but these."""
        self._update()
        rest_n = (rest_u[:, None] * self.features + self.offsets_f).flatten()
        self.r_snn, self.m_snn = (each[:, rest_n][:, :, rest_n] for each in (self.r_snn, self.m_snn))
        self.r_suff, self.m_suff = self.r_suff[:, rest_u], self.m_suff[:, rest_u]
        self.low_xskn = self.low_xskn[..., : len(rest_n)].contiguous()

    def _update(self) -> None:
        """Apply the pending changes to R and M."""
        c_skn, v_skn, r_skn = self.low_xskn[:, :, : self.pending]
        self.r_snn.baddbmm_(c_skn.mT, r_skn, alpha=-1)
        self.m_snn.baddbmm_(c_skn.mT, v_skn, alpha=-1).baddbmm_(v_skn.mT, c_skn, alpha=-1)
        self.pending = 0

    def _blocks(self, whole_snn: Tensor) -> Tensor:
        f = self.features
        units = whole_snn.shape[1] // f
        blocks_sffu = whole_snn.reshape(-1, units, f, units, f).diagonal(dim1=1, dim2=3)
        return blocks_sffu.permute(0, 3, 1, 2).clone()

    def _inverse(self, block_suff: Tensor) -> Tensor:
        floor_s111 = self.floor_s[:, None, None, None]
        if self.features == 1:
            return block_suff.maximum(floor_s111).reciprocal_().masked_fill_(block_suff <= floor_s111, 0.0)
        values_suf, vectors_suff = torch.linalg.eigh((block_suff + block_suff.mT) / 2)
        floor_s11 = floor_s111[..., 0]
        inverse_suf = torch.where(values_suf > floor_s11, 1.0 / values_suf.maximum(floor_s11), 0.0)
        inverse_suff: Tensor = (vectors_suff * inverse_suf[:, :, None]) @ vectors_suff.mT
        return inverse_suff
