"""What no comparison begins with, and what is no run of one: every fault, before a word is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from tpsprune.errors import Fault, RecipeError
from tpsprune.loop.plain import faults_of_plain, is_number, is_share, is_whole
from tpsprune.loop.spent import Spent
from tpsprune.recipe.compare import Compare
from tpsprune.recipe.settings import read_section
from tpsprune.records import EnergyMethod, Window

__all__ = ["faults_of_design", "faults_of_run"]

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
    if not is_whole(pairs, 1):
        yield Fault("pairs", f"must be a whole number from 1 (found {pairs!r})")
    if not isinstance(name, str):
        yield Fault("name", f"must be text (found {name!r})")
    if not is_whole(first_seed):
        yield Fault("first_seed", f"must be a whole number from 0 (found {first_seed!r})")
    if not is_share(required_accuracy):
        yield Fault("required_accuracy", f"must be a share from 0 to 1 (found {required_accuracy!r})")
    if settings is not None and not isinstance(settings, Mapping):
        yield Fault("settings", f"must be a dict of plain values (found {settings!r})")
    else:
        yield from faults_of_plain(dict(settings or {}), "settings")
    if str(device).partition(":")[0] not in DEVICES:
        yield Fault("device", f"must be one of {', '.join(DEVICES)} (found {device!r})")
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
            yield Fault("arms", f"{name!r} is no name; lower-case letters, digits and hyphens would do")
    if len(set(map(repr, names))) < max(FEWEST_ARMS, len(names)):
        yield Fault("arms", f"two different names or more are needed, the baseline first (found {names})")


def faults_of_run(
    *,
    seed: Any,
    spent: Any,
    accuracy: Any,
    epochs: Any,
    failure: Any,
    stopped_by: Any,
    notes: Any,
    **counts: Any,
) -> Iterator[Fault]:
    """Yield what is wrong with the figures and words of one run; ``counts`` are its whole numbers."""
    if not is_whole(seed):
        yield Fault("seed", f"must be a whole number from 0 (found {seed!r})")
    if not _is_spent(spent):
        yield Fault("spent", "must be what Meter.take() or Spent.of_numbers() returns")
    else:
        yield from _faults_of_windows(spent.windows)
    for place, text in (("failure", failure), ("stopped_by", stopped_by)):
        if not isinstance(text, str):
            yield Fault(place, f"must be text (found {text!r})")
    if accuracy is None and isinstance(failure, str) and not failure:
        yield Fault("accuracy", "must be given, or a failure in words")
    if accuracy is not None and not is_share(accuracy):
        yield Fault("accuracy", f"must be a share from 0 to 1 (found {accuracy!r})")
    if epochs is not None and not (is_number(epochs) and epochs >= 0):
        yield Fault("epochs", f"must be a number from 0 (found {epochs!r})")
    for place, count in counts.items():
        if count is not None and not is_whole(count):
            yield Fault(place, f"must be a whole number from 0 (found {count!r})")
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        yield Fault("notes", f"must be a list of texts (found {notes!r})")


def _is_spent(spent: Any) -> bool:
    return (
        isinstance(spent, Spent)
        and isinstance(spent.method, EnergyMethod)
        and bool(spent.windows)
        and all(isinstance(window, Window) for window in spent.windows)
    )


def _faults_of_windows(windows: Sequence[Window]) -> Iterator[Fault]:
    if wrong := [window for window in windows if not _has_sound_figures(window)]:
        first = wrong[0]
        yield Fault(
            "spent",
            f"figures must be finite, and joules and seconds not below 0; {len(wrong)} of {len(windows)} "
            f"windows have others (the first, of phase '{first.phase}': {first.seconds!r} s, "
            f"{first.joules!r} J)",
        )
        return
    if len(windows) > 1 and not all(window.started for window in windows):
        yield Fault(
            "spent",
            "a window without a start, as of Spent.of_numbers(), is a whole run's: beside others it may be "
            "counted twice",
        )
        return
    try:
        overlaps = [
            later for earlier, later in pairwise(sorted(windows, key=_place)) if _meet(earlier, later)
        ]
    except (TypeError, ValueError) as error:
        yield Fault("spent", f"a window does not say when it began ({error})")
        return
    if overlaps:
        yield Fault(
            "spent",
            f"{len(overlaps)} of {len(windows)} windows are there twice, or began within another (the first "
            f"at {overlaps[0].started})",
        )


def _has_sound_figures(window: Window) -> bool:
    spent = (window.seconds, *window.joules.values())
    others = (window.cpu_seconds, window.machine_cpu_seconds, window.steal_seconds, window.gpu_celsius)
    finite = all(map(is_number, (*spent, *(value for value in others if value is not None))))
    # What a window of the meter's own fault holds is for the verdict to refuse: the run was made.
    return finite and (not window.valid or min(spent) >= 0)


def _place(window: Window) -> tuple[float, float, str, int]:
    start = datetime.fromisoformat(window.started).timestamp() if window.started else 0.0
    return start, window.seconds, window.phase, window.index


def _meet(earlier: Window, later: Window) -> bool:
    before, after = _place(earlier), _place(later)
    return before == after or after[0] < before[0] + before[1] - CLOCK_SLACK_SECONDS
