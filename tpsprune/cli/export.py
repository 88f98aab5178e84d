"""``tpsprune export``: the ticket as files to hand on, reloaded and compared before they are called done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tpsprune.cli.options import check_choices, echo_json, grid_options, imports, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from tpsprune.records import Exported, Exporting, Grid


FORMATS: Final = ("safetensors", "torch-export", "onnx", "hf")
QUIET_SECONDS: Final = 2.0


@click.command(
    short_help="Write a ticket as files to hand on.",
    epilog="""\b
Examples:
  tpsprune export runs/digits-0123abcd --to tickets/digits
  tpsprune export runs/digits-0123abcd --to tickets/digits --format safetensors --format onnx
  tpsprune export runs/digits-0123abcd --to tickets/digits --country FRA   # with grams of CO₂
  tpsprune export families/digits --pick "latency<=5ms" --to deploy/digits --format onnx
  tpsprune export families/digits/0.5 --to deploy/half
  python -c "import tpsprune; model = tpsprune.load('tickets/digits')"

\b
Formats (all go into one folder, with plan, recipe, model card and hashes):
  safetensors    what tpsprune.load reads; equal to the bit
  torch-export   a torch.export program (.pt2), any batch size; needs torch alone
  onnx           any batch size; needs pip install 'tpsprune[onnx]'
  hf             config.json and model.safetensors for from_pretrained, where a configuration has the widths
""",
)
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path), help="New folder for the ticket."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    default=("safetensors",),
    show_default="safetensors",
    help="A format to write; may be repeated.",
)
@click.option(
    "--pick",
    "limits",
    multiple=True,
    metavar="LIMIT",
    help="Of a family the largest size within this, as it was measured when the family was made: "
    "latency<=5ms, size<=2MB, accuracy>=-1pt, ...; may be repeated.",
)
@click.option(
    "--trust-code",
    is_flag=True,
    help="Run the code that the recipe in FOLDER names where its model is custom: yours, or code you have "
    "read.",
)
@grid_options
@json_option()
def export(
    folder: Path,
    target: Path,
    formats: tuple[str, ...],
    limits: tuple[str, ...],
    *,
    trust_code: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write the ticket of FOLDER in every format requested; reload each and compare its outputs.

    FOLDER is what train or prune left, a family or one of its sizes, or an exported ticket. The new folder is
    written under another name and renamed: it appears whole or not at all, and only if the outputs of every
    reloaded format are those of the ticket in batches of 1, 2, 7 and 16.
    """
    check_choices(choices)
    with imports():
        from tpsprune import pipeline
        from tpsprune.recipe.within import read_within
        from tpsprune.records import Exported, dump

    pick = [read_within(each, "--pick") for each in limits]
    exported: Exported | None = None
    with _progress() as step:
        grid = _grid(choices)
        for event in pipeline.export_steps(
            folder, target, formats, pick=pick, grid=grid, trust_code=trust_code
        ):
            if isinstance(event, Exported):
                exported = event
            else:
                step(event)
    assert exported is not None, "the last event is the export"
    if as_json:
        echo_json(dump(exported))
    else:
        _print_summary(exported)


def _print_summary(exported: Exported) -> None:
    if exported.size is not None:
        click.echo(f"size {exported.size:g} was picked")
    click.echo(f"{exported.folder}: {', '.join(exported.files)}")
    for each in exported.compared:
        *first, last = map(str, each.batches)
        difference = f"largest difference {each.largest_difference:g}"
        if each.tolerance_share:
            difference += f" (passes up to {each.allowed:.2g}, {each.tolerance_share:g} of the largest score)"
        batches = f"{', '.join(first)} and {last} random inputs"
        click.echo(f"{each.format}: reloaded and compared on {batches}: {difference}")
    if "ticket.safetensors" in exported.files:
        trust = ", trust_code=True" if exported.calls else ""
        call = f"tpsprune.load('{exported.folder}'{trust})"
        click.echo(f'load it:  python -c "import tpsprune; model = {call}"')
    if "modeling_pruned.py" in exported.files:
        click.echo(
            "hf: widths differ from layer to layer, so modeling_pruned.py lies beside the weights and "
            "loading needs trust_remote_code=True; of a ticket cut with --set prune.widths=uniform "
            "config.json says all"
        )
    click.echo(f"how to load each format, and what is in it:  {exported.folder}/README.md")


def _grid(choices: dict[str, Any]) -> Grid | None:
    from tpsprune.energy.grid import grid_of, own_grid

    if choices["country"] is not None:
        return grid_of(choices["country"])
    if choices["carbon_intensity"] is not None:
        return own_grid(choices["carbon_intensity"], choices["carbon_source"])
    return None


@contextmanager
def _progress() -> Iterator[Callable[[Exporting], None]]:
    """Give what shows a step on standard error: on a terminal at once, else as a line after two seconds."""
    from tpsprune.report.live import OurConsole

    console, begun = OurConsole(stderr=True), time.monotonic()
    if console.is_terminal:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reading the run")
            yield lambda event: bar.update(task, description=f"{event.format}: {event.doing}")
        return

    def line(event: Exporting) -> None:
        if time.monotonic() - begun > QUIET_SECONDS:
            click.echo(f"{event.format}: {event.doing} …", err=True)

    yield line
