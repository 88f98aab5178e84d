"""How much less an arm took than its baseline, over pairs, and what it would be under other power models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, fsum, inf, log
from typing import Final

from tpsprune.numerics.small_samples import detectable_effect, holm, mean_interval, sign_flip_p, t_p
from tpsprune.records import BandPoint, Change, EnergyClass, EnergyMethod, Window

_LARGEST_POWER: Final = 709.0
Pairs = Sequence[tuple[float, float]]
"""What the arm took, and its baseline in the same pair; both above zero."""
Usage = tuple[Sequence[Window], float]
"""Windows, and how many items they served (1 for a training)."""
CURVES: Final[dict[str, Callable[[float, float], float]]] = {
    "own load": lambda own, _machine: own,
    "machine load, cubic": lambda _own, machine: 0.1 + 0.9 * machine**3,
    "machine load + idle": lambda _own, machine: 0.3 + 0.7 * machine,
}
"""Power over rated power, by the process's own share of the processors and by the machine's: in proportion;
codecarbon's, with a tenth at rest; in proportion from three tenths at rest."""
RATED_FACTORS: Final = (1.0, 5.0)
RAM_FACTORS: Final = (0.5, 1.0)
ASSUMED: Final = (EnergyClass.MODELLED, EnergyClass.CONSTANT)


def change_of(pairs: Pairs, alpha: float = 0.05) -> Change | None:
    """Return the saving 1 − exp(mean of d), d = ln(arm / baseline), with its t-interval and tests.

    Beside it stands 1 − mean(arm) / mean(baseline), in which a long run weighs more. Swapping arm and
    baseline mirrors both: ln(1 − saving) changes sign. A unit common to both drops out.
    It sees neither the order of pairs nor windows within a run: those are no repetitions.

    Returns:
        ``None`` below two pairs: one has no deviation.
    """
    if len(pairs) < 2:
        return None
    logs = log_ratios(pairs)
    interval = mean_interval(logs, 1.0 - alpha)
    deviation = statistics.stdev(logs)
    return Change(
        saving_share=1.0 - exp(interval.mean),
        low=1.0 - _exp(interval.high),
        high=1.0 - _exp(interval.low),
        pairs=len(pairs),
        deviation=deviation,
        p_t=t_p(logs),
        p_sign_flip=sign_flip_p(logs),
        detectable_share=1.0 - exp(-detectable_effect(deviation, len(pairs), alpha)),
        arithmetic_share=1.0 - fsum(arm for arm, _ in pairs) / fsum(baseline for _, baseline in pairs),
    )


def _exp(power: float) -> float:
    """Return e to a power; beyond all floats, infinity, which a report has as unknown."""
    return exp(power) if power < _LARGEST_POWER else inf


def log_ratios(pairs: Pairs) -> list[float]:
    """Return ln(arm / baseline) of each pair."""
    return [log(arm / baseline) for arm, baseline in pairs]


def saving(pairs: Pairs) -> float:
    """Return the geometric mean saving alone: 1 − exp(mean of ln(arm / baseline)).

    >>> round(saving([(1.0, 2.0), (2.0, 4.0)]), 12)
    0.5
    """
    return 1.0 - exp(statistics.fmean(log_ratios(pairs)))


def correct_for_several(changes: Mapping[str, Change | None]) -> dict[str, Change | None]:
    """Return the changes with ``p_holm``: their t-tests corrected for one another."""
    adjusted = holm({name: change.p_t for name, change in changes.items() if change is not None})
    return {
        name: None if change is None else replace(change, p_holm=adjusted[name])
        for name, change in changes.items()
    }


@dataclass(frozen=True, slots=True)
class _Model:
    """One power model: a curve of load, watts of processor and RAM, and the overhead of the building."""

    curve: str
    rated_watts: float
    ram_watts: float
    pue: float

    def __str__(self) -> str:
        return f"{self.rated_watts:g} W, {self.curve}, RAM {self.ram_watts:g} W"

    def joules(self, usage: Usage, logical_cpus: int) -> float:
        windows, items = usage
        return fsum(self._window_joules(window, logical_cpus) for window in windows) / items

    def _window_joules(self, window: Window, logical_cpus: int) -> float:
        capacity = window.seconds * logical_cpus
        own = min(window.cpu_seconds / capacity, 1.0) if capacity else 0.0
        machine = min((window.machine_cpu_seconds or window.cpu_seconds) / capacity, 1.0) if capacity else 0.0
        modelled = {
            "cpu": self.pue * self.rated_watts * CURVES[self.curve](own, machine) * window.seconds,
            "ram": self.pue * self.ram_watts * window.seconds,
        }
        return fsum(
            modelled[part] if part in modelled and window.classes[part] in ASSUMED else joules
            for part, joules in window.joules.items()
        )


def band_of(
    pairs: Sequence[tuple[Usage, Usage]], method: EnergyMethod, logical_cpus: int
) -> tuple[BandPoint, ...]:
    """Return the saving over pairs (arm, baseline) under each power model of a small grid.

    Where power is modelled, this shows whether the sign depends on the model. The grid: three curves of load,
    the rated watts assumed and five times as many, RAM watts assumed and half of them. Measured joules are
    kept; parts that are modelled or constant are recomputed from the window's own seconds and loads: rated ·
    curve(load) · seconds for the processor, watts · seconds for RAM. Where the machine's load is not known
    only the curve of the process's own load is used. It does not see frequency scaling, nor that
    instructions differ in power.

    Returns:
        Nothing where nothing is modelled, or the method does not state its watts.
    """
    return tuple(
        BandPoint(
            str(model),
            saving(
                [(model.joules(arm, logical_cpus), model.joules(base, logical_cpus)) for arm, base in pairs]
            ),
        )
        for model in _models(pairs, method)
    )


def _models(pairs: Sequence[tuple[Usage, Usage]], method: EnergyMethod) -> Iterator[_Model]:
    watts = {
        name: float(method.details[name])
        for name in ("cpu_rated_watts", "ram_watts", "pue")
        if name in method.details
    }
    rated, ram, pue = (watts.get(name, 0.0) for name in ("cpu_rated_watts", "ram_watts", "pue"))
    models_cpu = method.classes.get("cpu") in ASSUMED and "cpu_rated_watts" in watts
    models_ram = method.classes.get("ram") in ASSUMED and "ram_watts" in watts
    if not pairs or not (models_cpu or models_ram):
        return
    windows = [window for pair in pairs for windows, _ in pair for window in windows]
    knows_machine = all(window.machine_cpu_seconds is not None for window in windows)
    for curve, rated_factor, ram_factor in product(
        list(CURVES) if models_cpu and knows_machine else list(CURVES)[:1],
        RATED_FACTORS if models_cpu else (1.0,),
        RAM_FACTORS if models_ram else (1.0,),
    ):
        yield _Model(curve, rated * rated_factor, ram * ram_factor, pue or 1.0)
