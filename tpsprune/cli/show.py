"""``tpsprune show``: a finished run once more, from its folder."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["show"]


@click.command(short_help="Show a finished run again.", epilog="Example:  tpsprune show runs/digits-0123abcd")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print result.json.")
@click.option("--picture", is_flag=True, help="Draw signals.svg and signals.png in RUN anew, and stop.")
def show(folder: Path, *, as_json: bool, picture: bool) -> None:
    """Show a finished run again: decisions, widths, the closing tables, and where its picture lies."""
    if picture:
        from tpsprune.report.picture import draw

        click.echo(" ".join(map(str, draw(folder))))
        return
    from tpsprune.runs import RunFolder, read_result, to_json_text

    result = read_result(RunFolder.open_existing(folder).result)
    if as_json:
        click.echo(to_json_text(result), nl=False)
        return
    from tpsprune.records import Outcome
    from tpsprune.report import tables
    from tpsprune.report.console import OurConsole
    from tpsprune.report.live import print_next

    outcome = Outcome.from_json(result, folder=str(folder))
    console = OurConsole()
    console.print(tables.whole_run(outcome), highlight=False)
    print_next(console, outcome)
