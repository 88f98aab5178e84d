"""Condensation: how many units of a group a twin could replace.

Shape letters: u units of a group, d weights into a unit, its bias included.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional

from tpsprune.numerics.moments import unit_rows
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["Condensation", "condensed_share"]

NEARLY: Final = 0.02
"""How far |cos| of two twins may be from 1: eleven degrees."""


def condensed_share(rows_ud: Tensor, tolerance: float = NEARLY) -> float:
    """Return the share of units that could go because a twin stays, from 0 to 1 − 1/u.

    Units whose incoming weights (bias included) point the same or the opposite way, |cos| ≥ 1 − tolerance,
    are twins, and so are twins of twins; one of each family stays, u − families could go. Units without any
    weight are twins of each other. Invariant to permuting units and inputs, to the length and sign of any
    unit's weights. A twin replaces the other exactly where the activation is homogeneous (and odd, for the
    opposite way) and nothing norms over units; the number of families sees neither. Weights that are not
    finite give NaN.

    Cost: u²·d.

    Source: Xu, Zhang and Zhou 2025 (arXiv 2504.09484); the share and twins of twins are ours.
    """
    if not bool(rows_ud.isfinite().all()):
        return torch.nan
    unit_ud = functional.normalize(rows_ud, dim=1)
    silent_u = rows_ud.abs().amax(1) == 0
    twins_uu = (unit_ud @ unit_ud.T).abs() >= 1 - tolerance
    twins_uu |= (silent_u[:, None] & silent_u) | torch.eye(len(rows_ud), dtype=torch.bool).to(twins_uu.device)
    label_u = torch.arange(len(rows_ud), device=rows_ud.device)
    while True:  # The lowest number of a family spreads from twin to twin.
        spread_u = torch.where(twins_uu, label_u, len(label_u)).amin(1)
        if torch.equal(spread_u, label_u):
            return 1 - len(torch.unique(label_u)) / len(label_u)
        label_u = spread_u


@final
class Condensation(AbstractMemoryless):
    """Reads ``condensation`` of every group (``condensed_share``) and, for the model, their mean."""

    name = "condensation"

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read every group, then their mean."""
        readings, shares = [], {}
        for group, parts in view.written.items():
            if not parts:  # A packed attention, a bare parameter.
                reason = "no weight or bias of a layer puts its units out"
                readings.append(view.without(self.name, "share", Status.NOT_APPLICABLE, reason, group))
                continue
            shares[group] = condensed_share(unit_rows(view.model, parts))
            readings.append(view.reading(self.name, shares[group], "share", group))
        if not shares:
            reason = "there is no prunable group to read"
            none = view.without(self.name, "share", Status.NOT_APPLICABLE, reason)
            return memory, (*readings, none)
        return memory, (*readings, view.reading(self.name, fmean(shares.values()), "share"))
