"""Selection: which units are kept, those from which a linear map best estimates the outputs of all.

Shape letters: n signals (units times features), u units, f features of a unit, k signals picked.
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
    state = _State(Reading(covariance_nn, every_nn, features))
    units, shares = _Remaining([state]), []
    for _ in range(count):
        units.take(units.unpicked(state.variances(), -torch.inf).argmax())
        shares.append((units.unpicked(state.variances(), 0.0).sum() / state.trace).clamp_min(0))
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
    states = [_State(reading) for reading in readings]
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
        units = len(states[0].r_uff)
        device = states[0].r_nn.device
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
    """One consumer's R and M given the units picked so far.

    A pick of signals J changes R by −C R_J and M by −C Vᵀ − V Cᵀ, with C = R_·J R_JJ⁺ and V = M_·J − C M_JJ /
    2. Both are kept as they were at the last update of the whole, with the changes since then kept apart: the
    columns of a pick are read through it, the diagonal blocks are always current.
    """

    def __init__(self, reading: Reading) -> None:
        covariance_nn, features = reading.covariance_nn, reading.features
        tiny = torch.finfo(covariance_nn.dtype).tiny
        self.features = features
        self.r_nn = covariance_nn.clone()
        self.m_nn = covariance_nn @ reading.gram_nn @ covariance_nn
        self.trace = covariance_nn.trace().clamp_min(tiny)
        self.floor = (FLOOR * covariance_nn.diagonal().amax()).clamp_min(tiny)
        self.r_uff, self.m_uff = self._blocks(self.r_nn), self._blocks(self.m_nn)
        self.pending = 0
        self.c_nk, self.s_nk, self.v_nk = covariance_nn.new_zeros(
            3, len(covariance_nn), max(PENDING, features)
        )

    def variances(self) -> Tensor:
        """Return each unit's variance given those picked."""
        return self.r_uff.diagonal(dim1=1, dim2=2).sum(1)

    def gains(self) -> Tensor:
        """Return by how much each unit would lower the consumer's error."""
        if self.features == 1:
            r_u, m_u = self.r_uff[:, 0, 0], self.m_uff[:, 0, 0]
            return (m_u / r_u.clamp_min(self.floor)).masked_fill(r_u <= self.floor, 0.0)
        return (self._inverse(self.r_uff) * self.m_uff).sum((1, 2))

    def take(self, pick: Tensor) -> None:
        """Condition everything on one more unit."""
        f = self.features
        index_f = pick * f + torch.arange(f, device=self.r_nn.device)
        c_nk, s_nk, v_nk = (each[:, : self.pending] for each in (self.c_nk, self.s_nk, self.v_nk))
        r_nf = self.r_nn[index_f].T - c_nk @ s_nk[index_f].T
        m_nf = self.m_nn[index_f].T - c_nk @ v_nk[index_f].T - v_nk @ c_nk[index_f].T
        c_nf = r_nf @ self._inverse(r_nf[index_f][None])[0]
        v_nf = m_nf - c_nf @ m_nf[index_f] / 2
        c_uff, r_uff, v_uff = (each.reshape(-1, f, f) for each in (c_nf, r_nf, v_nf))
        self.r_uff = self.r_uff - c_uff @ r_uff.mT
        crossed_uff = c_uff @ v_uff.mT
        self.m_uff = self.m_uff - crossed_uff - crossed_uff.mT
        here = slice(self.pending, self.pending + f)
        self.c_nk[:, here], self.s_nk[:, here], self.v_nk[:, here] = c_nf, r_nf, v_nf
        self.pending += f
        if self.pending + f > self.c_nk.shape[1]:
            self._update()

    def shrink(self, rest_u: Tensor) -> None:
        """Forget all units but these."""
        self._update()
        offsets_f = torch.arange(self.features, device=rest_u.device)
        rest_n = (rest_u[:, None] * self.features + offsets_f).flatten()
        self.r_nn, self.m_nn = (each[rest_n][:, rest_n] for each in (self.r_nn, self.m_nn))
        self.r_uff, self.m_uff = self.r_uff[rest_u], self.m_uff[rest_u]
        self.c_nk, self.s_nk, self.v_nk = (each[: len(rest_n)] for each in (self.c_nk, self.s_nk, self.v_nk))

    def _update(self) -> None:
        """Apply the pending changes to R and M."""
        c_nk, s_nk, v_nk = (each[:, : self.pending] for each in (self.c_nk, self.s_nk, self.v_nk))
        self.r_nn.addmm_(c_nk, s_nk.T, alpha=-1)
        self.m_nn.addmm_(c_nk, v_nk.T, alpha=-1).addmm_(v_nk, c_nk.T, alpha=-1)
        self.pending = 0

    def _blocks(self, whole_nn: Tensor) -> Tensor:
        f = self.features
        units = len(whole_nn) // f
        return whole_nn.reshape(units, f, units, f).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def _inverse(self, block_uff: Tensor) -> Tensor:
        if self.features == 1:
            return torch.where(block_uff > self.floor, 1.0 / block_uff.clamp_min(self.floor), 0.0)
        values_uf, vectors_uff = torch.linalg.eigh((block_uff + block_uff.mT) / 2)
        inverse_uf = torch.where(values_uf > self.floor, 1.0 / values_uf.clamp_min(self.floor), 0.0)
        inverse_uff: Tensor = (vectors_uff * inverse_uf[:, None]) @ vectors_uff.mT
        return inverse_uff
