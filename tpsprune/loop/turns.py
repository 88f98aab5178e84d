"""Whose turn it is in a comparison: runs in their order, each begun, metered anew, and counted once."""

from __future__ import annotations

from tpsprune.errors import LoopError
from tpsprune.loop.spent import Spent
from tpsprune.recipe.compare import order_of
from tpsprune.records import ArmRun, BrokenOff, ComparisonRecord, EnergyClass
from tpsprune.runs import Begun

__all__ = ["next_due", "refuse_old_windows", "refuse_out_of_turn", "refuse_twice"]


def next_due(record: ComparisonRecord) -> tuple[str, int] | None:
    """Return the run that is due: the first missing one of the first pair that lacks any."""
    design = record.design
    for pair in range(record.pairs_asked):
        for arm in order_of(design.arms, design.order_seed, pair):
            if record.run_of(arm, pair) is None:
                return arm, design.first_seed + pair
    return None


def refuse_out_of_turn(record: ComparisonRecord, under_way: Begun | None, arm: str, seed: int) -> None:
    """Refuse a run that is not the one that is due, in words that name that, or was not begun.

    Raises:
        LoopError: it is another one, is written down already, or ``due`` did not yield it.
    """
    due = next_due(record)
    if due != (arm, seed):
        if record.run_of(arm, seed - record.design.first_seed) is not None:
            raise LoopError(
                f"Comparison: '{arm}', seed {seed}, is in the journal already; each run counts once"
            )
        rest = "every run is there" if due is None else f"'{due[0]}', seed {due[1]}, is due"
        raise LoopError(
            f"Comparison: '{arm}', seed {seed}, is not due: {rest}. Runs come in the order of due(), arms by"
            " turns"
        )
    # A run that leaves a trace only once it is handed in could be made until it goes well.
    if under_way is None or (under_way.arm, under_way.seed) != due:
        raise LoopError(
            f"Comparison: '{arm}', seed {seed}, has not begun: due() yields it, and writes down that it does"
        )


def refuse_twice(record: ComparisonRecord, spent: Spent) -> None:
    """Refuse what was handed in for a run before, whatever meter it is of.

    It is known by its receipt; a copy of its windows under another one is for ``refuse_old_windows``.

    Raises:
        LoopError: it was handed in before, for a run that counts or one that was set aside.
    """
    for each in _made(record):
        if each.receipt == spent.receipt:
            raise LoopError(
                f"Comparison: this was handed in for '{each.arm}', seed {each.seed}, already; each run is "
                "metered anew"
            )


def refuse_old_windows(record: ComparisonRecord, spent: Spent) -> None:
    """Refuse windows that opened before the last one that was added.

    A simulated clock tells nothing, and of a figure of the user's own nobody knows when it began.

    Raises:
        LoopError: they are older, as windows handed in twice are.
    """
    windows = [window for each in _made(record) for window in each.windows]
    last = max((window.started for window in windows), default="")
    # A window in which nothing was metered has no classes; then its meter's say whether it is simulated.
    timed = [
        window.started
        for window in spent.windows
        if window.started and EnergyClass.SIMULATED not in (window.classes or spent.method.classes).values()
    ]
    if timed and min(timed) <= last:
        raise LoopError(
            f"Comparison: these windows began at {min(timed)}, and one of a run before at {last}; each run is"
            " metered anew, after the one before it"
        )


def _made(record: ComparisonRecord) -> tuple[ArmRun | BrokenOff, ...]:
    return (*record.runs, *record.broken_off)
