"""``tpsprune doctor``: this machine: its devices and meters, what is measured and what is only modelled."""

from __future__ import annotations

import json
import os

import click

from tpsprune.cli.options import imports

__all__ = ["doctor"]


@click.command(
    short_help="This machine: what is measured here, and what would measure more.",
    epilog="""\b
Examples:
  tpsprune doctor
  tpsprune doctor --json > machine.json
""",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def doctor(*, as_json: bool) -> None:
    """Look at this machine: devices, what meters each, how good the figures are, and what would be better.

    Nothing is trained or written, and no network is asked.
    """
    with imports():
        from tpsprune.energy.doctor import examine
        from tpsprune.records import dump

        found = examine()
    if as_json:
        click.echo(json.dumps(dump(found), ensure_ascii=False, indent=2))
        return
    from tpsprune.report.checks import diagnosis_tables
    from tpsprune.report.live import OurConsole

    console = OurConsole()
    if not console.is_terminal:
        console = OurConsole(width=None if "COLUMNS" in os.environ else 80)
    console.print(diagnosis_tables(found), highlight=False)
