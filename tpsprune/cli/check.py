"""``tpsprune check``: every fault of a recipe at once; what of its model can be pruned, and what cannot."""

from __future__ import annotations

import json

import click

from tpsprune.cli.options import device_option, imports, naming, recipe_argument, set_option

__all__ = ["check"]


@click.command(
    short_help="Every fault of a recipe; what of its model can be pruned.",
    epilog="""\b
Examples:
  tpsprune check digits
  tpsprune check my.toml --set prune.target.macs=0.25
""",
)
@recipe_argument
@set_option
@device_option
@click.option("--print", "print_recipe", is_flag=True, help="Print the recipe with all defaults and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def check(
    recipe_source: str, overrides: tuple[str, ...], device: str, *, print_recipe: bool, as_json: bool
) -> None:
    """Check RECIPE: its text, its data, its model, and what of the model can be pruned.

    Nothing is trained, and nothing is written but the cache of an image folder.
    """
    from tpsprune import recipe

    read = recipe.read(recipe_source, overrides)
    if print_recipe:
        click.echo(recipe.dumps(read), nl=False)
        return
    with imports():
        from tpsprune import pipeline

    with naming(recipe_source):
        found = pipeline.check(read, device)
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
        return
    from tpsprune.report import tables
    from tpsprune.report.console import OurConsole

    console = OurConsole()
    console.print(tables.checked(found), highlight=False)
