"""``tpsprune transfer``: a trained encoder, frozen, on a new task."""

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
    target_override,
)


@click.command(
    short_help="Put a trained encoder, frozen and cut, on a new task.",
    epilog="""\b
Examples:
  tpsprune transfer new-task.toml --from runs/my-0123abcd --to tickets/new-task
  tpsprune transfer new-task.toml --from model.safetensors --target macs=0.5 --to tickets/new-task
  tpsprune transfer new-task.toml --from model.pt --no-cut --epochs 5 --to tickets/new-task
  python -c "import tpsprune; model = tpsprune.load('tickets/new-task')"
""",
)
@recipe_argument
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="The trained encoder, as 'tpsprune prune --weights' takes it; its last linear layer is not used.",
)
@click.option("--to", "out", required=True, type=click.Path(path_type=Path), help="New folder for it.")
@click.option(
    "--target",
    metavar="KIND=VALUE",
    help="What the cut encoder may cost, as for 'tpsprune prune'. Default: the recipe's.",
)
@click.option("--no-cut", is_flag=True, help="Keep all of the encoder.")
@click.option("--epochs", metavar="N", help="Epochs of the last layer. Default: train.epochs of RECIPE.")
@set_option
@device_option
@show_options
def transfer(
    recipe_source: str,
    source: Path,
    out: Path,
    target: str | None,
    epochs: str | None,
    overrides: tuple[str, ...],
    device: str,
    *,
    no_cut: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a new last linear layer for the task of RECIPE on what a trained encoder gives, and that alone.

    RECIPE is the new task, with a model of the same architecture; classes may be others. What the encoder
    gives is computed once, not in every epoch. Unless --no-cut, the model is then cut on items of the new
    task, without their labels, and the layer is trained once more on what is left.
    """
    check_show(quiet=quiet, as_json=as_json)
    if no_cut and target is not None:
        raise click.UsageError("--no-cut cuts nothing, so --target has nothing to say: choose one of them")
    from tpsprune import recipe

    own = [target_override(target)] if target is not None else []
    own += [f"train.epochs={epochs}"] if epochs is not None else []
    read = recipe.read(recipe_source, (*own, *overrides))
    with imports():
        from tpsprune import pipeline

    with naming(recipe_source), show_for(quiet=quiet, as_json=as_json) as show:
        for event in pipeline.transfer(read, source, out, cuts=not no_cut, device=device):
            show.show(event)
