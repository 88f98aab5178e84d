"""NVIDIA's own word on the boards that are metered: their energy counters, heat, and slowed clocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

__all__ = ["NvmlBoards"]

_SLOWED: Final = 0x08 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, thermal slowdown by software and by hardware, power brake; a power cap is none."""
_COUNTER_TICK_SECONDS: Final = 0.1


@final
class NvmlBoards:
    """The boards behind NVML ``handles``; what one of them does not tell is not known of all (``None``).

    Without handles nothing is imported and nothing is known.

    Cost: a call to the driver per board and question.
    """

    def __init__(self, handles: Sequence[Any] = ()) -> None:
        self._handles = tuple(handles)
        limits = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        self._limit_watts = None if limits is None else sum(limits) / 1e3

    def joules(self) -> float | None:
        """Return the sum of the energy counters, which move every 0.1 s."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else sum(millijoules) / 1e3

    def slack_joules(self, edge_seconds: float, mean_watts: float) -> float:
        """Return by how much two readings of a window may differ: a tick at each edge, and ``edge_seconds``.

        At the boards' power limit; where that is not known, at ``mean_watts``.
        """
        watts = mean_watts if self._limit_watts is None else self._limit_watts
        return (2 * _COUNTER_TICK_SECONDS + edge_seconds) * watts

    def celsius(self) -> float | None:
        """Return the temperature of the hottest board."""
        degrees = self._ask("nvmlDeviceGetTemperature", 0)  # sensor 0 is the processor itself
        return None if degrees is None else float(max(degrees))

    def throttled(self) -> bool | None:
        """Whether heat or a fault slows the clocks of any board now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # drivers older than 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else any(each & _SLOWED for each in reasons)

    def _ask(self, question: str, *arguments: int) -> list[int] | None:
        if not self._handles:
            return None
        import pynvml

        ask: Callable[..., int] | None = getattr(pynvml, question, None)
        if ask is None:
            return None
        try:
            return [ask(handle, *arguments) for handle in self._handles]
        except pynvml.NVMLError:
            return None
