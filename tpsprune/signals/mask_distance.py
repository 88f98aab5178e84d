"""Mask distance: whether the units that magnitude would keep are still changing (Early-Bird).

Shape letters: n units of all groups, u units of a group, m masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from tpsprune.numerics.moments import unit_rows
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractSignal, Packed, Readings, View

__all__ = ["MaskDistance", "MaskMemory", "kept_mask", "mask_distance"]

MASKS: Final = 5
KEPT_SHARE: Final = 0.5


def kept_mask(scores: list[Tensor], kept_share: float, *, together: bool) -> Tensor:
    """Return ``mask_n``: which units are among the highest scores, of all groups ``together`` or of each.

    Of equal scores the first unit is taken. At least one unit is kept.
    """
    if together:
        scores = [torch.cat(scores)]
    masks = []
    for scores_u in scores:
        count = max(1, round(kept_share * len(scores_u)))
        mask_u = torch.zeros(len(scores_u), dtype=torch.bool, device=scores_u.device)
        mask_u[scores_u.argsort(descending=True, stable=True)[:count]] = True
        masks.append(mask_u)
    return torch.cat(masks)


def mask_distance(masks_mn: Tensor) -> float:
    """Return the largest share of units in which the last mask differs from one of those before.

    A normalised Hamming distance, from 0 (nothing has changed) to 1. It sees neither which units changed
    nor by how much their scores did.
    """
    return float((masks_mn[:-1] != masks_mn[-1]).float().mean(1).amax())


@dataclass(frozen=True, slots=True, eq=False)
class MaskMemory:
    """The last masks, and the widths of the groups under which they were drawn."""

    widths: tuple[int, ...] = ()
    masks: tuple[Tensor, ...] = ()


@final
class MaskDistance(AbstractSignal[MaskMemory]):
    """Reads ``mask_distance`` over the last five masks of the half of the units with the highest scores.

    A unit's score is the size of its batch norm's scale, and one threshold goes through all groups, where
    every group is under a batch norm, as published; else it is the length of the weights into the unit, and
    half of each group is kept. Not yet defined before the fifth mask, and again after a cut.
    Published work draws a ticket once this is below 0.1, one mask an epoch; closer masks differ less.

    Cost: one read of the parameters of the groups. Source: You et al. 2020, "Drawing Early-Bird Tickets"
    (arXiv 1909.11957), section 3.2.
    """

    name = "mask_distance"

    def start(self) -> MaskMemory:
        """Return a memory without masks."""
        return MaskMemory()

    def step(self, memory: MaskMemory, view: View) -> tuple[MaskMemory, Readings]:
        """Draw a mask and hold it against those before."""
        groups = [group for group, parts in view.written.items() if parts]
        if not groups:
            return memory, _without(view, Status.NOT_APPLICABLE, "there is no prunable group to read")
        scaled = all(view.scaled.get(group) for group in groups)
        parts = [view.scaled[group] if scaled else view.written[group] for group in groups]
        scores = [torch.linalg.vector_norm(unit_rows(view.model, each), dim=1) for each in parts]
        if not all(bool(scores_u.isfinite().all()) for scores_u in scores):
            return memory, _without(view, Status.NOT_FINITE, "a weight or scale is not finite")
        widths = tuple(map(len, scores))
        if widths != memory.widths:
            memory = MaskMemory(widths)
        mask_n = kept_mask(scores, KEPT_SHARE, together=scaled).cpu()
        memory = MaskMemory(widths, (*memory.masks, mask_n)[-MASKS:])
        if len(memory.masks) < MASKS:
            reason = f"{len(memory.masks)} of {MASKS} masks drawn"
            return memory, _without(view, Status.NOT_YET, reason)
        value = mask_distance(torch.stack(memory.masks))
        return memory, (view.reading(self.name, value, "share"),)

    def pack(self, memory: MaskMemory) -> Packed:
        """Return the masks as one tensor, the widths as a list."""
        tensors = {"masks": torch.stack(memory.masks)} if memory.masks else {}
        return tensors, {"widths": list(memory.widths)}

    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> MaskMemory:
        """Rebuild the memory."""
        masks = tuple(tensors["masks"].cpu().unbind()) if "masks" in tensors else ()
        return MaskMemory(tuple(plain["widths"]), masks)


def _without(view: View, status: Status, reason: str) -> Readings:
    return (view.without("mask_distance", "share", status, reason),)
