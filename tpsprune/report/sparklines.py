"""Signals over epochs in a terminal: a line of blocks for each, with its numbers; one run, or two alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tpsprune.records import Reading, RunResult

__all__ = ["Course", "course", "signals_table", "spark"]

BLOCKS: Final = "▁▂▃▄▅▆▇█"
COLUMNS: Final = 28
MISSING: Final = "·"


@dataclass(frozen=True, slots=True)
class Course:
    """The signals of one run: by name the epochs and values, none where there was none; the draw, the end."""

    title: str
    series: Mapping[str, tuple[tuple[float, float | None], ...]]
    drawn_epoch: float
    end_epoch: float


def course(outcome: RunResult, readings: Sequence[Reading]) -> Course:
    """Return what a run's journal says of the whole model; quality on validation under its own name."""
    found = outcome.task.quality
    quality = "validation_accuracy" if found == "accuracy" else found
    series: dict[str, list[tuple[float, float | None]]] = {}
    for reading in readings:
        if not reading.group:
            name = quality if reading.signal == "validation_accuracy" else reading.signal
            series.setdefault(name, []).append((reading.epoch, reading.value))
    title = f"{Path(outcome.folder).name}, seed {outcome.seed}"
    points = {name: tuple(each) for name, each in series.items()}
    return Course(title, points, outcome.drawn.epoch, outcome.stopped.epoch)


def spark(values: Sequence[float | None], low: float, high: float) -> str:
    """Return a block for each value, from the lowest at ``low`` to the highest at ``high``; a dot for none.

    >>> spark([0.0, None, 0.5, 1.0], 0.0, 1.0)
    '▁·▅█'
    """
    span = high - low
    steps = len(BLOCKS) - 1
    return "".join(
        MISSING if value is None else BLOCKS[round(steps * (value - low) / span) if span else steps // 2]
        for value in values
    )


def signals_table(runs: Sequence[Course]) -> RenderableType:
    """Return the signals of one run, or of two on the same scale and the same epochs, with their numbers.

    Of the readings that fall on one block the mean is shown. Marks above the lines: D the draw, E the end.
    """
    last = max((run.end_epoch for run in runs), default=0.0)
    most = max((len(points) for run in runs for points in run.series.values()), default=1)
    columns = max(1, min(COLUMNS, most))
    table = Table(box=None, pad_edge=False)
    table.add_column("signal", no_wrap=True)
    if len(runs) > 1:
        table.add_column("", no_wrap=True)
    table.add_column(f"epoch 0 to {last:g}", no_wrap=True)
    for heading in ("first", "at draw", "last"):
        table.add_column(heading, justify="right", no_wrap=True)
    letters = "AB"[: len(runs)]
    for letter, run in zip(letters, runs, strict=True):
        table.add_row("", *([letter] if len(runs) > 1 else []), _marks(run, last, columns), "", "", "")
    for name in dict.fromkeys(name for run in runs for name in run.series):
        binned = [_binned(run.series.get(name, ()), last, columns) for run in runs]
        seen = [value for values in binned for value in values if value is not None]
        low, high = (min(seen), max(seen)) if seen else (0.0, 0.0)
        for rank, (letter, run, values) in enumerate(zip(letters, runs, binned, strict=True)):
            table.add_row(
                name if rank == 0 else "",
                *([letter] if len(runs) > 1 else []),
                spark(values, low, high),
                *map(_shown, _numbers(run.series.get(name, ()), run.drawn_epoch)),
            )
    titles = [f"{letter}  {run.title}" for letter, run in zip(letters, runs, strict=True)]
    titles = titles if len(runs) > 1 else [run.title for run in runs]
    note = f"D drawn, E the end; {MISSING} no value; each line from its lowest to its highest"
    return Lines(*map(Text, titles), table, Text(note, style="dim"))


def _column(epoch: float, last: float, columns: int) -> int:
    # A reading at the end of an epoch is of that epoch.
    return min(columns - 1, max(0, ceil(columns * epoch / last - 1e-9) - 1)) if last else 0


def _marks(run: Course, last: float, columns: int) -> str:
    marks = [" "] * columns
    marks[_column(run.end_epoch, last, columns)] = "E"
    marks[_column(run.drawn_epoch, last, columns)] = "D"
    return "".join(marks).rstrip()


def _binned(points: Sequence[tuple[float, float | None]], last: float, columns: int) -> list[float | None]:
    held: list[list[float]] = [[] for _ in range(columns)]
    for epoch, value in points:
        if value is not None:
            held[_column(epoch, last, columns)].append(value)
    return [fmean(each) if each else None for each in held]


def _numbers(points: Sequence[tuple[float, float | None]], drawn_epoch: float) -> tuple[float | None, ...]:
    values = [value for _, value in points if value is not None]
    before = [value for epoch, value in points if value is not None and epoch <= drawn_epoch]
    return (values[0] if values else None, before[-1] if before else None, values[-1] if values else None)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
