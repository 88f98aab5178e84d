"""Joint moments of what a layer is fed and what it is to say, streamed: activations are never kept.

Shape letters: b items, s samples of an item, r rows (items times samples), n signals, g groups of a layer,
p what is fed to a group, q what it is to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from tpsprune.numerics.forward import widened
from tpsprune.numerics.moments import gram

__all__ = ["HELD_OUT", "Joint", "JointSums", "Joints"]

HELD_OUT: Final = 4
"""Every batch keeps the last one in four of its items to choose ridges on."""
MOST_EXACT: Final = 512
"""Columns beyond which one batch is taken in single precision, about the means: the sums stay double."""


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Means and biased covariances of x and y over ``rows`` observations; of y with itself variances alone.

    x is fed by the model as cut so far, y is what the dense model says. Double precision where there is
    one.
    """

    rows: int
    mean_x_gp: Tensor
    mean_y_gq: Tensor
    xx_gpp: Tensor
    xy_gpq: Tensor
    yy_gq: Tensor

    def raw(self) -> Joint:
        """Return moments about zero, for a layer that has no bias."""
        x_gp, y_gq = self.mean_x_gp, self.mean_y_gq
        return Joint(
            self.rows,
            torch.zeros_like(x_gp),
            torch.zeros_like(y_gq),
            self.xx_gpp + x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq + x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq + y_gq.square(),
        )

    def of_inputs(self, index_p: Tensor) -> Joint:
        """Return the moments with only some of what is fed."""
        return Joint(
            self.rows,
            self.mean_x_gp[:, index_p],
            self.mean_y_gq,
            self.xx_gpp[:, index_p][:, :, index_p],
            self.xy_gpq[:, index_p],
            self.yy_gq,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Joints:
    """Moments over all items, over three in four (``fit``) and over the fourth (``held``).

    The latter two are missing where no batch has four items.
    """

    whole: Joint
    fit: Joint | None
    held: Joint | None

    def of_inputs(self, index_p: Tensor) -> Joints:
        """Return the moments with only some of what is fed."""
        return self._each(lambda part: part.of_inputs(index_p))

    def raw(self) -> Joints:
        """Return moments about zero."""
        return self._each(Joint.raw)

    def _each(self, change: Callable[[Joint], Joint]) -> Joints:
        fit, held = (change(part) if part else None for part in (self.fit, self.held))
        return Joints(change(self.whole), fit, held)


@final
class JointSums:
    """Running sums of x and y, of the items to fit on and of those held out, about the first means."""

    def __init__(self) -> None:
        self._fit, self._held = _Sums(), _Sums()

    @property
    def rows(self) -> int:
        """Observations so far."""
        return self._fit.rows + self._held.rows

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        """Take in the observations of one batch.

        Cost: r·p·(p + q) for each group.
        """
        held = len(x_bsgp) // HELD_OUT
        split = len(x_bsgp) - held
        self._fit.add(x_bsgp[:split], y_bsgq[:split])
        if held:
            self._held.add(x_bsgp[split:], y_bsgq[split:])

    def joints(self) -> Joints:
        """Return the moments of all that was added."""
        fit = self._fit.part()
        if not self._held.rows:
            return Joints(fit, None, None)
        held = self._held.part()
        return Joints(_pooled(fit, held), fit, held)


class _Sums:
    def __init__(self) -> None:
        self.rows = 0
        self.shift_gp = self.shift_gq = self.sum_gp = self.sum_gq = torch.empty(0)
        self.xx_gpp = self.xy_gpq = self.yy_gq = torch.empty(0)

    def add(self, x_bsgp: Tensor, y_bsgq: Tensor) -> None:
        x_grp, y_grq = (each.flatten(0, 1).movedim(0, 1) for each in (x_bsgp, y_bsgq))
        many = x_grp.shape[2] > MOST_EXACT
        # Single precision is enough about the means, not about zero: what comes in double is shifted first.
        x_grp, y_grq = (
            each.to(torch.promote_types(each.dtype, torch.float32)) if many else widened(each)
            for each in (x_grp, y_grq)
        )
        if not self.rows:
            self.shift_gp, self.shift_gq = (widened(each.mean(1)) for each in (x_grp, y_grq))
            self.sum_gp, self.sum_gq = torch.zeros_like(self.shift_gp), torch.zeros_like(self.shift_gq)
            self.xx_gpp = self.sum_gp.new_zeros(len(x_grp), x_grp.shape[2], x_grp.shape[2])
            self.xy_gpq = self.sum_gp.new_zeros(len(x_grp), x_grp.shape[2], y_grq.shape[2])
            self.yy_gq = torch.zeros_like(self.shift_gq)
        x_grp = x_grp - self.shift_gp[:, None].to(x_grp.dtype)
        y_grq = y_grq - self.shift_gq[:, None].to(y_grq.dtype)
        if many:
            x_grp, y_grq = x_grp.float(), y_grq.float()
        self.rows += x_grp.shape[1]
        self.sum_gp += x_grp.sum(1)
        self.sum_gq += y_grq.sum(1)
        self.yy_gq += y_grq.square().sum(1)
        self.xx_gpp += gram(x_grp)
        self.xy_gpq += x_grp.mT @ y_grq

    def part(self) -> Joint:
        x_gp, y_gq = self.sum_gp / self.rows, self.sum_gq / self.rows
        return Joint(
            self.rows,
            self.shift_gp + x_gp,
            self.shift_gq + y_gq,
            self.xx_gpp / self.rows - x_gp[:, :, None] * x_gp[:, None, :],
            self.xy_gpq / self.rows - x_gp[:, :, None] * y_gq[:, None, :],
            self.yy_gq / self.rows - y_gq.square(),
        )


def _pooled(fit: Joint, held: Joint) -> Joint:
    share = fit.rows / (fit.rows + held.rows)
    x_gp, y_gq = held.mean_x_gp - fit.mean_x_gp, held.mean_y_gq - fit.mean_y_gq
    between = share * (1 - share)
    return Joint(
        fit.rows + held.rows,
        fit.mean_x_gp + (1 - share) * x_gp,
        fit.mean_y_gq + (1 - share) * y_gq,
        share * fit.xx_gpp + (1 - share) * held.xx_gpp + between * x_gp[:, :, None] * x_gp[:, None, :],
        share * fit.xy_gpq + (1 - share) * held.xy_gpq + between * x_gp[:, :, None] * y_gq[:, None, :],
        share * fit.yy_gq + (1 - share) * held.yy_gq + between * y_gq.square(),
    )
