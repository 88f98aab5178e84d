"""A meter that reads instead of measuring: the windows of an earlier run once more."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any, final

from tpsprune.energy.meter import AbstractMeter, Count
from tpsprune.energy.windows import class_of
from tpsprune.errors import MeterError, did_you_mean
from tpsprune.records import EnergyClass, EnergyMethod, Window, load
from tpsprune.runs import Journal, read_bytes

_INVALID = "recorded as invalid, without a reason"


@final
class ReplayMeter(AbstractMeter):
    """Each window is the next one of the same phase in a journal (``energy.jsonl``): joules, times, faults.

    Index and attempt are this run's; all else is as recorded, so two runs alike get the same figures
    wherever they run. Recorded attempts follow one another as they stand in the file.

    It sees nothing of this machine, and not that this run is another than the recorded one, but for a
    phase that opens more windows than were recorded; windows that are left over are not reported.

    Cost: the journal is read once, at construction.
    """

    def __init__(self, path: Path, *, attempt: int = 0) -> None:
        """Read the journal.

        Raises:
            MeterError: it is not there, cannot be read, or holds no windows; or a line is no window.
            RunFolderError: a line is damaged; the message names its number.
        """
        super().__init__(attempt)
        self._path = path
        self._digest = _digest(path)
        self._recorded: defaultdict[str, list[Window]] = defaultdict(list)
        for number, record in enumerate(Journal(path).read()[0], start=1):
            window = _window(path, number, record)
            self._recorded[window.phase].append(window)
        if not self._recorded:
            raise MeterError(f"energy.replay: {path} holds no window; expected the energy.jsonl of a run")
        self._taken: Counter[str] = Counter()

    def method(self) -> EnergyMethod:
        """Return which file is replayed, and the classes found in it."""
        windows = [window for phase in self._recorded.values() for window in phase]
        return EnergyMethod(
            meter="replay",
            scope="recorded",
            classes=_classes(windows),
            details={"file": self._path.name, "sha256": self._digest, "windows": str(len(windows))},
            excluded=("whatever the recorded meter left out",),
        )

    def _begin(self) -> None:
        phase = self._phase
        count = len(self._recorded.get(phase, ()))
        if self._taken[phase] < count:
            return
        phases = sorted(self._recorded)
        hint = did_you_mean(phase, phases) or f" (recorded: {', '.join(phases)})"
        none = f"no window of '{phase}'{hint}; "
        more = f"{count} windows of '{phase}', and this run opens one more: "
        raise MeterError(
            f"energy.replay: {self._path} records {more if count else none}"
            "replay the journal of a run of this very recipe, or set energy.meter = 'codecarbon'"
        )

    def _end(self) -> Count:
        window = self._recorded[self._phase][self._taken[self._phase]]
        self._taken[self._phase] += 1
        recorded = {field.name: getattr(window, field.name) for field in fields(Count)}
        return Count(**{**recorded, "fault": window.fault or ("" if window.valid else _INVALID)})


def _classes(windows: Iterable[Window]) -> dict[str, EnergyClass]:
    found: defaultdict[str, set[EnergyClass]] = defaultdict(set)
    for window in windows:
        for component, energy_class in window.classes.items():
            found[component].add(energy_class)
    return {component: class_of(found[component]) for component in sorted(found)}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        raise MeterError(f"energy.replay: {path} is not there; expected the energy.jsonl of a run") from None
    except IsADirectoryError:
        raise MeterError(f"energy.replay: {path} is a folder; {path / 'energy.jsonl'} may be meant") from None
    except OSError as error:
        raise MeterError(f"energy.replay: cannot read {path}: {error.strerror or error}") from error


def _window(path: Path, number: int, record: dict[str, Any]) -> Window:
    try:
        window = load(Window, record)
        _check(window)
    except ValueError as error:
        raise MeterError(
            f"energy.replay: {path} line {number} is no window ({error}); "
            "expected the energy.jsonl of a run, as it was written"
        ) from error
    return window


def _check(window: Window) -> None:
    if not window.started:
        raise ValueError("started must not be empty")
    if set(window.classes) != set(window.joules):
        raise ValueError("joules and classes are of different parts")
    figures = (window.seconds, window.cpu_seconds, *window.joules.values())
    if not all(map(isfinite, figures)):
        raise ValueError("seconds and joules must be finite")
