"""``tpsprune show``: a finished run once more, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpsprune.cli.options import imports, json_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tpsprune.records import Reading, RunResult


@click.command(
    short_help="Show a finished run again, or the signals of two.",
    epilog="Examples:  tpsprune show runs/digits-0123abcd;  tpsprune show runs/a-0123abcd runs/b-4567cdef",
)
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@json_option("Print result.json.")
@click.option(
    "--picture",
    is_flag=True,
    help="Draw signals.svg and .png (with OTHER: beside-OTHER) in RUN, and stop.",
)
def show(folder: Path, other: Path | None, *, as_json: bool, picture: bool) -> None:
    """Show a finished run again: signals, decisions, widths, the closing tables, and where its picture lies.

    How faithful the ticket is, the barrier from the dense weights to its own among it, is read the first time
    if that takes no more than about ten seconds, and kept in RUN; no run pays for it.

    With OTHER the signals of both over the same epochs and on the same scale, and nothing else.
    """
    if other is not None:
        if as_json:
            raise click.UsageError("--json is for one run")
        if not picture:
            _print_two(folder, other)
            return
    if picture:
        from tpsprune.report.pictures import plot_run, plot_two_runs

        click.echo(" ".join(map(str, plot_two_runs(folder, other) if other else plot_run(folder))))
        return
    from tpsprune.records import dump
    from tpsprune.runs import RunFolder, read_result, to_json_text

    if as_json:
        click.echo(to_json_text(dump(read_result(RunFolder.open_existing(folder).result))), nl=False)
        return
    from tpsprune.report import tables
    from tpsprune.report.live import OurConsole, print_next

    outcome, readings = _read(folder)
    console = OurConsole()
    if readings:  # Trained weights that were not retrained have none.
        console.print(tables.signals_table([tables.collect_signals(outcome, readings)]), "", highlight=False)
    console.print(tables.whole_run(outcome), highlight=False)
    panel = _fidelity_of(folder, outcome)
    console.print("", panel, highlight=False, soft_wrap=isinstance(panel, str))
    print_next(console, outcome)


def _fidelity_of(folder: Path, outcome: RunResult) -> RenderableType:
    """Return the panel of a run: the one kept, one read now if that is quick, or what reads it."""
    from tpsprune.report.fidelity import fidelity_table
    from tpsprune.runs import RunFolder, read_fidelity

    panel = RunFolder.open_existing(folder).fidelity
    if panel.is_file():
        return fidelity_table(read_fidelity(panel))
    with imports():
        from tpsprune import pipeline
    found = pipeline.fidelity_for_report(outcome)
    if not isinstance(found, str):
        return fidelity_table(found)
    why = found.rstrip(".")
    return f"Barrier dense → ticket, and the like: not read, {why}. 'tpsprune fidelity {folder}' reads it."


def _print_two(folder: Path, other: Path) -> None:
    from tpsprune.report import tables
    from tpsprune.report.live import OurConsole

    found = [tables.collect_signals(*_read(each)) for each in (folder, other)]
    OurConsole().print(tables.signals_table(found), highlight=False)


def _read(folder: Path) -> tuple[RunResult, list[Reading]]:
    from tpsprune.records import Reading
    from tpsprune.runs import RunFolder, read_result

    run = RunFolder.open_existing(folder)
    outcome = read_result(run.result)
    return outcome, list(run.readings.parsed(Reading))
