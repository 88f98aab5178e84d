"""``tpsprune train``: from a recipe to a pruned, measured ticket."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpsprune.cli.options import device_option, imports, naming, recipe_argument, set_option

if TYPE_CHECKING:
    from tpsprune.report.live import AbstractShow

__all__ = ["train"]


@click.command(
    short_help="Train, draw the ticket, retrain it, weigh both.",
    epilog="""\b
Examples:
  tpsprune train digits
  tpsprune train my.toml --set train.epochs=3 --set seed=1
  tpsprune train my.toml --resume        # go on after a kill
""",
)
@recipe_argument
@set_option
@device_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that holds the run folders.",
)
@click.option("--resume", is_flag=True, help="Go on with this recipe's run from its last checkpoint.")
@click.option("--again", is_flag=True, help="Run once more, in a new folder beside the old one.")
@click.option("--quiet", is_flag=True, help="Show nothing; the run folder has it all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and event.")
def train(
    recipe_source: str,
    overrides: tuple[str, ...],
    device: str,
    out: Path,
    *,
    resume: bool,
    again: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the model of RECIPE, draw its ticket when the signals say so, retrain it, weigh both.

    RECIPE is a TOML file, or the name of a shipped recipe (see 'tpsprune recipes').
    """
    if resume and again:
        raise click.UsageError("--resume goes on with a run and --again begins another: give one of them")
    if quiet and as_json:
        raise click.UsageError("--quiet shows nothing and --json shows everything: give one of them")
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    with imports():
        from tpsprune import pipeline
        from tpsprune.records import Finished

    with naming(recipe_source), _show(quiet=quiet, as_json=as_json) as show:
        for event in pipeline.train(read, out, device=device, resume=resume, again=again):
            if isinstance(event, Finished):
                _draw_picture(event.outcome.folder, show)
            show.show(event)


def _draw_picture(folder: str, show: AbstractShow) -> None:
    """Draw the run's picture; that it cannot be written is said, and takes nothing from the result."""
    from tpsprune.errors import RunFolderError
    from tpsprune.records import Note
    from tpsprune.report import picture

    try:
        picture.draw(Path(folder))
    except RunFolderError as error:
        show.show(Note(f"no picture: {error}; then 'tpsprune show {folder} --picture' draws it"))


def _show(*, quiet: bool, as_json: bool) -> AbstractShow:
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
