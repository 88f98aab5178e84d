"""``tpsprune fidelity``: whether a ticket still does what its dense model did."""

from __future__ import annotations

from pathlib import Path

import click

from tpsprune.cli.options import device_option, echo_json, imports, json_option


@click.command(
    short_help="Read how faithful a ticket is to its dense model.",
    epilog="""\b
Examples:
  tpsprune fidelity runs/digits-0123abcd
  tpsprune fidelity runs/my-0123abcd --items 512 --json
  python -c "import tpsprune; help(tpsprune.fidelity)"     # of any two models and batches
""",
)
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--items",
    type=click.IntRange(min=16),
    default=2048,
    show_default=True,
    help="Items of the test split, at most.",
)
@click.option(
    "--trust-code",
    is_flag=True,
    help="Run the code that the recipe in RUN names (a custom model, data or loss): yours, or code you have "
    "read.",
)
@device_option
@json_option("Print fidelity.json.")
def fidelity(folder: Path, items: int, device: str, *, trust_code: bool, as_json: bool) -> None:
    """Compare the ticket of RUN with its dense model, beyond accuracy, on items of the test split.

    Agreement and divergence of what both decide, how much of the dense model's outputs and last states the
    ticket explains, calibration, neural collapse, how well either tells foreign inputs apart, and the barrier
    of loss on the straight line between their weights. Kept in RUN; 'tpsprune show' prints it again.
    """
    with imports():
        from tpsprune import pipeline
    from tpsprune.records import dump

    found = pipeline.fidelity(folder, items=items, device=device, trust_code=trust_code)
    if as_json:
        echo_json(dump(found))
        return
    from tpsprune.report.fidelity import fidelity_table
    from tpsprune.report.live import OurConsole

    OurConsole().print(fidelity_table(found), highlight=False)
