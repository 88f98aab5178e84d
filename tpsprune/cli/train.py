"""``tpsprune train``: from a recipe to a pruned, measured ticket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpsprune.cli.options import (
    check_folder,
    device_option,
    folder_options,
    imports,
    naming,
    recipe_argument,
    set_option,
)
from tpsprune.cli.shows import check_show, show_for, show_options

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
@folder_options
@show_options
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
    check_folder(resume=resume, again=again)
    check_show(quiet=quiet, as_json=as_json)
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    with imports():
        from tpsprune import pipeline
        from tpsprune.records import Finished

    with naming(recipe_source), show_for(quiet=quiet, as_json=as_json) as show:
        for event in pipeline.train(read, out, device=device, resume=resume, again=again):
            if isinstance(event, Finished):
                _draw_picture(event.outcome.folder, show)
            show.show(event)


def _draw_picture(folder: str, show: AbstractShow) -> None:
    """Draw the run's picture; that it cannot be written is said, and takes nothing from the result."""
    from tpsprune.errors import RunFolderError
    from tpsprune.records import Note
    from tpsprune.report import pictures

    try:
        pictures.plot_run(Path(folder))
    except RunFolderError as error:
        show.show(Note(f"no picture: {error}; then 'tpsprune show {folder} --picture' draws it"))
