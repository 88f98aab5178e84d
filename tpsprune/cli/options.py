"""Arguments and options that several commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from tpsprune.errors import RecipeError

__all__ = [
    "check_folder",
    "device_option",
    "folder_options",
    "imports",
    "naming",
    "recipe_argument",
    "set_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def recipe_argument(command: Command) -> Command:
    """Add RECIPE: a file, or the name of a shipped recipe."""
    return click.argument("recipe_source", metavar="RECIPE")(command)


def set_option(command: Command) -> Command:
    """Add ``--set section.key=value``, any number of times."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one value of the recipe; may be given several times.",
    )(command)


def device_option(command: Command) -> Command:
    """Add ``--device``."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes a GPU where there is one.",
    )(command)


def folder_options(command: Command) -> Command:
    """Add ``--out``, ``--resume`` and ``--again``."""
    command = click.option(
        "--again", is_flag=True, help="Run once more, in a new folder beside the old one."
    )(command)
    command = click.option(
        "--resume", is_flag=True, help="Go on with this recipe's run from its last checkpoint."
    )(command)
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("runs"),
        show_default=True,
        help="Folder that holds the run folders.",
    )(command)


def check_folder(*, resume: bool, again: bool) -> None:
    """Refuse ``--resume`` and ``--again`` at once.

    Raises:
        UsageError: both were asked for.
    """
    if resume and again:
        raise click.UsageError("--resume goes on with a run and --again begins another: give one of them")


@contextmanager
def imports() -> Iterator[None]:
    """Hold back Ctrl-C while heavy libraries are imported, and let it act thereafter.

    Some of them swallow an interrupt, or break on it in ways of their own.
    """
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


@contextmanager
def naming(recipe_source: str) -> Iterator[None]:
    """Give faults that show only when a recipe's own code is called the name the user typed."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(recipe_source, error.faults) from error
