"""A comparison taken up again: by the rules it was begun with, and with no fewer pairs than were fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tpsprune.errors import RunFolderError
from tpsprune.records import Comparison, Design
from tpsprune.runs.comparison import Begun, ComparisonFolder

__all__ = ["ask_for_pairs", "begin_or_match"]

MAY_DIFFER: Final = {"begun", "command", "pairs"}


def begin_or_match(
    folder: ComparisonFolder, design: Design, elsewhere: str
) -> tuple[Comparison, Begun | None]:
    """Write the design down where nothing is there yet, else hold it against the one that is.

    ``elsewhere`` is how to write to another folder. Returns all that was measured, and a run without an end.

    Raises:
        RunFolderError: the journal is of other arms, rules, versions or another machine: names the first
            difference.
    """
    if not folder.exists:
        folder.append("design", design.to_json())
    comparison, begun = folder.read()
    if differences := list(_differences(comparison.design, design)):
        raise RunFolderError(
            f"{folder.path} holds a comparison with other rules: {differences[0]}; go on with those it was "
            f"begun with, or write elsewhere with {elsewhere}"
        )
    return comparison, begun


def ask_for_pairs(folder: ComparisonFolder, comparison: Comparison, pairs: int | None, asked: str) -> None:
    """Write down that another number of pairs is asked for, if one is; ``asked`` is how that was typed.

    Raises:
        RunFolderError: fewer pairs are asked for than were fixed.
    """
    if pairs is not None and pairs < comparison.pairs_asked:
        raise RunFolderError(
            f"{folder.path}: {comparison.pairs_asked} pairs were fixed, and fewer ({asked}) would be "
            f"chosen by their look: ask for {comparison.pairs_asked} or more"
        )
    if pairs is not None and pairs != comparison.pairs_asked:
        folder.append("pairs", {"pairs": pairs})


def _differences(there: Design, here: Design) -> Iterator[str]:
    before, now = there.to_json(), here.to_json()
    for key in before:
        if key not in MAY_DIFFER and before[key] != now[key]:
            yield _difference(key, before[key], now[key])


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "recipe_text":
        lines = (
            pair for pair in zip(before.splitlines(), now.splitlines(), strict=False) if pair[0] != pair[1]
        )
        before, now = next(lines, (f"{len(before)} characters", f"{len(now)} characters"))
        key = "the recipe"
    if isinstance(before, dict):
        changed = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        key, before, now = f"{key}.{changed}", before.get(changed), now.get(changed)
    return f"{key} is {before!r} there and {now!r} here"
