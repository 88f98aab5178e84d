"""``tpsprune check``: every fault of a recipe at once; what of its model can be pruned, and what cannot."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tpsprune.cli.options import device_option, imports, naming, recipe_argument, set_option

__all__ = ["check"]


@click.command(
    short_help="Every fault of a recipe; what of its model can be pruned.",
    epilog="""\b
Examples:
  tpsprune check digits
  tpsprune check my.toml --set prune.target.macs=0.25
  tpsprune check my.toml --weights model.safetensors
""",
)
@recipe_argument
@set_option
@device_option
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Foresee the widths of these trained weights, as 'tpsprune prune' takes them.",
)
@click.option("--no-widths", is_flag=True, help="Leave out the look at the model that the widths take.")
@click.option("--print", "print_recipe", is_flag=True, help="Print the recipe with all defaults and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def check(
    recipe_source: str,
    overrides: tuple[str, ...],
    device: str,
    weights: Path | None,
    *,
    no_widths: bool,
    print_recipe: bool,
    as_json: bool,
) -> None:
    """Check RECIPE: its text, its data, its model, what of it can be pruned, what its target would leave.

    Nothing is trained, and nothing is written but the cache of an image folder.
    """
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    if print_recipe:
        click.echo(recipe.dumps(read), nl=False)
        return
    with imports():
        from tpsprune import pipeline
        from tpsprune.records import dump

    with naming(recipe_source):
        found = pipeline.check(read, device, weights=weights, widths=not no_widths)
    if as_json:
        click.echo(json.dumps(dump(found), ensure_ascii=False, indent=2))
        return
    from tpsprune.report.checks import check_tables
    from tpsprune.report.live import OurConsole

    console = OurConsole()
    console.print(check_tables(found), highlight=False)
