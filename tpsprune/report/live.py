"""A run as it happens: a live bar on a terminal, plain lines elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self, TextIO, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tpsprune import records
from tpsprune.records import Comparing
from tpsprune.report import tables, words

BAR_COLUMNS = 36
"""Columns that title, epoch, bar and time left take."""

__all__ = ["AbstractShow", "BarShow", "JsonShow", "PlainShow", "QuietShow", "print_next"]


class AbstractShow(ABC):
    """Shows what happens, one event after another; a context, so that a terminal is left as it was."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def show(self, event: Comparing) -> None:
        """Show one event."""


@final
class QuietShow(AbstractShow):
    """Shows nothing: the run folder has it all."""

    def show(self, event: Comparing) -> None:
        """Show nothing."""


@final
class JsonShow(AbstractShow):
    """One JSON object per line and event; the last one is ``result.json``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Comparing) -> None:
        """Print the event as one line."""
        name = type(event).__name__.lower()
        body = records.dump(event.outcome if isinstance(event, records.Finished) else event)
        line = json.dumps({"event": name, **body}, ensure_ascii=False, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()


@final
class PlainShow(AbstractShow):
    """A line per reading: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Comparing) -> None:
        """Print what a log wants to keep."""
        match event:
            case records.PhaseStarted():
                self._line(f"{event.title} ({event.total_steps - event.done_steps} steps)")
            case records.Progress(read=True):
                where = f"  {event.step}/{event.total_steps}  epoch {event.epoch:.1f}"
                self._line(f"{where}  {_figures(event)}")
            case _:
                show_result(self._console, event)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@final
class BarShow(AbstractShow):
    """A live bar per phase, with what was read last and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description} {task.fields[epoch]}"),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._figures = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: Comparing) -> None:
        """Move the bar, or print above it."""
        match event:
            case records.PhaseStarted():
                self._tasks[event.phase] = self._bar.add_task(
                    event.title, total=event.total_steps, completed=event.done_steps, epoch="", figures=""
                )
            case records.Progress():
                room = self._console.width - BAR_COLUMNS
                self._figures = _figures(event, room) if event.read else self._figures
                self._bar.update(
                    self._tasks[event.phase],
                    completed=event.step,
                    epoch=f"epoch {event.epoch:.1f}",
                    figures=self._figures,
                )
            case records.PhaseEnded():
                self._bar.stop_task(self._tasks[event.phase])
            case _:
                show_result(self._console, event)


def show_result(console: Console, event: Comparing) -> None:
    """Print the events that are results: decisions, the cut, notes and the closing tables."""
    match event:
        case records.Decided(decision=decision):
            console.print(tables.decided(decision), highlight=False)
        case records.Pruned():
            title = "Widths" if event.rounds == 1 else f"Widths, round {event.round} of {event.rounds}"
            console.print(tables.widths_table(event.groups, title))
            for line in tables.left_alone_lines(event.left_alone):
                console.print(f"left alone  {line}", highlight=False, markup=False)
            console.print(tables.cut_line(event), highlight=False)
        case records.Note(text=text):
            console.print(f"Note: {text}", highlight=False, markup=False)
        case records.Finished(outcome=outcome):
            console.print(tables.closing(outcome), highlight=False)
            print_next(console, outcome)
        case _:
            pass


def _figures(event: records.Progress, room: int | None = None) -> str:
    """Return what was read, in one line; where ``room`` is short the last signals are left out."""
    first, last = [], []
    if event.loss is not None:
        first.append(f"loss {event.loss:.3f}")
    if event.validation_accuracy is not None:
        name = "acc" if event.quality == "accuracy" else event.quality
        first.append(f"{name} {event.validation_accuracy:.3f}")
    signals = [f"{name} {value:.3g}" for name, value in event.signals]
    if event.watts is not None and event.joules is not None:
        last.append(f"{event.watts:.0f} W {words.joules(event.joules)}")
    while room is not None and signals and len("  ".join([*first, *signals, *last])) > room:
        signals.pop()
    return "  ".join([*first, *signals, *last])


def print_next(console: Console, outcome: records.RunResult) -> None:
    """Print the lines that are to be copied, whole whatever the width."""
    console.print()
    for line in tables.next_lines(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
