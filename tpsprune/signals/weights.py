"""Signals of the weights alone, without data: the mask that magnitude would keep, condensation, length.

Shape letters: n units of all groups, u units of a group, m masks, d weights into a unit, its bias included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.moments import unit_rows
from tpsprune.numerics.peers import whole
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, AbstractSignal, Packed, Readings, View

MASKS: Final = 5
KEPT_SHARE: Final = 0.5
NEARLY: Final = 0.02
"""How far |cos| of two twins may be from 1: eleven degrees."""
NO_GROUP: Final = "there is no prunable group to read"


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
    """The last masks, and the widths of the groups under which they were taken."""

    widths: tuple[int, ...] = ()
    masks: tuple[Tensor, ...] = ()


@final
class MaskDistance(AbstractSignal[MaskMemory]):
    """Reads ``mask_distance`` over the last five masks of the half of the units with the highest scores.

    Whether the units that magnitude would keep still change. A unit's score is the size of its batch norm's
    scale, and one threshold holds for all groups, where a batch norm follows every group, as published;
    else it is the length of the weights into the unit, and half of each group is kept. Not yet defined before
    the fifth mask, and again after pruning. Published work draws a ticket once this is below 0.1, one mask an
    epoch; closer masks differ less.

    Cost: one read of the parameters of the groups. Source: You et al. 2020, "Drawing Early-Bird Tickets"
    (arXiv 1909.11957), section 3.2.
    """

    name = "mask_distance"

    def start(self) -> MaskMemory:
        """Return a memory without masks."""
        return MaskMemory()

    def step(self, memory: MaskMemory, view: View) -> tuple[MaskMemory, Readings]:
        """Take a mask and compare it with those before."""
        groups = [group for group, parts in view.producers.items() if parts]
        if not groups:
            return memory, (view.without(self.name, "share", Status.NOT_APPLICABLE, NO_GROUP),)
        together = all(view.norm_scales.get(group) for group in groups)
        parts = [(view.norm_scales if together else view.producers)[group] for group in groups]
        scores = [torch.linalg.vector_norm(unit_rows(view.model, each), dim=1) for each in parts]
        if not all(bool(scores_u.isfinite().all()) for scores_u in scores):
            reason = "a weight or scale is not finite"
            return memory, (view.without(self.name, "share", Status.NOT_FINITE, reason),)
        widths = tuple(map(len, scores))
        before = memory.masks if widths == memory.widths else ()
        mask_n = kept_mask(scores, KEPT_SHARE, together=together).cpu()
        memory = MaskMemory(widths, (*before, mask_n)[-MASKS:])
        if len(memory.masks) < MASKS:
            reason = f"{len(memory.masks)} of {MASKS} masks taken"
            return memory, (view.without(self.name, "share", Status.NOT_YET, reason),)
        return memory, (view.reading(self.name, mask_distance(torch.stack(memory.masks)), "share"),)

    def pack(self, memory: MaskMemory) -> Packed:
        """Return the masks as one tensor, the widths as a list."""
        tensors = {"masks": torch.stack(memory.masks)} if memory.masks else {}
        return tensors, {"widths": list(memory.widths)}

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> MaskMemory:
        """Rebuild the memory."""
        masks = tuple(tensors["masks"].cpu().unbind()) if "masks" in tensors else ()
        return MaskMemory(tuple(values["widths"]), masks)


def condensed_share(weights_ud: Tensor, tolerance: float = NEARLY) -> float:
    """Return the share of units that a kept twin could replace, from 0 to 1 − 1/u.

    Units whose incoming weights (bias included) point the same or the opposite way, |cos| ≥ 1 − tolerance,
    are twins, and so are twins of twins; one of each family is kept, u − families could be pruned. Units
    without any weight are twins of each other. Invariant to permuting units and inputs, to the length and
    sign of any unit's weights. A twin replaces the other exactly where the activation is homogeneous (and
    odd, for the opposite way) and nothing norms over units; the number of families sees neither. Weights that
    are not finite give NaN.

    Cost: u²·d.

    Source: Xu, Zhang and Zhou 2025 (arXiv 2504.09484); the share and twins of twins are ours.
    """
    if not bool(weights_ud.isfinite().all()):
        return torch.nan
    unit_ud = functional.normalize(weights_ud, dim=1)
    zero_u = weights_ud.abs().amax(1) == 0
    twins_uu = (unit_ud @ unit_ud.T).abs() >= 1 - tolerance
    twins_uu |= (zero_u[:, None] & zero_u) | torch.eye(len(zero_u), dtype=torch.bool).to(twins_uu.device)
    label_u = torch.arange(len(zero_u), device=weights_ud.device)
    while True:  # The lowest number of a family spreads from twin to twin.
        spread_u = torch.where(twins_uu, label_u, len(label_u)).amin(1)
        if torch.equal(spread_u, label_u):
            return 1 - len(torch.unique(label_u)) / len(label_u)
        label_u = spread_u


@final
class Condensation(AbstractMemoryless):
    """Reads ``condensation`` of every group (``condensed_share``) and, for the model, their mean."""

    name = "condensation"

    def read(self, view: View) -> Readings:
        """Read every group, then their mean."""
        readings, shares = [], []
        for group, parts in view.producers.items():
            if not parts:  # A packed attention, a lone parameter.
                reason = "no weight or bias of a layer produces its units alone"
                readings.append(view.without(self.name, "share", Status.NOT_APPLICABLE, reason, group))
                continue
            shares.append(condensed_share(unit_rows(view.model, parts)))
            readings.append(view.reading(self.name, shares[-1], "share", group))
        if not shares:
            return (*readings, view.without(self.name, "share", Status.NOT_APPLICABLE, NO_GROUP))
        return (*readings, view.reading(self.name, fmean(shares), "share"))


def parameter_norm(model: nn.Module) -> Tensor:
    """Return ‖θ‖₂ over trainable parameters, shared ones once; zero without any.

    It does not see directions: a model that only turns keeps its norm. Cost: one read of the parameters.
    """
    lengths = [
        torch.linalg.vector_norm(whole(parameter.detach()), dtype=torch.float32)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    return torch.linalg.vector_norm(torch.stack(lengths)) if lengths else torch.zeros(())


@final
class Norm(AbstractMemoryless):
    """Reads ``norm`` (``parameter_norm``): the baseline that topology must beat."""

    name = "norm"

    def read(self, view: View) -> Readings:
        """Read the norm."""
        return (view.reading(self.name, float(parameter_norm(view.model)), ""),)
