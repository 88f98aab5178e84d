"""Loops in the cloud of weights: persistent homology in degree one, against a null without structure.

Shape letters: n points, d coordinates, l landmarks, c clouds (the cloud, then null samples), m pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.geometry import column_permuted, condensed, maxmin_landmarks, scaled_distances
from tpsprune.numerics.peers import whole
from tpsprune.numerics.persistence import H1Summary
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.h1_worker import CountingError, LoopCounter
from tpsprune.signals.signal import AbstractSignal, Packed, Readings, View

NULL_SAMPLES: Final = 8
FEWEST_POINTS: Final = 4
SIGNALS: Final = (
    ("h1", "standard deviations"),
    ("h1_max", "mean distances"),
    ("h1_total", "mean distances"),
    ("h1_sum_of_squares", "squared mean distances"),
)
LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cloud_of(model: nn.Module, groups: Iterable[str]) -> tuple[str, Tensor] | None:
    """Return the name of the layer whose loops are counted, and its points ``points_nd``.

    The rows of the embedding with most rows, if there is one (where published work saw a ring form);
    else the incoming weights, one point per unit, of the prunable layer with the most units
    (``groups`` names them); else of whichever linear or convolutional layer has the most. The first
    of equals. ``None`` for a model without any of them.
    """
    modules = dict(model.named_modules())
    embeddings = {name: module for name, module in modules.items() if isinstance(module, nn.Embedding)}
    layers = {name: module for name, module in modules.items() if isinstance(module, LAYERS)}
    prunable = {name: layers[name] for name in groups if name in layers}
    for candidates in (embeddings, prunable, layers):
        if candidates:
            name = max(candidates, key=lambda each: len(candidates[each].weight))
            return name, whole(candidates[name].weight.detach()).flatten(1)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A pending request: the clouds' condensed distances, and the step and epoch of the reading."""

    clouds_cm: Tensor
    points: int
    step: int
    epoch: float
    of: str


@dataclass(frozen=True, slots=True, eq=False)
class H1Memory:
    """Rounds seen, the landmarks of the cloud of that name and size, the null's longest loops, and a request.

    ``number`` identifies the request to the counter of this process.
    """

    rounds: int = 0
    draws: int = 0
    name: str = ""
    size: int = 0
    landmarks_l: Tensor | None = None
    null: tuple[float, ...] = ()
    pending: Request | None = None
    number: int = 0


@final
class H1(AbstractSignal[H1Memory]):
    """Reads the loops of ``cloud_of`` the model, on ``points`` landmarks at most, chosen once and kept.

    Distances are over their mean, so the length of the weights does not show. ``h1_max``, ``h1_total`` and
    ``h1_sum_of_squares`` sum up the lifetimes; ``h1`` is z of the longest against the null, the same
    landmarks with every coordinate shuffled: (max − mean) / standard deviation over the last eight null
    samples. The first reading samples eight, each later one a single new one (a quarter of the cost of
    eight), so the null follows the weights with a lag of eight readings. Levels on
    different landmarks do not compare: when the number of points changes, landmarks and null are reset.

    A request of one round is always collected in the next (or by ``finish``), in line or from the process
    that counts (``LoopCounter``), waiting if need be: neither the machine's speed nor where loops are
    counted changes when a reading comes. Readings bear the step of their request.

    Cost of a reading of 128 points: 2 ms here and 10 to 40 ms of counting (256 points: 7 and 50 to 250).
    Once: eight null samples instead of one.

    Source: Tang et al. 2026 (arXiv 2605.06352) for embedding rows; scale, landmarks and null are ours.
    """

    name = "h1"

    def __init__(self, *, points: int, every: int, seed: int, counter: LoopCounter) -> None:
        self.points = points
        self.every = every
        self.seed = seed
        self.counter = counter

    def start(self) -> H1Memory:
        """Return a memory without landmarks."""
        self.counter.prepare(self.points)
        return H1Memory()

    def step(self, memory: H1Memory, view: View) -> tuple[H1Memory, Readings]:
        """Collect the request of the round before, and make the next one where it is due."""
        memory, readings = self.finish(memory)
        is_due = self.looks(memory)
        memory = replace(memory, rounds=memory.rounds + 1)
        if not is_due:
            return memory, readings
        found = cloud_of(view.model, view.consumers)
        status = Status.NOT_APPLICABLE
        if found is None:
            reason = "the model has no layer of points"
        elif len(found[1]) < FEWEST_POINTS:
            reason = f"{len(found[1])} points of {found[0]} cannot make a loop"
        elif not found[1].isfinite().all():
            status, reason = Status.NOT_FINITE, f"the weights of {found[0]} are not finite"
        else:
            return self._request(memory, view, *found), readings
        return memory, readings + _without(view.step, view.epoch, status, reason)

    def looks(self, memory: H1Memory) -> bool:
        """Return whether a request is due."""
        return memory.rounds % self.every == 0

    def attend(self, view: View) -> None:
        """Take part in gathering the points; the first process counts."""
        cloud_of(view.model, view.consumers)

    def finish(self, memory: H1Memory) -> tuple[H1Memory, Readings]:
        """Collect the pending request, if any."""
        request = memory.pending
        if request is None:
            return memory, ()
        number = memory.number if self.counter.holds(memory.number) else self._send(request)
        memory = replace(memory, pending=None)
        try:
            cloud, *null = self.counter.collect(number)
        except CountingError as error:
            return memory, _without(request.step, request.epoch, Status.NOT_APPLICABLE, str(error))
        lifetimes = (*memory.null, *(each.max_lifetime for each in null))[-NULL_SAMPLES:]
        return replace(memory, null=lifetimes), _readings(request, cloud, lifetimes)

    def _request(self, memory: H1Memory, view: View, name: str, points_nd: Tensor) -> H1Memory:
        if memory.landmarks_l is None or (memory.name, memory.size) != (name, len(points_nd)):
            landmarks_l = maxmin_landmarks(points_nd, self.points, self.seed % len(points_nd))
            memory = replace(memory, name=name, size=len(points_nd), landmarks_l=landmarks_l, null=())
        else:
            landmarks_l = memory.landmarks_l.to(points_nd.device)
        points_ld = points_nd[landmarks_l]
        samples = 1 if len(memory.null) == NULL_SAMPLES else NULL_SAMPLES - len(memory.null)
        null = (
            column_permuted(points_ld, torch.Generator().manual_seed(self._null_seed(sample)))
            for sample in range(memory.draws, memory.draws + samples)
        )
        request = Request(
            clouds_cm=torch.stack([condensed(scaled_distances(each)) for each in (points_ld, *null)]).cpu(),
            points=len(points_ld),
            step=view.step,
            epoch=view.epoch,
            of=f"{len(points_ld)} of {len(points_nd)} points of {name}",
        )
        return replace(memory, draws=memory.draws + samples, pending=request, number=self._send(request))

    def _null_seed(self, sample: int) -> int:
        return (self.seed * 1_000_003 + sample) % 2**63

    def _send(self, request: Request) -> int:
        return self.counter.submit(request.clouds_cm.numpy(), request.points, request.step)

    def pack(self, memory: H1Memory) -> Packed:
        """Return landmarks and the request's distances as tensors; the rest as JSON values."""
        values: dict[str, Any] = {name: getattr(memory, name) for name in ("rounds", "draws", "name", "size")}
        values |= {"null": list(memory.null), "pending": None}
        tensors = {} if memory.landmarks_l is None else {"landmarks": memory.landmarks_l}
        if memory.pending is not None:
            tensors["pending"] = memory.pending.clouds_cm
            values["pending"] = {
                name: getattr(memory.pending, name) for name in ("points", "step", "epoch", "of")
            }
        return tensors, values

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> H1Memory:
        """Rebuild the memory; a pending request is sent again when it is collected."""
        pending = values["pending"]
        return H1Memory(
            **{name: values[name] for name in ("rounds", "draws", "name", "size")},
            landmarks_l=tensors.get("landmarks"),
            null=tuple(values["null"]),
            pending=pending and Request(clouds_cm=tensors["pending"].cpu(), **pending),
        )


def _readings(request: Request, cloud: H1Summary, null: tuple[float, ...]) -> Readings:
    spread = stdev(null)
    z = (cloud.max_lifetime - fmean(null)) / spread if spread else None
    figures = (z, cloud.max_lifetime, cloud.total, cloud.sum_of_squares)
    return tuple(
        Reading(
            signal=signal,
            step=request.step,
            epoch=request.epoch,
            value=value,
            unit=unit,
            status=Status.NOT_APPLICABLE if value is None else Status.OK,
            reason="the null has no spread" if value is None else request.of,
        )
        for (signal, unit), value in zip(SIGNALS, figures, strict=True)
    )


def _without(step: int, epoch: float, status: Status, reason: str) -> Readings:
    return tuple(
        Reading(signal=signal, step=step, epoch=epoch, value=None, unit=unit, status=status, reason=reason)
        for signal, unit in SIGNALS
    )
