"""The picture of a finished run, drawn from its folder: not part of the run, and not on its bill."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from tpsprune.records import Reading, RunResult
from tpsprune.report import figures
from tpsprune.runs import RunFolder, read_result, write_bytes_atomically

__all__ = ["draw", "draw_beside"]


def draw(run: Path) -> tuple[Path, Path]:
    """Draw ``signals.svg`` and ``signals.png`` into the folder of a finished run; return their paths.

    Raises:
        RunFolderError: it is no run folder, its run is not finished, or the pictures cannot be written.
    """
    folder, outcome, readings = _read(run)
    title = f"{outcome.name}, seed {outcome.seed}"
    figure = figures.run_figure(
        title,
        readings,
        outcome.drawn,
        outcome.stopped,
        outcome.groups,
        quality=outcome.task.quality,
        loss_unit=outcome.task.loss_unit,
    )
    return _written(figure, folder.path / "signals")


def draw_beside(run: Path, other: Path) -> tuple[Path, Path]:
    """Draw the signals of two finished runs, ``beside-OTHER.svg`` and ``.png`` in the first.

    Raises:
        RunFolderError: as ``draw``.
    """
    both = []
    for each in (run, other):
        folder, outcome, readings = _read(each)
        title = f"{folder.path.resolve().name}, seed {outcome.seed}"
        task = outcome.task
        both.append(figures.Beside(title, readings, outcome.drawn.epoch, task.quality, task.loss_unit))
    return _written(figures.beside_figure(both), run / f"beside-{other.resolve().name}")


def _read(run: Path) -> tuple[RunFolder, RunResult, list[Reading]]:
    folder = RunFolder.open_existing(run)
    outcome = read_result(folder.result)
    return folder, outcome, list(folder.readings.parsed(Reading))


def _written(figure: Figure, stem: Path) -> tuple[Path, Path]:
    vector, raster = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_bytes_atomically(vector, figures.rendered(figure, "svg"))
    write_bytes_atomically(raster, figures.rendered(figure, "png"))
    return vector, raster
