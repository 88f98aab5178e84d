"""``tpsprune prune``: a trained model is given; a smaller one comes out."""

from __future__ import annotations

from pathlib import Path

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
from tpsprune.cli.target import target_override

__all__ = ["prune"]


@click.command(
    short_help="Cut a trained model, without retraining.",
    epilog="""\b
Examples:
  tpsprune prune digits --weights model.safetensors --target macs=0.5
  tpsprune prune my.toml --weights runs/my-0123abcd --target params=0.3 --dry-run
  tpsprune prune efficientnet-lite0        # the recipe names the weights
  tpsprune prune my.toml --weights model.pt --target widths=conv1=12,conv2=30
  tpsprune prune my.toml --weights model.pt --set retrain.epochs=3 --set prune.heal_steps=200
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
    help="What the ticket may cost: macs=, params= or latency= a share of the dense model, tolerance= a "
    "share of what is said that may be lost, widths=GROUP=UNITS,... or widths=FILE.json. "
    "Default: the recipe's.",
)
@click.option("--dry-run", is_flag=True, help="Show the cut and what it would cost; write nothing.")
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
    """Cut the trained model of RECIPE: find what its units say twice, keep the rest, teach it to say it all.

    RECIPE says which model and data; its [train] is not run. The ticket is retrained only where
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
