"""All signals of a run, read together."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias, assert_never, final

from torch import Tensor

from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.recipe.train import Signal, Watch
from tpsprune.records import dump, load
from tpsprune.records.readings import Reading
from tpsprune.signals.classes import NeuralCollapse
from tpsprune.signals.curvature import HessianSpectrum
from tpsprune.signals.h1 import H1
from tpsprune.signals.h1_worker import LoopCounter
from tpsprune.signals.intrinsic_dimension import IntrinsicDimension
from tpsprune.signals.representations import Collapse, DEff, LogitRank
from tpsprune.signals.signal import AbstractMemoryless, AbstractSignal, Packed, Readings, View
from tpsprune.signals.updates import CommutatorDefect, SpectralEdge
from tpsprune.signals.weights import Condensation, MaskDistance, Norm

Memories: TypeAlias = Mapping[str, Any]


@final
class Panel:
    """The signals that a recipe's ``[watch]`` names, and the counter of loops that they share.

    A panel holds settings and that counter, which may have a process; what is remembered between readings is
    a value (``Memories``, by signal), passed in and returned. Use it as a context manager, or ``close`` it.

    Of several processes each reads some of the signals, of a model that is the same in all, and all get the
    readings of all; those with a memory are the first process's, which writes the checkpoint. Of a model that
    is ``spread`` over them the first one reads all signals, and the others take part.
    """

    def __init__(
        self,
        signals: tuple[AbstractSignal[Any], ...],
        counter: LoopCounter,
        peers: AbstractPeers = ALONE,
        *,
        spread: bool = False,
    ) -> None:
        self.names = tuple(each.name for each in signals)
        without = [each.name for each in signals if isinstance(each, AbstractMemoryless)]
        last = peers.size - 1
        reader = {name: (last - place) % peers.size for place, name in enumerate(without) if not spread}
        self.signals = tuple(each for each in signals if reader.get(each.name, 0) == peers.rank)
        """Those that this process reads."""
        self._attended = signals if spread and not peers.is_first else ()
        self._spread = spread
        self._counter = counter
        self._peers = peers

    @classmethod
    def of(cls, settings: Watch, seed: int, peers: AbstractPeers = ALONE, *, spread: bool = False) -> Panel:
        """Build the signals of ``settings``; ``seed`` decides landmarks, null samples and sketch."""
        counter = LoopCounter()
        signals = tuple(_signal(name, settings, seed, counter) for name in settings.signals)
        return cls(signals, counter, peers, spread=spread)

    @property
    def worker_cpu_seconds(self) -> float:
        """Processor time of the process that counts loops, as last reported."""
        return self._counter.process_cpu_seconds

    def start(self) -> Memories:
        """Return the memories before the first reading."""
        return {signal.name: signal.start() for signal in self.signals}

    def read(self, memories: Memories, view: View) -> tuple[Memories, Readings]:
        """Read every signal once; loops come one round late, with the step at which they were requested."""
        if self._spread:
            looking = self._peers.first(
                lambda: [each.name for each in self.signals if each.looks(memories[each.name])]
            )
            for each in self._attended:
                if each.name in looking:
                    each.attend(view)
        return self._gather({each.name: each.step(memories[each.name], view) for each in self.signals})

    def finish(self, memories: Memories) -> tuple[Memories, Readings]:
        """Return the readings that are still to come."""
        return self._gather({each.name: each.finish(memories[each.name]) for each in self.signals})

    def pack(self, memories: Memories) -> Packed:
        """Return the memories as tensors, named ``signal.tensor``, and plain JSON values by signal."""
        packed = {signal.name: signal.pack(memories[signal.name]) for signal in self.signals}
        tensors = {f"{name}.{key}": each for name, (own, _) in packed.items() for key, each in own.items()}
        return tensors, {name: packed[name][1] if name in packed else {} for name in self.names}

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Memories:
        """Rebuild the memories from what ``pack`` of a panel with the same settings made of them."""
        memories: dict[str, Any] = {}
        for signal in self.signals:
            prefix = f"{signal.name}."
            own = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
            memories[signal.name] = signal.unpack(own, values[signal.name])
        return memories

    def _gather(self, steps: Mapping[str, tuple[Any, Readings]]) -> tuple[Memories, Readings]:
        memories = {name: memory for name, (memory, _) in steps.items()}
        found = {name: readings for name, (_, readings) in steps.items()}
        if self._peers.size > 1:
            told = {name: [dump(each) for each in readings] for name, readings in found.items()}
            found = {
                name: tuple(load(Reading, each) for each in readings)
                for own in self._peers.gather(told)
                for name, readings in own.items()
            }
        return memories, tuple(reading for name in self.names for reading in found[name])

    def close(self) -> None:
        """End the process that counts loops; a pending request is sent again by the next reading."""
        self._counter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _signal(name: Signal, settings: Watch, seed: int, counter: LoopCounter) -> AbstractSignal[Any]:
    match name:
        case "d_eff":
            return DEff()
        case "h1":
            return H1(points=settings.h1_points, every=settings.h1_every, seed=seed, counter=counter)
        case "spectral_edge":
            return SpectralEdge(window=settings.edge_window, seed=seed, of=settings.edge_parameters)
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
        case "neural_collapse":
            return NeuralCollapse()
        case "commutator_defect":
            return CommutatorDefect(training=settings.commutator_mode == "training")
        case "intrinsic_dimension":
            return IntrinsicDimension()
        case "hessian":
            return HessianSpectrum()
        case _:
            assert_never(name)
