"""What ``compare`` and ``report`` have in common: a reader's choices, the gate, and the report written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tpsprune.runs import ComparisonFolder

__all__ = ["GATE_CLOSED", "check_choices", "choice_options", "ended", "gate_option", "grid_options"]

Command = TypeVar("Command", bound=Callable[..., Any])
GATE_CLOSED = 5
"""Exit code of ``--gate`` where the verdict, on the training that was fixed beforehand, is no saving."""


def choice_options(command: Command) -> Command:
    """Add what a reader chooses: a grid, a volume."""
    return grid_options(
        click.option(
            "--per-day",
            type=click.FloatRange(min=0, min_open=True),
            metavar="NUMBER",
            help="Answers a day, to tell the break-even in days.",
        )(command)
    )


def grid_options(command: Command) -> Command:
    """Add what turns joules into grams of CO₂: a country, or a factor and its source."""
    for option in reversed(
        (
            click.option(
                "--country",
                metavar="CODE",
                help="Grid for CO₂: a country's code or name, as FRA; without one no CO₂ is claimed.",
            ),
            click.option(
                "--carbon-intensity",
                type=click.FloatRange(min=0),
                metavar="GRAMS",
                help="Grid for CO₂: your own grams per kWh, with --carbon-source.",
            ),
            click.option(
                "--carbon-source",
                default="",
                metavar="TEXT",
                help="Where --carbon-intensity comes from, and of which year.",
            ),
        )
    ):
        command = option(command)
    return command


def gate_option(command: Command) -> Command:
    """Add ``--gate``."""
    return click.option(
        "--gate", is_flag=True, help=f"End with exit code {GATE_CLOSED} unless the verdict is a saving."
    )(command)


def check_choices(choices: dict[str, Any]) -> None:
    """Refuse two grids at once, and a factor that comes from nowhere.

    Raises:
        UsageError: says which, before anything is run.
    """
    if choices["country"] is not None and choices["carbon_intensity"] is not None:
        raise click.UsageError("--country and --carbon-intensity are two grids: give one of them")
    if choices["carbon_intensity"] is not None and not choices["carbon_source"].strip():
        raise click.UsageError(
            "--carbon-intensity needs --carbon-source: where the factor comes from, and its year"
        )
    if choices["carbon_source"] and choices["carbon_intensity"] is None:
        raise click.UsageError("--carbon-source says where --carbon-intensity comes from: give that too")
    for name in ("carbon_intensity", "per_day"):
        if choices.get(name) is not None and not isfinite(choices[name]):
            raise click.UsageError(f"--{name.replace('_', '-')} must be a finite number")
    if choices["country"] is not None:
        from tpsprune.energy.grid import grid_of

        grid_of(choices["country"])


def ended(
    folder: ComparisonFolder, choices: dict[str, Any], *, gate: bool, quiet: bool, as_json: bool
) -> None:
    """Write the report, show what it says, and let the gate decide on the exit code."""
    from tpsprune.report.assessment import assessed, choose
    from tpsprune.report.live import OurConsole
    from tpsprune.report.savings.pages import write_report
    from tpsprune.report.tables import savings_summary
    from tpsprune.runs import read_text

    choose(folder, **choices)
    savings = assessed(folder)
    digest = sha256(folder.journal.path.read_bytes()).hexdigest()
    written = write_report(savings, folder.path, journal_sha256=digest)
    if as_json:
        sys.stdout.write(read_text(folder.path / "report.json"))
    elif not quiet:
        console = OurConsole()
        console.print(savings_summary(savings), highlight=False)
        console.print()
        for path in written:
            if path.suffix in {".html", ".md", ".json"} and path.parent == folder.path:
                console.print(f"Written: {path}", highlight=False, markup=False, soft_wrap=True)
    if gate and not savings.verdict.standing.is_saving:
        click.get_current_context().exit(GATE_CLOSED)
