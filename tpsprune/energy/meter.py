"""A meter: windows that open, close and never nest, each a record of what one span of work took."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never, final

from tpsprune.energy.machine import Stopwatch, finish_queued_work
from tpsprune.errors import MeterError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, EnergyMethod, Window
from tpsprune.records.energy import without_impossible


def build(settings: Energy, attempt: int) -> AbstractMeter:
    """Make the meter of the section ``[energy]``; ``attempt`` counts resumes from 0.

    The codecarbon meter takes one to three seconds here, once, to find out about the machine.

    Raises:
        MeterError: codecarbon cannot meter here, or would not meter as the recipe has it; or there are no
            windows to replay.
    """
    match settings.meter:
        case "codecarbon":
            from tpsprune.energy.codecarbon_meter import CodecarbonMeter

            return CodecarbonMeter(tracking=settings.tracking, pue=settings.pue, attempt=attempt)
        case "fake":
            from tpsprune.energy.fake import FakeMeter

            return FakeMeter(settings, attempt=attempt)
        case "replay":
            from tpsprune.energy.replay import ReplayMeter

            if settings.replay is None:
                raise MeterError("energy.replay: meter 'replay' needs the energy.jsonl of a run")
            return ReplayMeter(Path(settings.replay), attempt=attempt)
        case "none":
            return NoMeter(attempt=attempt)
        case _ as other:
            assert_never(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a meter counted over one window; ``fault`` in words makes the window invalid.

    ``started`` is empty where it is the time of opening; the rest is as in ``Window``.
    """

    seconds: float
    cpu_seconds: float
    joules: dict[str, float] = field(default_factory=dict)
    classes: dict[str, EnergyClass] = field(default_factory=dict)
    fault: str = ""
    started: str = ""
    machine_cpu_seconds: float | None = None
    steal_seconds: float | None = None
    gpu_celsius: float | None = None
    throttled: bool | None = None


class AbstractMeter(ABC):
    """One per process: ``with meter.window("train") as span: ...`` and then ``span.window``.

    Windows never nest, because a joule charged twice is worse than one not charged. ``attempt`` counts
    resumes of a run and is written into every window.
    """

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        self._counts: Counter[str] = Counter()
        self._phase = ""
        self._is_shut = False
        self._started = datetime.min.replace(tzinfo=UTC)

    def open(self, phase: str) -> None:
        """Open a window of ``phase``.

        Raises:
            MeterError: another window is open, or the meter is shut or cannot begin.
        """
        if self._is_shut:
            raise MeterError(f"cannot open a window of '{phase}': this meter is shut; build another")
        if self._phase:
            raise MeterError(
                f"cannot open a window of '{phase}' while one of '{self._phase}' is open: close that first"
            )
        self._phase = phase
        try:
            self._started = self._now()
            self._begin()
        except BaseException:
            self._phase = ""
            raise

    def close(self) -> Window:
        """Close the open window and return it.

        Raises:
            MeterError: no window is open, or the meter lost it.
        """
        if not self._phase:
            raise MeterError("no window is open")
        phase = self._phase
        try:
            count = self._end()
        finally:
            self._phase = ""
        index = self._counts[phase]
        self._counts[phase] += 1
        opened = self._started.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        counted = asdict(count) | {"started": count.started or opened, "valid": not count.fault}
        return without_impossible(Window(phase=phase, index=index, attempt=self._attempt, **counted))

    def window(self, phase: str) -> MeteredSpan:
        """Return a ``with`` block that opens a window and closes it, also when the block raises."""
        return MeteredSpan(self, phase)

    @property
    def is_open(self) -> bool:
        """Whether a window is open."""
        return bool(self._phase)

    def shut(self) -> None:
        """End what runs in the background; no window can be opened after that. A second call does nothing.

        Raises:
            MeterError: a window is open, or what runs in the background cannot be ended.
        """
        if self._phase:
            raise MeterError(
                f"cannot shut a meter while a window of '{self._phase}' is open: close that first"
            )
        if not self._is_shut:
            self._is_shut = True
            self._shut()

    @abstractmethod
    def method(self) -> EnergyMethod:
        """Return what meters each component, of which class, and what is left out."""

    @abstractmethod
    def _begin(self) -> None:
        """Start counting."""

    @abstractmethod
    def _end(self) -> Count:
        """Stop counting and return what was counted since ``_begin``."""

    def _shut(self) -> None:  # noqa: B027 -- most meters have nothing in the background
        """End what runs in the background."""

    def _now(self) -> datetime:
        return datetime.now(UTC)


@final
class NoMeter(AbstractMeter):
    """Takes seconds and processor seconds; joules are not known, which is not zero."""

    def __init__(self, *, attempt: int = 0) -> None:
        super().__init__(attempt)
        self._watch = Stopwatch.start()

    def method(self) -> EnergyMethod:
        """Return that nothing is metered."""
        details = {"logical_cpus": str(os.cpu_count())}
        return EnergyMethod(meter="none", scope="none", details=details, excluded=("all energy",))

    def _begin(self) -> None:
        finish_queued_work()
        self._watch = Stopwatch.start()

    def _end(self) -> Count:
        finish_queued_work()
        return Count(**self._watch.elapsed())


@final
class MeteredSpan:
    """A ``with`` block over one window; energy spent in a block that raises is counted too."""

    def __init__(self, meter: AbstractMeter, phase: str) -> None:
        self._meter = meter
        self._phase = phase
        self._window: Window | None = None

    def __enter__(self) -> Self:
        self._meter.open(self._phase)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._window = self._meter.close()

    @property
    def is_closed(self) -> bool:
        """Whether the window is closed."""
        return self._window is not None

    @property
    def joules(self) -> float | None:
        """What the window took in all; ``None`` where nothing was metered."""
        return self.window.total_joules

    @property
    def seconds(self) -> float:
        """How long it was open."""
        return self.window.seconds

    @property
    def components(self) -> dict[str, tuple[float, EnergyClass]]:
        """Joules of each component, and their class."""
        return {part: (joules, self.window.classes[part]) for part, joules in self.window.joules.items()}

    @property
    def window(self) -> Window:
        """The closed window.

        Raises:
            MeterError: the block is still running, or never ran.
        """
        if self._window is None:
            raise MeterError(f"the window of '{self._phase}' is not closed yet")
        return self._window
