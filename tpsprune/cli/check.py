"""``tpsprune check``, ``recipes`` and ``doctor``: a recipe, the shipped ones, this machine: nothing runs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tpsprune.cli.options import (
    device_option,
    echo_json,
    imports,
    json_option,
    naming,
    recipe_argument,
    set_option,
)


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
@click.option("--no-widths", is_flag=True, help="Skip the statistics that the widths need.")
@click.option("--print", "print_recipe", is_flag=True, help="Print the recipe with all defaults and stop.")
@json_option("One JSON object instead of tables.")
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
        echo_json(dump(found))
        return
    from tpsprune.report.checks import check_tables
    from tpsprune.report.live import OurConsole

    console = OurConsole()
    console.print(check_tables(found), highlight=False)


@click.command(short_help="List the shipped recipes.")
@json_option("One JSON object instead of a table.")
def recipes(*, as_json: bool) -> None:
    """List the shipped recipes and what each shows."""
    from tpsprune import recipe
    from tpsprune.recipe.read import shipped_recipes

    shows = {name: recipe.read(path).shows for name, path in shipped_recipes().items()}
    if as_json:
        echo_json(shows)
        return
    width = max(map(len, shows))
    for name, text in shows.items():
        click.echo(
            click.wrap_text(
                text, 80, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2)
            )
        )
    click.echo("\nRun one:  tpsprune train NAME      See its text:  tpsprune check NAME --print")


@click.command(
    short_help="This machine: what is measured here, and what would measure more.",
    epilog="""\b
Examples:
  tpsprune doctor
  tpsprune doctor --json > machine.json
""",
)
@json_option()
def doctor(*, as_json: bool) -> None:
    """Look at this machine: devices, what meters each, how good the figures are, and what would be better.

    Nothing is trained or written, and no network is used.
    """
    with imports():
        from tpsprune.energy.doctor import examine
        from tpsprune.records import dump

        found = examine()
    if as_json:
        echo_json(dump(found))
        return
    from tpsprune.report.checks import diagnosis_tables
    from tpsprune.report.live import OurConsole

    console = OurConsole()
    if not console.is_terminal:
        console = OurConsole(width=None if "COLUMNS" in os.environ else 80)
    console.print(diagnosis_tables(found), highlight=False)
