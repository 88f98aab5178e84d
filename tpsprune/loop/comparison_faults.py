"""Every fault of a comparison's design and of a run added to it, found before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from math import isfinite
from numbers import Integral
from typing import Any, Final

from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.meter import EnergyUse, is_number
from tpsprune.recipe.compare import Compare
from tpsprune.recipe.settings import read_section
from tpsprune.records import EnergyMethod, Window

DEVICES: Final = ("auto", "cpu", "cuda", "mps")
FEWEST_ARMS: Final = 2
CLOCK_SLACK_SECONDS: Final = 1.0
"""A clock that is set while a run is under way may go back by so much: that is no fault of the run's."""


def faults_of_design(
    *,
    arms: Any,
    pairs: Any,
    name: Any,
    first_seed: Any,
    required_accuracy: Any,
    settings: Any,
    device: Any,
    **rules: Any,
) -> Iterator[Fault]:
    """Yield what is wrong with what is fixed before the first run; ``rules`` are those of ``[compare]``."""
    yield from _faults_of_arms(arms)
    yield from _misfits(
        (_is_whole(pairs, 1), "pairs", "a whole number from 1", pairs),
        (isinstance(name, str), "name", "text", name),
        (_is_whole(first_seed), "first_seed", "a whole number from 0", first_seed),
        (_is_share(required_accuracy), "required_accuracy", "a share from 0 to 1", required_accuracy),
        (str(device).partition(":")[0] in DEVICES, "device", f"one of {', '.join(DEVICES)}", device),
    )
    if settings is not None and not isinstance(settings, Mapping):
        yield Fault("settings", f"must be a dict of JSON values (found {settings!r})")
    else:
        yield from _faults_of_json(dict(settings or {}), "settings")
    try:
        read_section(Compare, "compare", rules, "Comparison")
    except RecipeError as error:
        yield from error.faults


def _faults_of_arms(arms: Any) -> Iterator[Fault]:
    # The first is the baseline, so that what has no order is no list of arms.
    if not isinstance(arms, Sequence):
        yield Fault("arms", f"must be a list of names, the baseline first (found {arms!r})")
        return
    names = [arms] if isinstance(arms, str) else list(arms)
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name) is None:
            yield Fault("arms", f"{name!r} is no name; use lower-case letters, digits and hyphens")
    if len(set(map(repr, names))) < max(FEWEST_ARMS, len(names)):
        yield Fault("arms", f"two different names or more are needed, the baseline first (found {names})")


def faults_of_run(
    *,
    seed: Any,
    energy_use: Any,
    accuracy: Any,
    epochs: Any,
    failure: Any,
    stopped_by: Any,
    notes: Any,
    **counts: Any,
) -> Iterator[Fault]:
    """Yield what is wrong with the figures and texts of one run; ``counts`` are its whole numbers."""
    texts = isinstance(notes, list | tuple) and all(isinstance(note, str) for note in notes)
    yield from _misfits(
        (_is_whole(seed), "seed", "a whole number from 0", seed),
        (isinstance(failure, str), "failure", "text", failure),
        (isinstance(stopped_by, str), "stopped_by", "text", stopped_by),
        (accuracy is None or _is_share(accuracy), "accuracy", "a share from 0 to 1", accuracy),
        (epochs is None or (is_number(epochs) and epochs >= 0), "epochs", "a number from 0", epochs),
        *(
            (count is None or _is_whole(count), place, "a whole number from 0", count)
            for place, count in counts.items()
        ),
        (texts, "notes", "a list of texts", notes),
    )
    if accuracy is None and isinstance(failure, str) and not failure:
        yield Fault("accuracy", "is needed, or a failure as text")
    if not _is_energy_use(energy_use):
        yield Fault("energy_use", "must be what Meter.take() or EnergyUse.of_numbers() returns")
    else:
        yield from _faults_of_windows(energy_use.windows)


def _misfits(*checks: tuple[bool, str, str, Any]) -> Iterator[Fault]:
    """Yield a fault for each check that fails: whether it fits, its place, what is expected and found."""
    return (
        Fault(place, f"must be {expected} (found {found!r})")
        for fits, place, expected, found in checks
        if not fits
    )


def _is_energy_use(energy_use: Any) -> bool:
    return (
        isinstance(energy_use, EnergyUse)
        and isinstance(energy_use.method, EnergyMethod)
        and bool(energy_use.windows)
        and all(isinstance(window, Window) for window in energy_use.windows)
    )


def _faults_of_windows(windows: Sequence[Window]) -> Iterator[Fault]:
    if wrong := [window for window in windows if not _has_sound_figures(window)]:
        first = wrong[0]
        yield Fault(
            "energy_use",
            f"figures must be finite, and joules and seconds not below 0; {len(wrong)} of {len(windows)} "
            f"windows have others (the first, of phase '{first.phase}': {first.seconds!r} s, "
            f"{first.joules!r} J)",
        )
        return
    if len(windows) > 1 and not all(window.started for window in windows):
        yield Fault(
            "energy_use",
            "a window without a start, as of EnergyUse.of_numbers(), is a whole run's: with others it may "
            "be counted twice",
        )
        return
    try:
        overlaps = [
            later for earlier, later in pairwise(sorted(windows, key=_place)) if _meet(earlier, later)
        ]
    except (TypeError, ValueError) as error:
        yield Fault("energy_use", f"a window has no start time ({error})")
        return
    if overlaps:
        yield Fault(
            "energy_use",
            f"{len(overlaps)} of {len(windows)} windows are there twice, or began within another (the first "
            f"at {overlaps[0].started})",
        )


def _has_sound_figures(window: Window) -> bool:
    figures = (window.seconds, *window.joules.values())
    others = (window.cpu_seconds, window.machine_cpu_seconds, window.steal_seconds, window.gpu_celsius)
    finite = all(map(is_number, (*figures, *(value for value in others if value is not None))))
    # The figures of a window with a fault of the meter are for the verdict to refuse: the run was made.
    return finite and (not window.valid or min(figures) >= 0)


def _place(window: Window) -> tuple[float, float, str, int]:
    start = datetime.fromisoformat(window.started).timestamp() if window.started else 0.0
    return start, window.seconds, window.phase, window.index


def _meet(earlier: Window, later: Window) -> bool:
    before, after = _place(earlier), _place(later)
    return before == after or after[0] < before[0] + before[1] - CLOCK_SLACK_SECONDS


def _is_whole(value: Any, lowest: int = 0) -> bool:
    """Return whether it is a whole number from ``lowest``, NumPy's among them; a truth value is none."""
    return isinstance(value, Integral) and is_number(value) and int(value) >= lowest


def _is_share(value: Any) -> bool:
    """Return whether it is a number from 0 to 1."""
    return is_number(value) and 0.0 <= value <= 1.0


def _faults_of_json(value: Any, place: str) -> Iterator[Fault]:
    """Yield what of a value JSON would not give back as the same text each time: sets, tensors, NaN.

    >>> [str(fault) for fault in _faults_of_json({"lr": 0.1, "sizes": [8, {4}]}, "settings")]
    ['settings.sizes[1]: is a set; use text, finite numbers, True, False, None, lists and dicts']
    """
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(key, str):
                yield from _faults_of_json(each, f"{place}.{key}")
            else:
                yield Fault(place, f"has a name that is no text (found {key!r})")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _faults_of_json(each, f"{place}[{number}]")
    elif isinstance(value, float) and not isfinite(value):
        yield Fault(place, f"must be finite (found {value!r})")
    elif not (value is None or isinstance(value, str | int | float)):
        message = "use text, finite numbers, True, False, None, lists and dicts"
        yield Fault(place, f"is a {type(value).__name__}; {message}")
