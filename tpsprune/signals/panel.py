"""All signals of a run, read together."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias, assert_never, final

from torch import Tensor

from tpsprune.recipe.train import Signal, Watch
from tpsprune.records.readings import Reading
from tpsprune.signals.collapse import Collapse
from tpsprune.signals.commutator import CommutatorDefect
from tpsprune.signals.condensation import Condensation
from tpsprune.signals.d_eff import DEff
from tpsprune.signals.h1 import H1
from tpsprune.signals.h1_worker import H1Worker
from tpsprune.signals.logit_rank import LogitRank
from tpsprune.signals.mask_distance import MaskDistance
from tpsprune.signals.norm import Norm
from tpsprune.signals.signal import AbstractSignal, Packed, Readings, View
from tpsprune.signals.spectral_edge import SpectralEdge

__all__ = ["Memories", "Panel"]

Memories: TypeAlias = Mapping[str, Any]


@final
class Panel:
    """The signals that a recipe's ``[watch]`` names, and the process that counts loops for them.

    A panel holds settings and that process; what is remembered between readings is a value (``Memories``,
    by signal), handed in and out. Use it as a context manager, or ``close`` it.
    """

    def __init__(self, signals: tuple[AbstractSignal[Any], ...], worker: H1Worker) -> None:
        self.signals = signals
        self._worker = worker

    @classmethod
    def of(cls, settings: Watch, seed: int) -> Panel:
        """Set the signals up as ``settings`` say; ``seed`` decides landmarks, null draws and sketch."""
        worker = H1Worker()
        return cls(tuple(_signal(name, settings, seed, worker) for name in settings.signals), worker)

    @property
    def worker_cpu_seconds(self) -> float:
        """Processor time of the process that counts loops, as far as it has told."""
        return self._worker.cpu_seconds

    def start(self) -> Memories:
        """Return the memories before the first reading."""
        return {signal.name: signal.start() for signal in self.signals}

    def read(self, memories: Memories, view: View) -> tuple[Memories, Readings]:
        """Read every signal once; loops come one round late, with the step at which they were asked."""
        later: dict[str, Any] = {}
        readings: list[Reading] = []
        for signal in self.signals:
            later[signal.name], found = signal.step(memories[signal.name], view)
            readings.extend(found)
        return later, tuple(readings)

    def finish(self, memories: Memories) -> tuple[Memories, Readings]:
        """Return the readings that are still on their way."""
        later: dict[str, Any] = {}
        readings: list[Reading] = []
        for signal in self.signals:
            later[signal.name], found = signal.finish(memories[signal.name])
            readings.extend(found)
        return later, tuple(readings)

    def pack(self, memories: Memories) -> Packed:
        """Return the memories as tensors, named ``signal.tensor``, and plain JSON values by signal."""
        packed = {signal.name: signal.pack(memories[signal.name]) for signal in self.signals}
        tensors = {f"{name}.{key}": each for name, (own, _) in packed.items() for key, each in own.items()}
        return tensors, {name: plain for name, (_, plain) in packed.items()}

    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Memories:
        """Rebuild the memories from what ``pack`` of a panel with the same settings made of them."""
        memories: dict[str, Any] = {}
        for signal in self.signals:
            prefix = f"{signal.name}."
            own = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
            memories[signal.name] = signal.unpack(own, plain[signal.name])
        return memories

    def close(self) -> None:
        """End the process that counts loops; what it was still asked is asked again if read on."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _signal(name: Signal, settings: Watch, seed: int, worker: H1Worker) -> AbstractSignal[Any]:
    match name:
        case "d_eff":
            return DEff()
        case "h1":
            return H1(points=settings.h1_points, every=settings.h1_every, seed=seed, worker=worker)
        case "spectral_edge":
            return SpectralEdge(window=settings.edge_window, seed=seed)
        case "norm":
            return Norm()
        case "mask_distance":
            return MaskDistance()
        case "condensation":
            return Condensation()
        case "collapse":
            return Collapse()
        case "logit_rank":
            return LogitRank(share=settings.rank_share)
        case "commutator_defect":
            return CommutatorDefect()
        case _:
            assert_never(name)
