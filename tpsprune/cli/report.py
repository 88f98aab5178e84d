"""``tpsprune report``: a comparison's report once more, from its journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpsprune.cli.savings import check_choices, choice_options, ended, gate_option

__all__ = ["report"]


@click.command(
    short_help="Make a comparison's report again, from its journal.",
    epilog="""\b
Examples:
  tpsprune report reports/digits                       # byte for byte the same
  tpsprune report reports/digits --country FRA         # with CO₂ by that country's grid
  tpsprune report reports/digits --per-day 10000       # break-even in days
  tpsprune report reports/digits --wall-meter plug.csv # joules from a meter at the plug: grade A
""",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@choice_options
@click.option(
    "--wall-meter",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="A plug meter's readings over all runs (timestamps with zone, watts): grade A.",
)
@click.option("--forget", is_flag=True, help="Forget every choice made before; those given now count.")
@gate_option
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the tables.")
def report(folder: Path, *, gate: bool, as_json: bool, **choices: Any) -> None:
    """Make the report of the comparison in DIR again; nothing is run, and no weights are needed.

    What is chosen here (grid, volume, wall meter) is written into the journal and stays chosen, until
    --forget.
    """
    check_choices(choices)
    from tpsprune.runs import ComparisonFolder

    ended(ComparisonFolder(folder), choices, gate=gate, quiet=False, as_json=as_json)
