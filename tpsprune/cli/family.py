"""``tpsprune family``: one trained model, several verified smaller ones, and what each of them takes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from tpsprune.cli.options import (
    check_show,
    device_option,
    imports,
    naming,
    recipe_argument,
    set_option,
    share_of,
    show_for,
    show_options,
)

KINDS: Final = ("macs", "params", "bytes", "latency", "joules", "tolerance")


@click.command(
    short_help="Cut a trained model to several sizes at once.",
    epilog="""\b
Examples:
  tpsprune family digits --weights model.safetensors --sizes 0.75,0.5,0.25 --to families/digits
  tpsprune family runs/my-0123abcd --sizes 0.75,0.5 --to families/mine
  tpsprune family runs/my-0123abcd --sizes 0.35 --to families/mine      # a further size: no second look
  tpsprune family my.toml --weights model.pt --sizes 0.5,0.25 --by bytes --to families/mine
  tpsprune family my.toml --weights model.pt --sizes 0.7,0.5,0.3 --to families/mine \\
      --within "latency<=5ms" --within "size<=2MB" --within "accuracy>=-1pt"
  tpsprune export families/mine --pick "latency<=5ms" --to deploy/mine --format onnx
  python -c "import tpsprune; model = tpsprune.load('families/digits', size=0.5)"
""",
)
@recipe_argument
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The trained model, as 'tpsprune prune' takes it. Default: the recipe's task.model.weights.",
)
@click.option("--sizes", required=True, metavar="SHARE,...", help="Shares of the dense model, in any order.")
@click.option(
    "--by", type=click.Choice(KINDS), default="macs", show_default=True, help="What the sizes are shares of."
)
@click.option(
    "--to",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for all: new, or of this family.",
)
@click.option(
    "--within",
    "limits",
    multiple=True,
    metavar="LIMIT",
    help="What a size may take, and how good it must be; may be repeated. A size that breaks one is measured "
    "and not written.",
)
@set_option
@device_option
@show_options
def family(
    recipe_source: str,
    weights: Path | None,
    sizes: str,
    by: str,
    out: Path,
    limits: tuple[str, ...],
    overrides: tuple[str, ...],
    device: str,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Cut the trained model of RECIPE to several sizes from one look at it, and measure each.

    RECIPE may be a run folder, which has its recipe and its weights. Nothing is trained. The sizes are
    nested: each smaller one has some of the units of the larger. The folder has a bundle for each size,
    family.json, a page and a picture. Given again with further sizes, the command adds them; when it was
    killed, it goes on.
    """
    check_show(quiet=quiet, as_json=as_json)
    from tpsprune import recipe
    from tpsprune.recipe.prune import SHARES
    from tpsprune.recipe.within import read_within

    within = [read_within(each) for each in limits]
    shares = dict.fromkeys(share_of(by, each.strip(), "--sizes") for each in sizes.split(","))
    targets = [SHARES[by](share) for share in shares]
    source, weights = _recipe_of(recipe_source, weights)
    read = recipe.read(source, overrides)
    if source != recipe_source and read.task.model.kind == "custom":
        raise click.UsageError(
            f"the recipe in {recipe_source} calls code: give your own recipe, and --weights {recipe_source}"
        )
    with imports():
        from tpsprune import pipeline

    with naming(recipe_source), show_for(quiet=quiet, as_json=as_json) as show:
        for event in pipeline.family(read, weights, targets, out, within=within, device=device):
            show.show(event)


def _recipe_of(source: str, weights: Path | None) -> tuple[str, Path | None]:
    """Return the recipe of a run folder and the folder as weights; anything else as it is."""
    folder = Path(source)
    if weights is None and folder.is_dir() and (folder / "recipe.toml").is_file():
        return str(folder / "recipe.toml"), folder
    return source, weights
