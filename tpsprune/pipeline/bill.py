"""Who pays for what: at every moment of a run exactly one phase is being metered."""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self, final

from tpsprune import energy
from tpsprune.energy import AbstractMeter
from tpsprune.errors import TpspruneError
from tpsprune.records import Cost, EnergyMethod, PhaseEnergy, Window
from tpsprune.runs import Journal

__all__ = ["Bill"]

MAX_WINDOW_SECONDS = 240.0
"""A RAPL counter may wrap twice in a longer window, and a wrap is made good only once."""


@final
class Bill:
    """Switches the meter from phase to phase and journals every window, so that no joule falls between."""

    def __init__(self, meter: AbstractMeter, longest_window_seconds: float = MAX_WINDOW_SECONDS) -> None:
        self._meter = meter
        self._longest_window_seconds = longest_window_seconds
        self._journal: Journal | None = None
        self._windows: list[Window] = []
        self._phase = ""
        self._opened = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ended the run is what the user must hear, not that the last window cannot be written too.
        with suppress(TpspruneError) if error is not None else nullcontext():
            try:
                if self._meter.is_open:
                    self.close()
            finally:
                self._meter.shut()

    @property
    def method(self) -> EnergyMethod:
        """What meters, and how good it is."""
        return self._meter.method()

    def keep_in(self, journal: Journal) -> None:
        """Journal from now on, what was closed so far included; windows of earlier attempts join the bill."""
        earlier = journal.parsed(Window)
        journal.append_all(self._windows)
        self._windows = [*earlier, *self._windows]
        self._journal = journal

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows of the run so far, of every attempt."""
        return tuple(self._windows)

    @property
    def total(self) -> Cost:
        """What the run has cost so far, open window excluded."""
        return energy.total(self._windows)

    @property
    def phases(self) -> dict[str, PhaseEnergy]:
        """The same by phase."""
        return energy.by_phase(self._windows)

    def switch(self, phase: str) -> Window | None:
        """Close the open window, if any, and open one of ``phase``; return the closed one."""
        closed = self.close() if self._meter.is_open else None
        self._meter.open(phase)
        self._phase, self._opened = phase, time.monotonic()
        return closed

    def split_if_long(self) -> Window | None:
        """Close and reopen the phase's window when it has been open for long; return the closed one."""
        if time.monotonic() - self._opened < self._longest_window_seconds:
            return None
        return self.switch(self._phase)

    def close(self) -> Window:
        """Close the open window and journal it."""
        window = self._meter.close()
        self._windows.append(window)
        if self._journal is not None:
            self._journal.append(window)
        return window
