"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["device_option", "recipe_argument", "set_option"]

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
