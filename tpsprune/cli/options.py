"""Arguments and options that several commands share, and how a running command shows what happens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tpsprune.cli.terminal import ESCAPED, adapt_streams, holding_signals
from tpsprune.errors import RecipeError, WorkerError, did_you_mean

if TYPE_CHECKING:
    from tpsprune.jobs.address import Address
    from tpsprune.report.live import AbstractShow

Command = TypeVar("Command", bound=Callable[..., Any])
GATE_CLOSED: Final = 5
"""Exit code of ``--gate`` where the verdict, on the training that was fixed beforehand, is no saving."""
TARGET_EXAMPLES: Final = (
    "macs=0.5, params=0.5, bytes=0.5, latency=0.5, joules=0.5, tolerance=0.01, "
    "widths=FILE.json or widths=conv1=12,conv2=30"
)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options, in this order in the help."""
    return lambda command: reduce(lambda found, option: option(found), reversed(options), command)


def json_option(text: str = "One JSON object instead of text.") -> Callable[[Command], Command]:
    """Return what adds ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=text, callback=_escape_where_lacking)


def _escape_where_lacking(context: click.Context, option: click.Parameter, as_json: bool) -> bool:  # noqa: ARG001 -- click's signature
    if as_json:
        adapt_streams(ESCAPED)
    return as_json


def echo_json(value: Any) -> None:
    """Print a value as one indented JSON object."""
    from tpsprune.records.strict import escape_json

    click.echo(escape_json(json.dumps(value, ensure_ascii=False, indent=2)))


def read_workers(context: click.Context, option: click.Parameter, value: str) -> int | Address:
    """Return the number of workers here, or the address of a cluster's, that was typed."""
    if value.lstrip("-").isdecimal():
        return int(click.IntRange(min=1).convert(int(value), option, context))
    return _read_address(value)


def read_machines(context: click.Context, option: click.Parameter, value: str | None) -> Address | None:  # noqa: ARG001 -- click's signature
    """Return the address of a cluster's machines that was typed."""
    return None if value is None else _read_address(value)


def _read_address(value: str) -> Address:
    from tpsprune.jobs.address import parse_address

    try:
        return parse_address(value)
    except WorkerError as error:
        raise click.BadParameter(str(error)) from error


recipe_argument = click.argument("recipe_source", metavar="RECIPE")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one value of the recipe; may be repeated.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU where there is one.",
)
folder_options = _together(
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("runs"),
        show_default=True,
        help="Folder that holds the run folders.",
    ),
    click.option("--resume", is_flag=True, help="Go on with this recipe's run from its last checkpoint."),
    click.option("--again", is_flag=True, help="Run once more, in a new folder beside the old one."),
)
show_options = _together(
    click.option("--quiet", is_flag=True, help="Show nothing; the run folder has it all."),
    json_option("One JSON object per line and event."),
)
compare_show_options = _together(
    click.option("--quiet", is_flag=True, help="Show nothing; the report has it all."),
    json_option("Print report.json at the end; finished runs go to stderr."),
)
grid_options = _together(
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
choice_options = _together(
    grid_options,
    click.option(
        "--per-day",
        type=click.FloatRange(min=0, min_open=True),
        metavar="NUMBER",
        help="Predictions a day, for the break-even in days.",
    ),
)
gate_option = click.option(
    "--gate", is_flag=True, help=f"End with exit code {GATE_CLOSED} unless the verdict is a saving."
)


def check_folder(*, resume: bool, again: bool) -> None:
    """Refuse ``--resume`` and ``--again`` at once."""
    if resume and again:
        raise click.UsageError("--resume resumes a run and --again begins another: choose one of them")


def check_show(*, quiet: bool, as_json: bool) -> None:
    """Refuse ``--quiet`` and ``--json`` at once, before anything heavy is imported."""
    if quiet and as_json:
        raise click.UsageError("--quiet shows nothing and --json shows everything: choose one of them")


def check_choices(choices: dict[str, Any]) -> None:
    """Refuse two grids at once, and a factor that comes from nowhere.

    Raises:
        UsageError: names it, before anything is run.
    """
    if choices["country"] is not None and choices["carbon_intensity"] is not None:
        raise click.UsageError("--country and --carbon-intensity are two grids: choose one of them")
    if choices["carbon_intensity"] is not None and not choices["carbon_source"].strip():
        raise click.UsageError(
            "--carbon-intensity needs --carbon-source: where the factor comes from, and its year"
        )
    if choices["carbon_source"] and choices["carbon_intensity"] is None:
        raise click.UsageError("--carbon-source is the source of --carbon-intensity: add that too")
    for name in ("carbon_intensity", "per_day"):
        if choices.get(name) is not None and not isfinite(choices[name]):
            raise click.UsageError(f"--{name.replace('_', '-')} must be a finite number")
    if choices["country"] is not None:
        from tpsprune.energy.grid import grid_of

        grid_of(choices["country"])


@contextmanager
def imports() -> Iterator[None]:
    """Hold back Ctrl-C while heavy libraries are imported, and let it act thereafter.

    Some of them swallow an interrupt, or break on it in ways of their own.
    """
    with holding_signals():
        yield


@contextmanager
def naming(recipe_source: str) -> Iterator[None]:
    """Give faults that show only when a recipe's own code is called the name the user typed."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(recipe_source, error.faults) from error


def show_for(*, quiet: bool, as_json: bool) -> AbstractShow:
    """Return what shows a run: nothing, JSON, a bar on a terminal, or lines elsewhere."""
    from tpsprune.report.live import BarShow, JsonShow, LineShow, OurConsole, QuietShow

    if quiet:
        return QuietShow()
    if as_json:
        return JsonShow(sys.stdout)
    console = OurConsole()
    if console.is_terminal:
        return BarShow(console)
    return LineShow(OurConsole(width=None if "COLUMNS" in os.environ else 80))


def compare_show_for(*, quiet: bool, as_json: bool) -> AbstractShow:
    """Return what shows a comparison: nothing, JSON on standard error, a bar on a terminal, or lines."""
    from tpsprune.report.live import BarCompare, JsonCompare, LineCompare, OurConsole, QuietShow

    if quiet:
        return QuietShow()
    if as_json:
        return JsonCompare(sys.stderr)
    console = OurConsole()
    return BarCompare(console) if console.is_terminal else LineCompare(console)


def target_override(text: str) -> str:
    """Return ``prune.target={ ... }`` for the text of ``--target``.

    >>> target_override("macs=0.5")
    'prune.target={ "macs" = 0.5 }'
    >>> target_override("widths=conv1=12,conv2=30")
    'prune.target={ "widths" = { "conv1" = 12, "conv2" = 30 } }'

    Raises:
        BadParameter: no such kind of target, or a value that none can have.
    """
    from tpsprune.recipe.prune import TARGETS

    kind, equals, value = (part.strip() for part in text.partition("="))
    if kind not in TARGETS or not equals:
        hint = did_you_mean(kind, TARGETS) if equals else ""
        raise _bad(f"'{text}' is no target{hint}: use {TARGET_EXAMPLES}")
    if kind != "widths":
        return f"prune.target={{ {json.dumps(kind)} = {share_of(kind, value)!r} }}"
    widths = _from_file(Path(value)) if value.endswith(".json") else _from_words(value)
    table = ", ".join(f"{json.dumps(name)} = {count}" for name, count in widths.items())
    return f'prune.target={{ "widths" = {{ {table} }} }}'


def share_of(kind: str, text: str, option: str = "--target") -> float:
    """Return the share that a user typed for a kind of target, at an option.

    Raises:
        BadParameter: it is no share.
    """
    try:
        share = float(text)
    except ValueError:
        raise _bad(f"{kind}={text}: a number above 0 and below 1 is needed", option) from None
    if not isfinite(share) or not 0 < share < 1:
        raise _bad(f"{kind}={text}: a share above 0 and below 1 is needed", option)
    return share


def _from_words(text: str) -> dict[str, int]:
    widths: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, equals, count = (part.strip() for part in item.partition("="))
        if not equals or not count.isdecimal():
            raise _bad(f"widths: '{item.strip()}' is not GROUP=UNITS; use widths=conv1=12,conv2=30")
        widths[name] = int(count)
    if not widths:
        raise _bad("widths names no group: use a FILE.json, or conv1=12,conv2=30")
    return widths


def _from_file(path: Path) -> dict[str, int]:
    from tpsprune.records.strict import read_bytes, strict_json

    try:
        raw = strict_json(read_bytes(path))
    except FileNotFoundError:
        raise _bad(f"widths={path}: the file is not there") from None
    except (OSError, ValueError) as error:
        raise _bad(f"widths={path}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict) or not raw or not all(type(count) is int for count in raw.values()):
        raise _bad(f'widths={path}: an object of units by group is needed: {{"conv1": 12, "conv2": 30}}')
    return raw


def _bad(message: str, option: str = "--target") -> click.BadParameter:
    return click.BadParameter(message, param_hint=option)
