"""A comparison as it happens: a bar with the time left on a terminal, a line for each run elsewhere."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self, TextIO, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tpsprune import records
from tpsprune.records import ArmRun, Comparing
from tpsprune.report import words
from tpsprune.report.live import AbstractShow

__all__ = ["BarCompare", "JsonCompare", "PlainCompare", "run_line"]


@final
class JsonCompare(AbstractShow):
    """One JSON object per finished run, without its windows; those are in the journal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Comparing) -> None:
        """Print a finished run, or a note, as one line."""
        match event:
            case records.ArmEnded():
                run = {
                    key: value
                    for key, value in records.dump(event.run).items()
                    if key not in {"windows", "course", "method"}
                }
                line = {"event": "arm-ended", "number": event.number, "total": event.total, **run}
            case records.Note(text=text):
                line = {"event": "note", "text": text}
            case _:
                return
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()


@final
class PlainCompare(AbstractShow):
    """A line for each run as it ends: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Comparing) -> None:
        """Print what a log wants to keep."""
        _show_line(self._console, event)


@final
class BarCompare(AbstractShow):
    """A bar of all runs with the time left, and below it where the run under way stands."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._whole: TaskID | None = None
        self._run: TaskID | None = None
        self._arm = ""

    def __enter__(self) -> Self:
        self._bar.start()
        self._whole = self._bar.add_task("runs", total=None, figures="")
        self._run = self._bar.add_task("", total=None, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: Comparing) -> None:
        """Move the bars, or print above them."""
        assert self._whole is not None
        assert self._run is not None
        match event:
            case records.ArmBegun():
                self._arm = event.arm if event.arm == "warm-up" else f"{event.arm}, seed {event.seed}"
                self._bar.update(self._run, description=self._arm, total=None, completed=0, figures="")
            case records.PhaseStarted():
                where = f"{self._arm}: {event.title}" if event.total_steps > 1 else event.title
                self._bar.update(
                    self._run,
                    description=where,
                    total=event.total_steps,
                    completed=event.done_steps,
                    figures="",
                )
            case records.Progress():
                joules = "" if event.joules is None else words.joules(event.joules)
                self._bar.update(
                    self._run, completed=event.step, figures=f"epoch {event.epoch:.1f}  {joules}"
                )
            case records.ArmEnded():
                left = f", about {words.seconds(event.seconds_left)} left" if event.seconds_left else ""
                self._bar.update(
                    self._whole,
                    total=event.total,
                    completed=event.number,
                    figures=f"{event.number} of {event.total}{left}",
                )
                _show_line(self._console, event)
            case _:
                _show_line(self._console, event)


def run_line(run: ArmRun, quality: str = "accuracy") -> str:
    """Return a finished run in one line: what it took, its class and where it came to."""
    joules = [window.total_joules for window in run.windows]
    known = [value for value in joules if value is not None]
    spent = words.joules(sum(known) if len(known) == len(joules) else None)
    classes = sorted({str(kind) for window in run.windows for kind in window.classes.values()})
    took = words.seconds(sum(window.seconds for window in run.windows))
    left = f"failed: {run.failure}" if run.failure else f"test {quality} {run.accuracy:.4f}"
    return f"{run.arm}, seed {run.seed}: {spent} ({' + '.join(classes) or 'not metered'}), {took}, {left}"


def _show_line(console: Console, event: Comparing) -> None:
    match event:
        case records.ArmBegun(arm="warm-up"):
            text = "warming up: a short run, thrown away"
        case records.ArmEnded():
            left = f"; about {words.seconds(event.seconds_left)} left" if event.seconds_left else ""
            text = f"{event.number}/{event.total}  {run_line(event.run, event.quality)}{left}"
        case records.Note():
            text = f"Note: {event.text}"
        case _:
            return
    console.print(text, highlight=False, markup=False, soft_wrap=True)
