"""``tpsprune repair``: what another tool has pruned, fitted to the dense model."""

from __future__ import annotations

from pathlib import Path

import click

from tpsprune.cli.options import (
    check_show,
    device_option,
    imports,
    naming,
    recipe_argument,
    set_option,
    show_for,
    show_options,
)


@click.command(
    short_help="Fit a model that another tool has pruned to its dense original.",
    epilog="""\b
Examples:
  tpsprune repair my.toml pruned.safetensors --like dense.safetensors --to tickets/repaired
  tpsprune repair my.toml pruned.pt --like runs/my-0123abcd --to tickets/repaired --set prune.quality=best
  python -c "import tpsprune; model = tpsprune.load('tickets/repaired')"
""",
)
@recipe_argument
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="The dense weights, as 'tpsprune prune --weights' takes them. Default: the recipe's "
    "task.model.weights.",
)
@click.option("--to", "out", required=True, type=click.Path(path_type=Path), help="New folder for it.")
@set_option
@device_option
@show_options
def repair(
    recipe_source: str,
    pruned: Path,
    like: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fit PRUNED, a smaller state dict of the model of RECIPE, to the dense model it was made of.

    PRUNED is safetensors or a state dict (.pt, .pth) of any tool that removes units: the same names, smaller
    tensors. Its units are found by their weights, every layer is fitted to the dense model without labels,
    and the ticket is written with its plan as 'tpsprune export' writes one.
    """
    check_show(quiet=quiet, as_json=as_json)
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    with imports():
        from tpsprune import pipeline

    with naming(recipe_source), show_for(quiet=quiet, as_json=as_json) as show:
        for event in pipeline.repair(read, pruned, like, out, device=device):
            show.show(event)
