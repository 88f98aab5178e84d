"""Loops in the cloud of weights: persistent homology in degree one, against a null without structure.

Shape letters: n points, d coordinates, l landmarks, c clouds (the cloud, then null draws), m pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Final, final

import torch
from torch import Tensor

from tpsprune.numerics.geometry import column_permuted, condensed, maxmin_landmarks, scaled_distances
from tpsprune.numerics.persistence import H1Summary
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.h1_cloud import cloud_of
from tpsprune.signals.h1_worker import H1Worker, WorkerError
from tpsprune.signals.signal import AbstractSignal, Packed, Readings, View

__all__ = ["H1", "H1Memory", "Request"]

NULL_DRAWS: Final = 8
FEWEST_POINTS: Final = 4
SIGNALS: Final = (
    ("h1", "standard deviations"),
    ("h1_max", "mean distances"),
    ("h1_total", "mean distances"),
    ("h1_sum_of_squares", "squared mean distances"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What has been asked and not yet been read: the clouds' condensed distances, and the moment."""

    clouds_cm: Tensor
    points: int
    step: int
    epoch: float
    of: str


@dataclass(frozen=True, slots=True, eq=False)
class H1Memory:
    """Rounds seen, the landmarks of the cloud of that name and size, the null's longest loops, and a request.

    ``number`` is under which the worker of this process may know the request.
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
    """Reads the loops of ``cloud_of`` the model, on ``points`` landmarks at most, drawn once and kept.

    Distances are over their mean, so the length of the weights does not show. ``h1_max``, ``h1_total`` and
    ``h1_sum_of_squares`` sum up the lifetimes; ``h1`` is z of the longest against the null, the same
    landmarks with every coordinate shuffled: (max − mean) / standard deviation over the last eight null
    draws. The first reading draws eight, each later one a single fresh draw (a quarter of the cost of
    drawing eight anew), so the null follows the weights with a lag of eight readings. Levels on
    different landmarks do not compare: when the number of points changes, landmarks and null start anew.

    Loops are counted in a process of its own. What is asked in one round is collected in the next round
    (or by ``finish``), always, waiting if need be: when an answer comes does not depend on how quick
    the machine is. Readings bear the step at which they were asked.

    Cost of a reading of 128 points: 2 ms here and 14 to 40 ms of the worker's processor time (256 points: 7
    and 130 to 170). Once: 0.1 s to start the worker, and eight null draws instead of one.

    Source: Tang et al. 2026 (arXiv 2605.06352) for embedding rows; scale, landmarks and null are ours.
    """

    name = "h1"

    def __init__(self, *, points: int, every: int, seed: int, worker: H1Worker) -> None:
        self.points = points
        self.every = every
        self.seed = seed
        self.worker = worker

    def start(self) -> H1Memory:
        """Return a memory without landmarks; the worker starts, so as to be ready by the first reading."""
        self.worker.start()
        return H1Memory()

    def step(self, memory: H1Memory, view: View) -> tuple[H1Memory, Readings]:
        """Collect what was asked in the round before, and ask anew if it is the turn."""
        memory, readings = self.finish(memory)
        turn = memory.rounds % self.every == 0
        memory = replace(memory, rounds=memory.rounds + 1)
        if not turn:
            return memory, readings
        found = cloud_of(view.model, view.consumers)
        if found is None:
            return memory, readings + _without(
                view.step, view.epoch, Status.NOT_APPLICABLE, "the model has no layer of points"
            )
        name, points_nd = found
        if len(points_nd) < FEWEST_POINTS:
            reason = f"{len(points_nd)} points of {name} cannot make a loop"
            return memory, readings + _without(view.step, view.epoch, Status.NOT_APPLICABLE, reason)
        if not points_nd.isfinite().all():
            reason = f"the weights of {name} are not finite"
            return memory, readings + _without(view.step, view.epoch, Status.NOT_FINITE, reason)
        return self._ask(memory, view, name, points_nd), readings

    def finish(self, memory: H1Memory) -> tuple[H1Memory, Readings]:
        """Collect what has been asked, if anything."""
        request = memory.pending
        if request is None:
            return memory, ()
        number = memory.number if self.worker.is_on(memory.number) else self._send(request)
        memory = replace(memory, pending=None)
        try:
            cloud, *null = self.worker.answer(number)
        except WorkerError as error:
            return memory, _without(request.step, request.epoch, Status.NOT_APPLICABLE, str(error))
        lifetimes = (*memory.null, *(each.max_lifetime for each in null))[-NULL_DRAWS:]
        return replace(memory, null=lifetimes), _readings(request, cloud, lifetimes)

    def _ask(self, memory: H1Memory, view: View, name: str, points_nd: Tensor) -> H1Memory:
        if memory.landmarks_l is None or (memory.name, memory.size) != (name, len(points_nd)):
            start = self.seed % len(points_nd)
            landmarks_l = maxmin_landmarks(points_nd, self.points, start)
            memory = replace(memory, name=name, size=len(points_nd), landmarks_l=landmarks_l, null=())
        else:
            landmarks_l = memory.landmarks_l.to(points_nd.device)
        points_ld = points_nd[landmarks_l]
        draws = 1 if len(memory.null) == NULL_DRAWS else NULL_DRAWS - len(memory.null)
        null = (
            column_permuted(points_ld, torch.Generator().manual_seed(self._null_seed(draw)))
            for draw in range(memory.draws, memory.draws + draws)
        )
        request = Request(
            clouds_cm=torch.stack([condensed(scaled_distances(each)) for each in (points_ld, *null)]).cpu(),
            points=len(points_ld),
            step=view.step,
            epoch=view.epoch,
            of=f"{len(points_ld)} of {len(points_nd)} points of {name}",
        )
        return replace(memory, draws=memory.draws + draws, pending=request, number=self._send(request))

    def _null_seed(self, draw: int) -> int:
        return (self.seed * 1_000_003 + draw) % 2**63

    def _send(self, request: Request) -> int:
        return self.worker.ask(request.clouds_cm.numpy(), request.points)

    def pack(self, memory: H1Memory) -> Packed:
        """Return landmarks and the request's distances as tensors; all else as plain values."""
        tensors = {} if memory.landmarks_l is None else {"landmarks": memory.landmarks_l}
        plain: dict[str, Any] = {
            "rounds": memory.rounds,
            "draws": memory.draws,
            "name": memory.name,
            "size": memory.size,
            "null": list(memory.null),
            "pending": None,
        }
        if memory.pending is not None:
            request = memory.pending
            tensors["pending"] = request.clouds_cm
            plain["pending"] = {
                "points": request.points,
                "step": request.step,
                "epoch": request.epoch,
                "of": request.of,
            }
        return tensors, plain

    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> H1Memory:
        """Rebuild the memory; a request in it is asked again when it is collected."""
        asked = plain["pending"]
        return H1Memory(
            rounds=plain["rounds"],
            draws=plain["draws"],
            name=plain["name"],
            size=plain["size"],
            landmarks_l=tensors.get("landmarks"),
            null=tuple(plain["null"]),
            pending=asked and Request(clouds_cm=tensors["pending"].cpu(), **asked),
        )


def _readings(request: Request, cloud: H1Summary, null: tuple[float, ...]) -> Readings:
    spread = stdev(null)
    figures = (
        (cloud.max_lifetime - fmean(null)) / spread if spread else None,
        cloud.max_lifetime,
        cloud.total,
        cloud.sum_of_squares,
    )
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
