"""Arguments and options that several commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from tpsprune.errors import RecipeError

__all__ = ["device_option", "imports", "naming", "recipe_argument", "set_option"]

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
