"""Arguments and options that several commands share, and how a running command shows what happens."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tpsprune.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from tpsprune.report.live import AbstractShow
    from tpsprune.runs import ComparisonFolder

__all__ = [
    "GATE_CLOSED",
    "check_choices",
    "check_folder",
    "check_show",
    "choice_options",
    "compare_show_for",
    "compare_show_options",
    "device_option",
    "ended",
    "folder_options",
    "gate_option",
    "grid_options",
    "imports",
    "naming",
    "recipe_argument",
    "set_option",
    "show_for",
    "show_options",
    "target_override",
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
    from tpsprune.report.console import OurConsole
    from tpsprune.report.live import BarShow, JsonShow, PlainShow, QuietShow

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
    from tpsprune.report.compare_live import BarCompare, JsonCompare, PlainCompare
    from tpsprune.report.console import OurConsole
    from tpsprune.report.live import QuietShow

    if quiet:
        return QuietShow()
    if as_json:
        return JsonCompare(sys.stderr)
    console = OurConsole()
    return BarCompare(console) if console.is_terminal else PlainCompare(console)


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
    from tpsprune.report.console import OurConsole
    from tpsprune.report.savings_files import write_report
    from tpsprune.report.savings_text import savings_lines
    from tpsprune.runs import read_text

    choose(folder, **choices)
    savings = assessed(folder)
    digest = sha256(folder.journal.path.read_bytes()).hexdigest()
    written = write_report(savings, folder.path, journal_sha256=digest)
    if as_json:
        sys.stdout.write(read_text(folder.path / "report.json"))
    elif not quiet:
        console = OurConsole()
        console.print(savings_lines(savings), highlight=False)
        console.print()
        for path in written:
            if path.suffix in {".html", ".md", ".json"} and path.parent == folder.path:
                console.print(f"Written: {path}", highlight=False, markup=False, soft_wrap=True)
    if gate and not savings.verdict.standing.is_saving:
        click.get_current_context().exit(GATE_CLOSED)


EXAMPLES = "macs=0.5, params=0.5, latency=0.5, tolerance=0.01, widths=FILE.json or widths=conv1=12,conv2=30"


def target_override(words: str) -> str:
    """Return ``prune.target={ ... }`` for the words of ``--target``.

    >>> target_override("macs=0.5")
    'prune.target={ "macs" = 0.5 }'
    >>> target_override("widths=conv1=12,conv2=30")
    'prune.target={ "widths" = { "conv1" = 12, "conv2" = 30 } }'

    Raises:
        BadParameter: no such kind of target, or a value that none can have.
    """
    from tpsprune.recipe.prune import TARGETS

    kind, equals, value = (part.strip() for part in words.partition("="))
    if kind not in TARGETS or not equals:
        hint = did_you_mean(kind, TARGETS) if equals else ""
        raise _bad(f"'{words}' is no target{hint}: {EXAMPLES} would do")
    if kind != "widths":
        return f"prune.target={{ {json.dumps(kind)} = {_share(kind, value)!r} }}"
    widths = _from_file(Path(value)) if value.endswith(".json") else _from_words(value)
    table = ", ".join(f"{json.dumps(name)} = {count}" for name, count in widths.items())
    return f'prune.target={{ "widths" = {{ {table} }} }}'


def _share(kind: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise _bad(f"{kind}={text}: a number above 0 and below 1 is needed") from None
    if not isfinite(share) or not 0 < share < 1:
        raise _bad(f"{kind}={text}: a share above 0 and below 1 is needed")
    return share


def _from_words(text: str) -> dict[str, int]:
    widths: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, equals, count = (part.strip() for part in item.partition("="))
        if not equals or not count.isdecimal():
            raise _bad(f"widths: '{item.strip()}' is not GROUP=UNITS; widths=conv1=12,conv2=30 would do")
        widths[name] = int(count)
    if not widths:
        raise _bad("widths names no group: a FILE.json, or conv1=12,conv2=30 would do")
    return widths


def _from_file(path: Path) -> dict[str, int]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _bad(f"widths={path}: the file is not there") from None
    except (OSError, ValueError) as error:
        raise _bad(f"widths={path}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict) or not raw or not all(type(count) is int for count in raw.values()):
        raise _bad(f'widths={path}: an object of units by group is needed: {{"conv1": 12, "conv2": 30}}')
    return raw


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--target")
