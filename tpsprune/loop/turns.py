"""Whose turn it is in a comparison, and what of a run is refused before it is written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

from tpsprune.errors import Fault, LoopError
from tpsprune.loop.spent import Spent
from tpsprune.recipe.compare import order_of
from tpsprune.records import Comparison, EnergyClass

__all__ = ["faults_of_design", "faults_of_run", "next_due", "refuse_old_windows", "refuse_out_of_turn"]

FEWEST_ARMS: Final = 2


def next_due(record: Comparison) -> tuple[str, int] | None:
    """Return the run that is due: the first missing one of the first pair that lacks any."""
    design = record.design
    for pair in range(record.pairs_asked):
        for arm in order_of(design.arms, design.order_seed, pair):
            if record.run_of(arm, pair) is None:
                return arm, design.first_seed + pair
    return None


def refuse_out_of_turn(record: Comparison, arm: str, seed: int) -> None:
    """Refuse a run that is not the one that is due, in words that name that.

    Raises:
        LoopError: it is another one, or is written down already.
    """
    due = next_due(record)
    if due == (arm, seed):
        return
    if record.run_of(arm, seed - record.design.first_seed) is not None:
        raise LoopError(f"Comparison: '{arm}', seed {seed}, is in the journal already; each run counts once")
    rest = "every run is there" if due is None else f"'{due[0]}', seed {due[1]}, is due"
    raise LoopError(
        f"Comparison: '{arm}', seed {seed}, is not due: {rest}. Runs come in the order of due(), arms by"
        " turns"
    )


def refuse_old_windows(record: Comparison, spent: Spent) -> None:
    """Refuse windows that opened before the last one that was added; a simulated clock tells nothing.

    Raises:
        LoopError: they are older, as windows handed in twice are.
    """
    kinds = {kind for window in spent.windows for kind in window.classes.values()}
    if EnergyClass.SIMULATED in kinds:
        return
    windows = [window for run in record.runs for window in run.windows]
    windows += [window for each in record.broken_off for window in each.windows]
    last = max((window.started for window in windows), default="")
    first = min(window.started for window in spent.windows)
    if first and first <= last:
        raise LoopError(
            f"Comparison: these windows began at {first}, and one of a run before at {last}; each run is"
            " metered anew, after the one before it"
        )


def faults_of_design(arms: Any, pairs: Any, first_seed: Any, required: Any) -> Iterator[Fault]:
    """Yield what is wrong with what a comparison fixes before its first run."""
    names = [arms] if isinstance(arms, str) else list(arms)
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name) is None:
            yield Fault("arms", f"{name!r} is no name; lower-case letters, digits and hyphens would do")
    if len(set(names)) < max(FEWEST_ARMS, len(names)):
        yield Fault("arms", f"two different names or more are needed, the baseline first (found {names})")
    if not isinstance(pairs, int) or pairs < 1:
        yield Fault("pairs", f"must be a whole number from 1 (found {pairs!r})")
    if not isinstance(first_seed, int) or first_seed < 0:
        yield Fault("first_seed", f"must be a whole number from 0 (found {first_seed!r})")
    if not _is_share(required):
        yield Fault("required_accuracy", f"must be a share from 0 to 1 (found {required!r})")


def faults_of_run(spent: Any, accuracy: Any, failure: str) -> Iterator[Fault]:
    """Yield what is wrong with the figures of one run."""
    if not isinstance(spent, Spent) or not spent.windows:
        yield Fault("spent", "must be what Meter.take() or Spent.of_numbers() returns")
    if accuracy is None and not failure:
        yield Fault("accuracy", "must be given, or a failure in words")
    if accuracy is not None and not _is_share(accuracy):
        yield Fault("accuracy", f"must be a share from 0 to 1 (found {accuracy!r})")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and 0.0 <= value <= 1.0
