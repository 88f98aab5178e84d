"""``tpsprune train`` and ``tpsprune prune``: from a recipe, or a trained model, to a measured ticket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpsprune.cli.options import (
    check_folder,
    check_show,
    device_option,
    folder_options,
    imports,
    naming,
    recipe_argument,
    set_option,
    show_for,
    show_options,
    target_override,
)

if TYPE_CHECKING:
    from tpsprune.report.live import AbstractShow


@click.command(
    short_help="Train, draw the ticket, retrain it, benchmark both.",
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
    """Train the model of RECIPE, draw its ticket when a rule on its signals acts, retrain it, benchmark both.

    RECIPE is a TOML file, or the name of a shipped recipe (see 'tpsprune recipes').
    """
    check_folder(resume=resume, again=again)
    check_show(quiet=quiet, as_json=as_json)
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    with imports():
        from tpsprune import pipeline
        from tpsprune.records import Finished

    is_first = os.environ.get("RANK", "0") == "0"
    with naming(recipe_source), show_for(quiet=quiet or not is_first, as_json=as_json) as show:
        for event in pipeline.train(read, out, device=device, resume=resume, again=again):
            if isinstance(event, Finished) and is_first:
                _draw_picture(event.outcome.folder, show)
            show.show(event)


def _draw_picture(folder: str, show: AbstractShow) -> None:
    """Plot the run; a fault in writing the picture is reported and leaves the result as it is."""
    from tpsprune.errors import RunFolderError
    from tpsprune.records import Note
    from tpsprune.report import pictures

    try:
        pictures.plot_run(Path(folder))
    except RunFolderError as error:
        show.show(Note(f"no picture: {error}; then 'tpsprune show {folder} --picture' draws it"))


@click.command(
    short_help="Prune a trained model, without retraining.",
    epilog="""\b
Examples:
  tpsprune prune digits --weights model.safetensors --target macs=0.5
  tpsprune prune my.toml --weights runs/my-0123abcd --target params=0.3 --dry-run
  tpsprune prune efficientnet-lite0        # the recipe names the weights
  tpsprune prune my.toml --weights model.pt --target widths=conv1=12,conv2=30
  tpsprune prune my.toml --weights model.pt --set prune.quality=best
  tpsprune prune my.toml --weights model.pt --set prune.low_rank=true    # split layers too
""",
)
@recipe_argument
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The trained model: safetensors, a state dict (.pt, .pth), a run folder (its dense model) or an "
    "exported ticket. Default: the recipe's task.model.weights.",
)
@click.option(
    "--target",
    metavar="KIND=VALUE",
    help="What the ticket may cost: macs=, params=, bytes=, latency= or joules= a share of the dense model, "
    "tolerance= a share of the consumers' inputs that may be lost, widths=GROUP=UNITS,... or "
    "widths=FILE.json. Default: the recipe's.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be pruned and what the ticket would cost; write nothing."
)
@set_option
@device_option
@folder_options
@show_options
def prune(
    recipe_source: str,
    weights: Path | None,
    target: str | None,
    overrides: tuple[str, ...],
    device: str,
    out: Path,
    *,
    dry_run: bool,
    resume: bool,
    again: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Prune the trained model of RECIPE: find redundant units, keep the others, let them compensate.

    RECIPE names model and data; its [train] is not run. The ticket is retrained only where
    retrain.epochs is a number; 'rest', the default, is none here.
    """
    check_folder(resume=resume, again=again)
    check_show(quiet=quiet, as_json=as_json)
    if dry_run and (resume or again):
        raise click.UsageError(
            "--dry-run writes nothing, so there is nothing to go on with or to begin again"
        )
    from tpsprune import recipe

    own = (target_override(target),) if target is not None else ()
    read = recipe.read(recipe_source, (*own, *overrides))
    with imports():
        from tpsprune import pipeline

    with naming(recipe_source), show_for(quiet=quiet, as_json=as_json) as show:
        if dry_run:
            events = pipeline.prune_dry(read, weights, device=device)
        else:
            events = pipeline.prune(read, weights, out, device=device, resume=resume, again=again)
        for event in events:
            show.show(event)
