"""``Meter``: the energy of a training loop of one's own, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, final

from tpsprune import energy
from tpsprune.energy import MeteredSpan
from tpsprune.errors import LoopError
from tpsprune.loop.spent import Spent
from tpsprune.recipe.settings import read_section
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyMethod, Window

__all__ = ["Meter"]


@final
class Meter:
    """Joules and seconds of spans of work, each figure with how it was come by. One per process.

    >>> import tpsprune
    >>> with tpsprune.Meter("fake") as meter:  # without a word: codecarbon
    ...     with meter.window("train") as span:
    ...         total = sum(range(10))
    ...     spent = meter.take()
    >>> span.joules, span.seconds
    (15.0, 1.0)
    >>> {part: (joules, str(kind)) for part, (joules, kind) in span.components.items()}
    {'cpu': (10.0, 'simulated'), 'ram': (5.0, 'simulated')}
    >>> spent.joules, len(spent.windows)
    (15.0, 1)

    Windows follow one another and never nest: a joule is charged once. Queued work of a GPU belongs to the
    window that queued it. A window whose books do not balance has ``span.window.valid`` false and its fault
    in words. Open a new one at least every four minutes, as with each epoch: a processor's counter turns
    over, and only one turn can be told. What lies between windows is on no bill.

    Args:
        meter: ``codecarbon`` (counters where the machine has them, else models; one to three seconds once to
            find out about the machine), ``none`` (seconds alone) or ``fake`` (for tests: constant watts).
        tracking: ``machine`` or ``process``: the scope of what is modelled.
        pue: power usage effectiveness of the data centre; multiplies energy.
        settings: the other fields of ``[energy]``: ``fake_cpu_watts`` and the like.

    Raises:
        RecipeError: a setting is not known or out of bounds.
        MeterError: nothing can be metered as asked.
    """

    def __init__(
        self,
        meter: Literal["codecarbon", "fake", "none"] = "codecarbon",
        *,
        tracking: Literal["machine", "process"] = "machine",
        pue: float = 1.0,
        **settings: Any,
    ) -> None:
        asked = {"meter": meter, "tracking": tracking, "pue": pue, **settings}
        self._meter = energy.build(read_section(Energy, "energy", asked, "Meter"), 0)
        self._windows: list[Window] = []

    @property
    def method(self) -> EnergyMethod:
        """What meters each component, how good it is, and what is left out."""
        return self._meter.method()

    @contextmanager
    def window(self, phase: str = "train") -> Iterator[MeteredSpan]:
        """Meter a ``with`` block; what a block took that raises is still on the bill.

        Raises:
            MeterError: another window is open, or the meter is closed or loses the window.
        """
        span = self._meter.window(phase)
        try:
            with span:
                yield span
        finally:
            if span.is_closed:
                self._windows.append(span.window)

    def take(self) -> Spent:
        """Return the windows closed since the last call, as what one run took.

        Raises:
            LoopError: a window is open, or there is none.
        """
        if self._meter.is_open:
            raise LoopError("Meter: a window is still open; take what was spent after its block")
        if not self._windows:
            raise LoopError("Meter: no window was closed since the last take; with meter.window() makes one")
        windows, self._windows = tuple(self._windows), []
        return Spent(windows, self.method)

    def close(self) -> None:
        """End whatever goes on behind the meter."""
        self._meter.shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
