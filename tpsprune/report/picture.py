"""The picture of a finished run, drawn from its folder: not part of the run, and not on its bill."""

from __future__ import annotations

from pathlib import Path

from tpsprune.records import Outcome, Reading
from tpsprune.report import figures
from tpsprune.runs import RunFolder, read_result, write_bytes_atomically

__all__ = ["draw"]


def draw(run: Path) -> tuple[Path, Path]:
    """Draw ``signals.svg`` and ``signals.png`` into the folder of a finished run; return their paths.

    Raises:
        RunFolderError: it is no run folder, its run is not finished, or the pictures cannot be written.
    """
    folder = RunFolder.open_existing(run)
    outcome = Outcome.from_json(read_result(folder.result), folder=str(run))
    readings = folder.readings.parsed(Reading.from_json)
    title = f"{outcome.name}, seed {outcome.seed}"
    figure = figures.run_figure(title, readings, outcome.drawn, outcome.stopped, outcome.groups)
    vector, raster = folder.path / "signals.svg", folder.path / "signals.png"
    write_bytes_atomically(vector, figures.rendered(figure, "svg"))
    write_bytes_atomically(raster, figures.rendered(figure, "png"))
    return vector, raster
