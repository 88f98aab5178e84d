"""``tpsprune study``: a published prediction put to the test.

The command line of ``tpsprune`` finds this command by the entry point ``study`` of ``tpsprune.commands``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpsprune.cli.options import echo_json, json_option, read_workers

if TYPE_CHECKING:
    from tpsprune.jobs.address import Address


@click.command(
    short_help="Put a published prediction to the test.",
    epilog="""\b
Examples:
  tpsprune study                 # which there are, and what each predicts
  tpsprune study speed-up
  tpsprune study speed-up --seeds 8   # continues from five: none is run twice
  tpsprune study reach --workers 2    # two trainings at a time
  tpsprune study reach --workers dask:tcp://HOST:8786   # on the workers of a Dask cluster
  tpsprune study worth --images cifar10.zip   # with the regime that needs images
  tpsprune study speed-up --full --out found   # tuned on more seeds, compared on more: hours
  tpsprune study --theory        # reports/theory.md: every system of the theory, and what came out
""",
)
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--seeds",
    type=click.IntRange(min=2),
    help="Seeds to compare on, besides the pilot; the study's own number by default.",
)
@click.option(
    "--cap",
    "cap_steps",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps after which a training is stopped; the study's own number by default.",
)
@click.option(
    "--workers",
    callback=read_workers,
    default="1",
    show_default=True,
    metavar="N|dask:ADDRESS",
    help="Trainings at a time, each on one thread: sooner done, but their CPU-seconds disturb one another. "
    "Or a Dask cluster: dask:tcp://HOST:PORT, dask:local:N.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, path_type=Path),
    help="Folder or zip with train/CLASS/* and test/CLASS/*, which a regime of 'worth' is trained on.",
)
@click.option(
    "--full",
    is_flag=True,
    help="The larger size: hours, where the default takes up to 40 minutes of two cores.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports/studies"),
    show_default=True,
    help="Folder of the journal, the figures and the page.",
)
@click.option(
    "--theory",
    is_flag=True,
    help="Write theory.md beside the folder of --out: what came out of each system of the theory; then stop.",
)
@json_option("Print the figures as JSON; progress goes to stderr.")
@click.pass_context
def study(
    ctx: click.Context,
    name: str | None,
    seeds: int | None,
    cap_steps: int | None,
    out: Path,
    workers: int | Address,
    images: Path | None,
    *,
    full: bool,
    theory: bool,
    as_json: bool,
) -> None:
    """Put the published prediction NAME to the test, and print predicted and measured.

    An interrupted study continues where it stopped. Without NAME, list the studies there are.
    """
    from tpsprune.errors import did_you_mean
    from tpsprune_studies.catalogue import STUDIES, TakesImages, load_study

    if theory:
        if name is not None:
            raise click.UsageError("--theory is of all studies: leave NAME out", ctx)
        from tpsprune_studies.theory import write_theory

        click.echo(f"Page:  {write_theory(out)}")
        return
    if name is None:
        _list(as_json=as_json)
        return
    if name not in STUDIES:
        hint = did_you_mean(name, STUDIES) or f" (studies: {', '.join(STUDIES)})"
        raise click.UsageError(f"no study '{name}'{hint}", ctx)
    from tpsprune import recipe
    from tpsprune.report.study_figure import plot_study
    from tpsprune.runs import to_json_text
    from tpsprune_studies.conduct import conduct

    setup = load_study(name).make_setup(recipe.read(STUDIES[name].recipe), seeds, cap_steps, full=full)
    if images is not None:
        if not isinstance(setup, TakesImages):
            raise click.UsageError(f"--images is for 'worth': '{name}' takes none", ctx)
        setup = setup.with_images(images)

    for step in conduct(STUDIES[name], setup, out, workers):
        if isinstance(step, str):
            click.echo(step, err=as_json)
            continue
        picture = plot_study(out / f"{name}.json")
        if as_json:
            click.echo(to_json_text(step.to_json()), nl=False)
        else:
            click.echo(f"\nPredicted: {step.prediction.statement}")
            click.echo(f"Measured:  {step.ruling}; {step.sentence}")
            click.echo(f"Page:      {out / name}.md")
            click.echo(f"Picture:   {picture}")


def _list(*, as_json: bool) -> None:
    from tpsprune_studies.catalogue import STUDIES

    if as_json:
        echo_json({name: asdict(prediction) for name, prediction in STUDIES.items()})
        return
    for name, prediction in STUDIES.items():
        click.echo(f"{name}  {prediction.statement}")
        click.echo(f"{' ' * len(name)}  {prediction.source}")
    click.echo("\nRun one:  tpsprune study NAME")
