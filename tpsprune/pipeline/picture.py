"""The picture of a finished run, drawn from its folder; not part of the run, and so not on its bill."""

from __future__ import annotations

from pathlib import Path

from tpsprune.records import Outcome, Reading
from tpsprune.runs import RunFolder, read_result

__all__ = ["picture"]


def picture(run: Path) -> tuple[Path, Path]:
    """Draw ``signals.svg`` and ``signals.png`` into the folder of a finished run; return their paths.

    Raises:
        RunFolderError: it is no run folder, or its run is not finished.
    """
    from tpsprune.report import figures  # imports matplotlib, which no other job needs

    folder = RunFolder.open_existing(run)
    outcome = Outcome.from_json(read_result(folder.result), folder=str(run))
    readings = [Reading.from_json(raw) for raw in folder.readings.read()[0]]
    title = f"{outcome.name}, seed {outcome.seed}"
    figure = figures.run_figure(title, readings, outcome.drawn, outcome.stopped, outcome.groups)
    vector, raster = folder.path / "signals.svg", folder.path / "signals.png"
    figures.save(figure, vector)
    figures.save(figure, raster)
    return vector, raster
