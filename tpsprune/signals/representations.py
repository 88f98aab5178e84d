"""Effective dimension: how many directions the units of a group span on the probe data.

Shape letters: n units of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import final

import torch

from tpsprune.numerics.moments import Moments, input_moments
from tpsprune.numerics.spectra import corrected_participation_ratio, effective_rank, participation_ratio
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["DEff", "Dimension", "group_dimension"]


@dataclass(frozen=True, slots=True)
class Dimension:
    """Effective rank and corrected participation ratio of a group of ``width`` units."""

    width: int
    effective_rank: float
    participation_ratio: float


def group_dimension(consumers: list[Moments]) -> Dimension:
    """Return the dimension of the covariance pooled over a group's consumers, each over its trace.

    A consumer whose input never varies adds nothing. Invariant to the scale of each consumer's input and
    to turning all units together; it sees linear dependence only, of curved shapes the hull. Moments
    that are not finite give NaN. Cost: one eigenvalue problem of n × n.
    """
    width = len(consumers[0].mean_n)
    pooled_nn = torch.zeros_like(consumers[0].covariance_nn)
    for moments in consumers:
        trace = moments.covariance_nn.trace()
        pooled_nn += moments.covariance_nn / trace.masked_fill(trace == 0, 1.0)
    # Checked by hand: eigvalsh raises on what is not finite.
    if not pooled_nn.isfinite().all():
        return Dimension(width, torch.nan, torch.nan)
    eigenvalues_n = torch.linalg.eigvalsh(pooled_nn)
    ratio = float(participation_ratio(eigenvalues_n))
    rows = min(moments.rows for moments in consumers)
    return Dimension(
        width=width,
        effective_rank=float(effective_rank(eigenvalues_n)),
        participation_ratio=corrected_participation_ratio(ratio, rows, at_most=float(width)),
    )


@final
class DEff(AbstractMemoryless):
    """Reads the dimension of every group from one forward pass over the probe.

    Per group: ``d_eff`` (effective rank, in dimensions), ``d_eff_share`` (over the group's width) and
    ``participation_ratio`` (corrected for the number of rows). For the whole model: ``d_eff``, the mean of
    the groups' shares.
    """

    name = "d_eff"

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read every group, then their mean."""
        widths = {name: width for fed in view.consumers.values() for name, width in fed.items()}
        moments = input_moments(view.model, view.probe, widths)
        readings: list[Reading] = []
        shares: list[float] = []
        for group, fed in view.consumers.items():
            seen = [moments[name] for name in fed if name in moments]
            if not seen:
                reason = "no consumer of its units is called"
                readings.append(view.without(self.name, "dimensions", Status.NOT_APPLICABLE, reason, group))
                continue
            if len({len(each.mean_n) for each in seen}) > 1:
                reason = "its consumers are fed different numbers of units"
                readings.append(view.without(self.name, "dimensions", Status.NOT_APPLICABLE, reason, group))
                continue
            dimension = group_dimension(seen)
            shares.append(dimension.effective_rank / dimension.width)
            figures = (
                (self.name, dimension.effective_rank, "dimensions"),
                ("d_eff_share", shares[-1], "share"),
                ("participation_ratio", dimension.participation_ratio, "dimensions"),
            )
            readings.extend(view.reading(signal, value, unit, group) for signal, value, unit in figures)
        if shares:
            whole = view.reading(self.name, fmean(shares), "share")
        else:
            reason = "there is no prunable group to read"
            whole = view.without(self.name, "share", Status.NOT_APPLICABLE, reason)
        return memory, (*readings, whole)
