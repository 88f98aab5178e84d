"""How a command that runs for a while shows what happens: the options, and what they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tpsprune.report.live import AbstractShow

__all__ = ["check_show", "compare_show_for", "compare_show_options", "show_for", "show_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def show_options(command: Command) -> Command:
    """Add ``--quiet`` and ``--json``."""
    return _options(command, "One JSON object per line and event.", "the run folder")


def compare_show_options(command: Command) -> Command:
    """Add ``--quiet`` and ``--json`` for a comparison, whose output is its report."""
    return _options(command, "Print report.json at the end; finished runs go to stderr.", "the report")


def _options(command: Command, of_json: str, holder: str) -> Command:
    command = click.option("--json", "as_json", is_flag=True, help=of_json)(command)
    return click.option("--quiet", is_flag=True, help=f"Show nothing; {holder} has it all.")(command)


def check_show(*, quiet: bool, as_json: bool) -> None:
    """Refuse both at once, before anything heavy is imported.

    Raises:
        UsageError: both were asked for.
    """
    if quiet and as_json:
        raise click.UsageError("--quiet shows nothing and --json shows everything: give one of them")


def show_for(*, quiet: bool, as_json: bool) -> AbstractShow:
    """Return what shows a run: nothing, JSON, a bar on a terminal, or lines elsewhere."""
    from tpsprune.report.live import BarShow, JsonShow, OurConsole, PlainShow, QuietShow

    if quiet:
        return QuietShow()
    if as_json:
        return JsonShow(sys.stdout)
    console = OurConsole()
    if console.is_terminal:
        return BarShow(console)
    return PlainShow(OurConsole(width=None if "COLUMNS" in os.environ else 80))


def compare_show_for(*, quiet: bool, as_json: bool) -> AbstractShow:
    """Return what shows a comparison: nothing, JSON on standard error, a bar on a terminal, or lines."""
    from tpsprune.report.live import BarCompare, JsonCompare, OurConsole, PlainCompare, QuietShow

    if quiet:
        return QuietShow()
    if as_json:
        return JsonCompare(sys.stderr)
    console = OurConsole()
    return BarCompare(console) if console.is_terminal else PlainCompare(console)
