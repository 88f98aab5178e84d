"""The spectral edge: how far the leading directions of the last updates stand out from the rest.

Shape letters: s snapshots, w = s − 1 updates, p numbers of a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.geometry import signed_fold
from tpsprune.numerics.spectra import edge, gap_23, row_spectrum
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import AbstractSignal, Packed, Readings, View

__all__ = ["EdgeMemory", "SpectralEdge", "snapshot"]

EXACT_BELOW = 10**6
CLEAR_STEPS = 10


def snapshot(model: nn.Module, seed: int) -> Tensor:
    """Return the trainable parameters as one vector in float32: all of them below 10⁶, else a signed fold.

    Both are linear, so differences of snapshots are (sketches of) updates.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if sum(parameter.numel() for parameter in parameters) < EXACT_BELOW:
        flat = [parameter.detach().reshape(-1).to(torch.float32) for parameter in parameters]
        return torch.cat(flat) if flat else torch.empty(0)
    return signed_fold(parameters, seed=seed)


@dataclass(frozen=True, slots=True, eq=False)
class EdgeMemory:
    """The last snapshots with their steps, and the parameter shapes under which they were taken."""

    shapes: tuple[tuple[int, ...], ...] = ()
    steps: tuple[int, ...] = ()
    snapshots: tuple[Tensor, ...] = ()


@final
class SpectralEdge(AbstractSignal[EdgeMemory]):
    """Reads the singular values σ of the last ``window`` updates between readings, not centred.

    ``spectral_edge``: σ_k / σ_{k+1} at the k ≤ window / 2 where it is largest; ``spectral_edge_k``: that k;
    ``gap_23``: σ₂² − σ₃². Until ``window`` updates have been seen, and again after a cut has changed the
    parameters' shapes, they are not yet defined.

    Readings fewer than ten steps apart say so in their reason: between such snapshots the optimizer's
    momentum alone makes a ratio of up to 1.8 out of noise (1.04 at ten steps apart, 1.01 at 25). Beyond 10⁶
    parameters σ come from a sketch, within about 4 %.

    Cost: one read of the parameters, then window² multiply-adds for each number of a snapshot: 4 ms at 5·10⁴
    parameters, 50 at 9·10⁵, 5 at 5·10⁶ (sketched). Keeps window + 1 snapshots, 44 MB at the most by default.

    Source: Xu 2026 (arXiv 2603.15678 and 2603.28964).
    """

    name = "spectral_edge"

    def __init__(self, *, window: int, seed: int) -> None:
        self.window = window
        self.seed = seed

    def start(self) -> EdgeMemory:
        """Return a memory without snapshots."""
        return EdgeMemory()

    def step(self, memory: EdgeMemory, view: View) -> tuple[EdgeMemory, Readings]:
        """Take a snapshot, and read the window once it is full."""
        shapes = tuple(tuple(each.shape) for each in view.model.parameters() if each.requires_grad)
        if memory.shapes != shapes:
            memory = EdgeMemory(shapes)
        kept = self.window + 1
        now_p = snapshot(view.model, self.seed)
        memory = EdgeMemory(
            shapes,
            (*memory.steps, view.step)[-kept:],
            (*memory.snapshots, now_p)[-kept:],
        )
        updates = len(memory.snapshots) - 1
        if updates < self.window:
            reason = f"{updates} of {self.window} updates seen"
            return memory, _without(view, Status.NOT_YET, reason)
        snapshots = [each.to(now_p.device) for each in memory.snapshots]
        updates_wp = torch.stack([later - earlier for earlier, later in pairwise(snapshots)])
        sigma_w = row_spectrum(updates_wp)
        if not sigma_w.isfinite().all():
            return memory, _without(view, Status.NOT_FINITE, "an update is not finite")
        found = edge(sigma_w, self.window // 2)
        if not found.k:
            return memory, _without(view, Status.NOT_APPLICABLE, "the parameters have not moved")
        figures = (found.ratio, float(found.k), float(gap_23(sigma_w)))
        return memory, tuple(
            Reading(
                signal=signal,
                step=view.step,
                epoch=view.epoch,
                value=value,
                unit=unit,
                reason=_caveat(memory.steps),
            )
            for (signal, unit), value in zip(SIGNALS, figures, strict=True)
        )

    def pack(self, memory: EdgeMemory) -> Packed:
        """Return the snapshots as one tensor; shapes and steps as lists."""
        tensors = {"snapshots": torch.stack(memory.snapshots)} if memory.snapshots else {}
        return tensors, {"shapes": [list(shape) for shape in memory.shapes], "steps": list(memory.steps)}

    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> EdgeMemory:
        """Rebuild the memory; snapshots go to the model's device when next read."""
        return EdgeMemory(
            shapes=tuple(tuple(shape) for shape in plain["shapes"]),
            steps=tuple(plain["steps"]),
            snapshots=tuple(tensors["snapshots"].unbind()) if "snapshots" in tensors else (),
        )


SIGNALS = (("spectral_edge", "ratio"), ("spectral_edge_k", "place"), ("gap_23", "squared length"))


def _caveat(steps: tuple[int, ...]) -> str:
    nearest = min(later - earlier for earlier, later in pairwise(steps))
    if nearest >= CLEAR_STEPS:
        return ""
    return f"snapshots {nearest} steps apart: momentum alone can make a ratio of 1.8"


def _without(view: View, status: Status, reason: str) -> Readings:
    return tuple(view.without(signal, unit, status, reason) for signal, unit in SIGNALS)
