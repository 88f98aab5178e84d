"""What a run holds while it goes on: its folder, its lock, its bill; and what is said when it breaks off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tpsprune.errors import CannotWriteError, DivergedError, RunFolderError
from tpsprune.pipeline.bill import MAX_WINDOW_SECONDS, Bill
from tpsprune.recipe import Recipe
from tpsprune.records import Window
from tpsprune.runs import RunFolder, write_text_atomically

__all__ = ["attempt", "found_run", "longest_window", "running_in"]

BUDGET_WINDOW_SECONDS = 2.0


@contextmanager
def running_in(folder: RunFolder, recipe_text: str, bill: Bill) -> Iterator[None]:
    """Lock the folder, keep recipe and bill in it, and end faults with what is kept and how to go on."""
    with folder.locked():
        try:
            if not folder.recipe.is_file():
                write_text_atomically(folder.recipe, recipe_text)
            bill.keep_in(folder.energy)
            yield
        except CannotWriteError as error:
            raise CannotWriteError(f"{error}, then go on with --resume") from error
        except DivergedError as error:
            kept = f"readings and the last checkpoint are kept in {folder.path}"
            raise DivergedError(f"{error}; {kept}") from error


def found_run(out: Path, name: str, digest: str) -> RunFolder:
    """Return the unfinished run of this digest below ``out``.

    Raises:
        RunFolderError: there is none, or it is finished.
    """
    folder = RunFolder.find(out, name, digest)
    if folder.is_finished:
        raise RunFolderError(
            f"{folder.path} is finished, there is nothing to resume: look at it with "
            f"'tpsprune show {folder.path}', or run the recipe once more with --again"
        )
    return folder


def longest_window(recipe: Recipe) -> float:
    """Return how long a window may stay open, in seconds: a budget is looked at whenever one closes."""
    has_budget = recipe.stop.budget_seconds is not None or recipe.stop.budget_joules is not None
    return BUDGET_WINDOW_SECONDS if has_budget else MAX_WINDOW_SECONDS


def attempt(folder: RunFolder | None) -> int:
    """Return which attempt at the run this is, from 0."""
    if folder is None:
        return 0
    return 1 + max((window.attempt for window in folder.energy.parsed(Window)), default=0)
