"""Where power is modelled: the same runs under other power models, to see whether the sign hangs on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import fsum
from typing import Final

from tpsprune.claims.change import saving
from tpsprune.records import BandPoint, EnergyClass, EnergyMethod, Window

__all__ = ["ASSUMED", "band_of"]

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


@dataclass(frozen=True, slots=True)
class _Model:
    curve: str
    rated_watts: float
    ram_watts: float
    pue: float

    def __str__(self) -> str:
        return f"{self.rated_watts:g} W, {self.curve}, RAM {self.ram_watts:g} W"


Spent = tuple[Sequence[Window], float]
"""Windows, and how many items they answered (1 for a training)."""


def band_of(
    pairs: Sequence[tuple[Spent, Spent]], method: EnergyMethod, logical_cpus: int
) -> tuple[BandPoint, ...]:
    """Return the saving over pairs (arm, baseline) under each model of a small grid; what is measured stays.

    The grid: three curves of load, the rated watts assumed and five times as many, RAM watts assumed and half
    of them. Only parts that are modelled or constant are computed anew, each from the window's own seconds
    and loads: rated · curve(load) · seconds for the processor, watts · seconds for RAM. Where the machine's
    load is not known the curve of the process's own load stands alone. It does not see frequency scaling,
    nor what one instruction takes more than another.

    Returns:
        Nothing where nothing is modelled, or the method does not tell its watts.
    """
    return tuple(
        BandPoint(
            str(model),
            saving(
                [
                    (_energy(model, *arm, logical_cpus), _energy(model, *base, logical_cpus))
                    for arm, base in pairs
                ]
            ),
        )
        for model in _grid(pairs, method)
    )


def _grid(pairs: Sequence[tuple[Spent, Spent]], method: EnergyMethod) -> Iterator[_Model]:
    rated, ram = (_number(method, name) for name in ("cpu_rated_watts", "ram_watts"))
    pue = _number(method, "pue") or 1.0
    models_cpu = method.classes.get("cpu") in ASSUMED and rated is not None
    models_ram = method.classes.get("ram") in ASSUMED and ram is not None
    if not pairs or not (models_cpu or models_ram):
        return
    known = all(
        window.machine_cpu_seconds is not None for pair in pairs for windows, _ in pair for window in windows
    )
    curves = list(CURVES) if known else list(CURVES)[:1]
    yield from (
        _Model(curve, (rated or 0.0) * rated_factor, (ram or 0.0) * ram_factor, pue)
        for curve, rated_factor, ram_factor in product(
            curves if models_cpu else curves[:1],
            RATED_FACTORS if models_cpu else (1.0,),
            RAM_FACTORS if models_ram else (1.0,),
        )
    )


def _number(method: EnergyMethod, name: str) -> float | None:
    found = method.details.get(name)
    return None if found is None else float(found)


def _energy(model: _Model, windows: Sequence[Window], items: float, logical_cpus: int) -> float:
    return fsum(_window_joules(model, window, logical_cpus) for window in windows) / items


def _window_joules(model: _Model, window: Window, logical_cpus: int) -> float:
    capacity = window.seconds * logical_cpus
    own = min(window.cpu_seconds / capacity, 1.0) if capacity else 0.0
    machine = min((window.machine_cpu_seconds or window.cpu_seconds) / capacity, 1.0) if capacity else 0.0
    anew = {
        "cpu": model.pue * model.rated_watts * CURVES[model.curve](own, machine) * window.seconds,
        "ram": model.pue * model.ram_watts * window.seconds,
    }
    return fsum(
        anew[part] if part in anew and window.classes[part] in ASSUMED else joules
        for part, joules in window.joules.items()
    )
