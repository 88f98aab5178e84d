"""``tpsprune compare`` and ``tpsprune report``: pairs of runs, to a claim or its refusal."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpsprune.cli.options import (
    GATE_CLOSED,
    check_choices,
    check_show,
    choice_options,
    compare_show_for,
    compare_show_options,
    device_option,
    gate_option,
    imports,
    json_option,
    naming,
    read_machines,
    recipe_argument,
    set_option,
)

if TYPE_CHECKING:
    from tpsprune.jobs.address import Address
    from tpsprune.runs import ComparisonFolder


@click.command(
    short_help="Measure dense and ticket in pairs; claim a saving, or refuse to.",
    epilog="""\b
Examples:
  tpsprune compare digits                  # the ticket and its opponents, six pairs: reports/digits
  tpsprune compare digits --arms dense,ticket  # quicker; nothing is claimed of training then
  tpsprune compare digits --pairs 8        # eight from the start; added later they count more strictly
  tpsprune compare digits --arms dense,dense-stopped,ticket,shape-scratch,early-bird
  tpsprune compare digits --arms dense-each,family,each-joules --sizes 0.75,0.5,0.25
  tpsprune compare new-task.toml --from runs/my-0123abcd \\
      --arms dense,fine-tune,frozen,frozen-ticket,fine-tune-joules
  tpsprune compare digits --gate           # exit code 5 unless the verdict is a saving
  tpsprune compare digits --machines dask:tcp://HOST:8786   # each pair whole on one machine
  tpsprune compare digits --country FRA --per-day 10000

\b
Arms:
  dense                  the whole schedule: no TPS, no watching, validated once at the end
  dense-stopped          the ticket's run without pruning: the same TPS, signals and rules
  dense-patience         ordinary early stopping on validation loss (compare.patience)
  ticket                 the recipe as it is: train, watch, draw, prune, retrain
  ticket-without-tps     the same with TPS off
  shape-scratch          the ticket's shape, new weights, as many epochs as the ticket's run
  dense-joules           the dense model, its whole schedule compressed to the ticket's cost
  scratch-joules         the ticket's shape, new weights, its schedule fitted to that cost
  uniform-joules         uniform widths of the ticket's MACs, new weights, at that cost
  random-ticket          the ticket's widths, random units, in one round
  early-bird             after Early-Bird: L1 on batch-norm scales, mask rule, no compensation
  family                 one training of the dense model, cut to every size of --sizes
  dense-each             the family's shapes, new weights, the whole schedule for each of them
  each-joules            the same shapes on shorter schedules, together at the family's cost
  fine-tune              the encoder of --from, a new last layer, all of it trained
  frozen                 that encoder as it is: features once, a new last layer on them
  frozen-ticket          the same, cut for this task, and the layer trained once more
  fine-tune-joules       fine-tune on a shorter schedule, at the frozen ticket's cost
""",
)
@recipe_argument
@set_option
@device_option
@click.option(
    "--arms",
    "arm_words",
    default="dense,ticket,dense-joules,scratch-joules,uniform-joules",
    show_default=True,
    metavar="ARM,ARM,…",
    help="What is compared; the first is the baseline.",
)
@click.option(
    "--sizes",
    metavar="SHARE,...",
    help="Of 'family' and what is beside it: shares of the dense model's operations; else 0.75,0.5,0.25.",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="The trained encoder of fine-tune, frozen and the like, as for 'tpsprune transfer'; its training is "
    "not counted.",
)
@click.option(
    "--pairs",
    type=click.IntRange(1, 200),
    help="Seeds to compare on; 6, the fewest that can claim, without it.",
)
@click.option(
    "--machines",
    callback=read_machines,
    metavar="dask:ADDRESS",
    help="A Dask cluster, which makes each pair whole on one machine: dask:tcp://HOST:PORT.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of journal, runs and report; without it reports/NAME.",
)
@click.option(
    "--redo", is_flag=True, help="Set pairs with a broken measurement aside and run them once more."
)
@choice_options
@gate_option
@compare_show_options
def compare(
    recipe_source: str,
    overrides: tuple[str, ...],
    device: str,
    arm_words: str,
    sizes: str | None,
    source: Path | None,
    pairs: int | None,
    machines: Address | None,
    out: Path | None,
    *,
    redo: bool,
    gate: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Run RECIPE in every arm, on the same seeds, in pairs, and report what the ticket saves, if anything.

    A comparison that was broken off resumes with the next missing run by the same command. What would
    count is fixed by the recipe's [compare] section before the first run.
    """
    check_show(quiet=quiet, as_json=as_json)
    check_choices(choices)
    from tpsprune import recipe
    from tpsprune.recipe.compare import SIZED, arms_of

    arms = arms_of(arm_words)
    if sizes is not None:
        overrides = (*overrides, f"compare.sizes={_shares_of(sizes)}")
        if not set(arms) & set(SIZED):
            message = f"needs an arm of several sizes: {', '.join(SIZED)}"
            raise click.BadParameter(message, param_hint="--sizes")
    read = recipe.read(recipe_source, overrides)
    with imports():
        from tpsprune import pipeline
        from tpsprune.runs import ComparisonFolder
    folder = ComparisonFolder(out or Path("reports", read.name))
    command = shlex.join(["tpsprune", *sys.argv[1:]])
    with naming(recipe_source), compare_show_for(quiet=quiet, as_json=as_json) as show:
        run = (
            pipeline.compare if machines is None else partial(pipeline.compare_on_machines, machines=machines)
        )
        for event in run(
            read, folder, arms=arms, pairs=pairs, source=source, device=device, redo=redo, command=command
        ):
            show.show(event)
    _finish(folder, choices, gate=gate, quiet=quiet, as_json=as_json)


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
@click.option("--forget", is_flag=True, help="Forget every choice made before this call.")
@gate_option
@json_option("Print report.json instead of the tables.")
def report(folder: Path, *, gate: bool, as_json: bool, **choices: Any) -> None:
    """Make the report of the comparison in DIR again; nothing is run, and no weights are needed.

    What is chosen here (grid, volume, wall meter) is written into the journal and kept, until
    --forget.
    """
    check_choices(choices)
    from tpsprune.runs import ComparisonFolder

    _finish(ComparisonFolder(folder), choices, gate=gate, quiet=False, as_json=as_json)


def _shares_of(words: str) -> list[float]:
    try:
        return [float(each) for each in words.split(",")]
    except ValueError:
        message = f"'{words}': shares above 0 and below 1 are needed, as in 0.75,0.5,0.25"
        raise click.BadParameter(message, param_hint="--sizes") from None


def _finish(
    folder: ComparisonFolder, choices: dict[str, Any], *, gate: bool, quiet: bool, as_json: bool
) -> None:
    """Write the report, show its claims, and let the gate decide on the exit code."""
    from tpsprune.report.assessment import assess_journal, choose
    from tpsprune.report.live import OurConsole
    from tpsprune.report.savings.pages import write_report
    from tpsprune.report.tables import savings_summary
    from tpsprune.runs import read_text

    choose(folder, **choices)
    savings = assess_journal(folder)
    digest = sha256(folder.journal.path.read_bytes()).hexdigest()
    written = write_report(savings, folder.path, journal_sha256=digest)
    if as_json:
        sys.stdout.write(read_text(folder.path / "report.json"))
    elif not quiet:
        console = OurConsole()
        console.print(savings_summary(savings), highlight=False)
        console.print()
        for path in written:
            if path.suffix in {".html", ".md", ".json"} and path.parent == folder.path:
                console.print(f"Written: {path}", highlight=False, markup=False, soft_wrap=True)
    if gate and not savings.verdict.standing.is_saving:
        click.get_current_context().exit(GATE_CLOSED)
