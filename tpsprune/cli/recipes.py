"""``tpsprune recipes``: the shipped recipes and what each shows."""

from __future__ import annotations

import json

import click

__all__ = ["recipes"]


@click.command(short_help="List the shipped recipes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def recipes(*, as_json: bool) -> None:
    """List the shipped recipes and what each shows."""
    from tpsprune import recipe
    from tpsprune.recipe import shipped

    shows = {name: recipe.read(str(shipped.path_of(name))).shows for name in shipped.names()}
    if as_json:
        click.echo(json.dumps(shows, ensure_ascii=False, indent=2))
        return
    width = max(map(len, shows))
    for name, text in shows.items():
        click.echo(
            click.wrap_text(
                text, 80, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2)
            )
        )
    click.echo("\nRun one:  tpsprune train NAME      See its text:  tpsprune check NAME --print")
