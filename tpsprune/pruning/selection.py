"""Which units stay: those from which a linear map says best what all of them said.

Shape letters: n units, k units that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Reading", "Selection", "pivoted_cholesky", "select"]

FLOOR = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one consumer makes of the units: moments (see ``PairMoments``) and its weights' Gram matrix."""

    xx_nn: Tensor
    xy_nn: Tensor
    yy_nn: Tensor
    gram_nn: Tensor


@dataclass(frozen=True, slots=True)
class Selection:
    """Units in the order in which they were picked, and the share of variance left after each pick."""

    units: tuple[int, ...]
    residual_shares: tuple[float, ...]


def pivoted_cholesky(covariance_nn: Tensor, count: int) -> Selection:
    """Pick ``count`` units by pivoted Cholesky: each the one with most variance given those before.

    The same pivots as a QR decomposition with column pivoting of the centred activations, at n² per
    pick instead of r·n. ``residual_shares`` are traces of the Schur complement over the whole trace. It
    sees neither what the units are used for nor anything beyond second moments.

    Source: Golub and Van Loan 2013, "Matrix Computations", sections 4.2.8 and 5.4.2.
    """
    residual_nn = covariance_nn.clone()
    total = residual_nn.trace()
    left_n = residual_nn.diagonal().clone()
    units, shares = [], []
    for _ in range(count):
        pivot = left_n.argmax()
        column_n = residual_nn[:, pivot] / residual_nn[pivot, pivot].clamp_min(FLOOR * total).sqrt()
        residual_nn -= torch.outer(column_n, column_n)
        left_n = residual_nn.diagonal().clone()
        units.append(pivot)
        shares.append(left_n.clamp_min(0).sum() / total.clamp_min(torch.finfo(total.dtype).tiny))
        left_n[torch.stack(units)] = -torch.inf
    return Selection(tuple(torch.stack(units).tolist()), tuple(torch.stack(shares).tolist()))


def select(readings: Sequence[Reading], count: int) -> Selection:
    """Pick ``count`` units one by one, each the one that lowers the consumers' output error most.

    With x what the units say now and y what the dense model's said, a consumer of weights W loses
    tr(WᵀW · cov(y − ŷ)), ŷ the least-squares estimate of y from the units picked; each consumer counts
    by the share of its own variance. Picking unit j gains k_jᵀ WᵀW k_j / r_jj, with r the covariance of
    x and k that of x and y, both given the units already picked. A unit nobody listens to, or that the
    picked ones already say, gains nothing. The weights of a convolution count at every kernel position
    as if positions were uncorrelated.

    Ties go to the lowest index. Cost: n² per pick and consumer.

    Source: forward selection for sparse multivariate least squares; Chen, Billings and Luo 1989,
    "Orthogonal least squares methods", with several right-hand sides.
    """
    states = [_State.of(reading) for reading in readings]
    sample_nn = readings[0].xx_nn
    picked_n = torch.zeros(len(sample_nn), dtype=torch.bool, device=sample_nn.device)
    left = sample_nn.new_ones(())
    units: list[Tensor] = []
    shares: list[Tensor] = []
    for _ in range(count):
        gains_n = torch.stack([state.gains() for state in states]).mean(0)
        pick = gains_n.masked_fill(picked_n, -torch.inf).argmax()
        left = left - gains_n[pick]
        for state in states:
            state.take(pick)
        picked_n[pick] = True
        units.append(pick)
        shares.append(left.clamp_min(0))
    return Selection(tuple(torch.stack(units).tolist()), tuple(torch.stack(shares).tolist()))


@dataclass(slots=True, eq=False)
class _State:
    """One consumer's covariances given the units picked so far; ``heard`` is cross times Gram matrix."""

    residual_nn: Tensor
    cross_nn: Tensor
    heard_nn: Tensor
    total: Tensor
    floor: Tensor

    @classmethod
    def of(cls, reading: Reading) -> _State:
        tiny = torch.finfo(reading.xx_nn.dtype).tiny
        return cls(
            reading.xx_nn.clone(),
            reading.xy_nn.clone(),
            reading.xy_nn @ reading.gram_nn,
            (reading.yy_nn * reading.gram_nn).sum().clamp_min(tiny),
            (FLOOR * reading.xx_nn.diagonal().amax()).clamp_min(tiny),
        )

    def gains(self) -> Tensor:
        variance_n = self.residual_nn.diagonal()
        gains_n = (self.cross_nn * self.heard_nn).sum(1) / (variance_n.clamp_min(self.floor) * self.total)
        return gains_n.masked_fill(variance_n <= self.floor, 0.0)

    def take(self, pick: Tensor) -> None:
        variance = self.residual_nn[pick, pick]
        column_n = self.residual_nn[:, pick] / variance.clamp_min(self.floor)
        column_n = torch.where(variance > self.floor, column_n, 0.0)
        for matrix_nn in (self.cross_nn, self.heard_nn, self.residual_nn):
            matrix_nn.sub_(torch.outer(column_n, matrix_nn[pick].clone()))
