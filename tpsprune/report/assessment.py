"""The assessment of a journal: with the reader's choices, and a wall meter's joules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tpsprune.claims import assess
from tpsprune.energy.grid import grid_of, own_grid
from tpsprune.energy.wall_calibration import calibrate
from tpsprune.energy.wall_meter import WallMeter, read_wall_meter
from tpsprune.errors import MeterError
from tpsprune.records import Choices, ComparisonRecord, EnergyClass, EnergyMethod, Savings, WallFit, Window
from tpsprune.runs import ComparisonFolder, exclusive, read_bytes, write_bytes_atomically


def choose(
    folder: ComparisonFolder,
    *,
    country: str | None = None,
    carbon_intensity: float | None = None,
    carbon_source: str = "",
    per_day: float | None = None,
    wall_meter: Path | None = None,
    forget: bool = False,
) -> None:
    """Record what a reader chose, so that the report can be made again from the journal alone.

    Arguments left out keep the earlier choice, unless ``forget`` drops all of those. A wall meter's readings
    are copied into the journal's folder, once they are found to fit it.

    Raises:
        MeterError: an unknown country, a factor without a source, or readings that do not fit.
        RunFolderError: the folder holds no comparison, or cannot be written.
    """
    comparison, _ = folder.read()
    written = comparison.choices
    before = Choices() if forget else written
    grid = before.grid
    if country is not None:
        grid = grid_of(country)
    elif carbon_intensity is not None:
        grid = own_grid(carbon_intensity, carbon_source)
    after = Choices(
        grid=grid,
        per_day=before.per_day if per_day is None else per_day,
        wall_meter=before.wall_meter if wall_meter is None else folder.wall_meter.name,
    )
    if wall_meter is not None:
        _use_wall_meter(comparison, read_wall_meter(wall_meter))
        try:
            content = read_bytes(wall_meter)
        except OSError as error:
            raise MeterError(f"cannot read {wall_meter}: {error.strerror or error}") from error
        write_bytes_atomically(folder.wall_meter, content)
    if after != written:
        with exclusive(folder.runs / "lock", remedy="wait") if folder.runs.is_dir() else nullcontext():
            folder.append("choices", after)


def assess_journal(folder: ComparisonFolder) -> Savings:
    """Return the assessment of a journal, with a wall meter's joules where its folder holds the readings.

    Raises:
        RunFolderError: there is no journal, or it is damaged.
        MeterError: the wall meter's readings are missing or do not fit any more.
    """
    comparison, _ = folder.read()
    if comparison.choices.wall_meter is None:
        return assess(comparison)
    try:
        readings = folder.path / comparison.choices.wall_meter
        return assess(*_use_wall_meter(comparison, read_wall_meter(readings, follow=False)))
    except MeterError as error:
        raise MeterError(
            f"{error}. The readings were chosen earlier: 'tpsprune report {folder.path} --forget' leaves "
            "them out; the runs are safe in the journal"
        ) from error


def _use_wall_meter(
    comparison: ComparisonRecord, meter: WallMeter
) -> tuple[ComparisonRecord, WallFit | None]:
    """Return the comparison with each window's joules, and each run's method, as the wall meter has them."""
    inference, idle = comparison.inference, comparison.idle
    windows = [window for run in comparison.runs for window in run.windows]
    windows += [span.window for span in inference] + [span.window for span in idle]
    measured, fit = calibrate(meter, windows)
    of_wall = iter(measured)
    details = comparison.runs[0].method.details if comparison.runs else {}
    method = EnergyMethod(
        meter="wall meter",
        scope="machine",
        classes={"wall": EnergyClass.MEASURED},
        details={
            **{name: model for name, model in details.items() if name.endswith("_model")},
            "file": meter.name,
            "sha256": meter.sha256,
            "interval": f"{meter.interval_seconds:g} s",
        },
        excluded=("network", "cooling of the room", "embodied", "windows open at a kill"),
    )
    runs = tuple(
        replace(run, method=method, windows=tuple(_next(of_wall, len(run.windows))))
        for run in comparison.runs
    )
    return (
        replace(
            comparison,
            runs=runs,
            inference=tuple(replace(span, window=next(of_wall)) for span in inference),
            idle=tuple(replace(span, window=next(of_wall)) for span in idle),
        ),
        fit,
    )


def _next(windows: Iterator[Window], count: int) -> Iterator[Window]:
    for _ in range(count):
        yield next(windows)
