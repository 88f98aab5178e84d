"""``tpsprune export``: the ticket as files to hand on, reloaded and compared before they are called done."""

from __future__ import annotations

from pathlib import Path

import click

from tpsprune.cli.options import imports

__all__ = ["export"]


@click.command(
    short_help="Write the ticket of a run as files to hand on.",
    epilog="""\b
Example:
  tpsprune export runs/digits-0123abcd --to tickets/digits
  python -c "import tpsprune; model = tpsprune.load('tickets/digits')"
""",
)
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path), help="New folder for the ticket."
)
def export(folder: Path, target: Path) -> None:
    """Write the ticket of RUN as safetensors, plan and recipe; reload it and compare its outputs.

    The folder is written beside and renamed: it comes whole or not at all.
    """
    with imports():
        from tpsprune import pipeline

    exported = pipeline.export(folder, target)
    click.echo(f"{exported.folder}: {', '.join(exported.files)}")
    click.echo(
        f"reloaded and compared on {exported.items} random inputs: "
        f"largest difference {exported.largest_difference:g}"
    )
    click.echo(f"load it:  python -c \"import tpsprune; model = tpsprune.load('{exported.folder}')\"")
