"""A run or a comparison as it happens: bars on a terminal, lines elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import errno
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn, Self, TextIO, final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from tpsprune import records
from tpsprune.errors import printable
from tpsprune.records import ArmRun, Comparing, dump, joules_of, seconds_of
from tpsprune.records.strict import escape_json
from tpsprune.report import tables, words

BAR_COLUMNS = 36
"""Columns that title, epoch, bar and time left take."""


@final
class OurConsole(Console):
    """A console that shows text as it is, without markup, and whatever would steer the terminal escaped.

    It leaves a closed output to the command, which can name the run that continues.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return text to be shown, escaped before it is laid out."""
        return super().render_str(printable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of anything, their texts escaped; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error, where the library would end the program without a message."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


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
        body = dump(event.outcome if isinstance(event, records.Finished) else event)
        _print_json(self._stream, {"event": type(event).__name__.lower(), **body})


@final
class JsonCompare(AbstractShow):
    """One JSON object per finished run, without its windows; those are in the journal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Comparing) -> None:
        """Print a finished run, or a note, as one line."""
        match event:
            case records.ArmEnded(run=run, number=number, total=total):
                left_out = {"windows", "history", "method"}
                fields = {key: value for key, value in dump(run).items() if key not in left_out}
                _print_json(self._stream, {"event": "arm-ended", "number": number, "total": total, **fields})
            case records.Note(text=text):
                _print_json(self._stream, {"event": "note", "text": text})
            case _:
                pass


@final
class LineShow(AbstractShow):
    """A line per reading: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Comparing) -> None:
        """Print what a log wants to keep."""
        match event:
            case records.PhaseStarted():
                _print_line(self._console, f"{event.title} ({event.total_steps - event.done_steps} steps)")
            case records.Progress(read=True):
                where = f"  {event.step}/{event.total_steps}  epoch {event.epoch:.1f}"
                _print_line(self._console, f"{where}  {_figures(event)}")
            case _:
                _print_result(self._console, event)


@final
class LineCompare(AbstractShow):
    """A line for each run as it ends: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, event: Comparing) -> None:
        """Print what a log wants to keep."""
        _print_run(self._console, event)


class _AbstractBar(AbstractShow):
    """Bars that stand while the context is open."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


@final
class BarShow(_AbstractBar):
    """A live bar per phase, with what was read last and the time left."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description} {task.fields[epoch]}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        super().__init__(console, Progress(*columns, console=console))
        self._tasks: dict[str, TaskID] = {}
        self._figures = ""

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
                epoch = f"epoch {event.epoch:.1f}"
                task = self._tasks[event.phase]
                self._bar.update(task, completed=event.step, epoch=epoch, figures=self._figures)
            case records.PhaseEnded():
                self._bar.stop_task(self._tasks[event.phase])
            case _:
                _print_result(self._console, event)


@final
class BarCompare(_AbstractBar):
    """A bar of all runs with the time left, and below it where the run under way stands."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        super().__init__(console, Progress(*columns, console=console))
        self._runs = self._bar.add_task("runs", total=None, figures="")
        self._run = self._bar.add_task("", total=None, figures="")
        self._arm = ""

    def show(self, event: Comparing) -> None:
        """Move the bars, or print above them."""
        match event:
            case records.ArmBegun():
                self._arm = event.arm if event.arm == "warm-up" else f"{event.arm}, seed {event.seed}"
                self._bar.update(self._run, description=self._arm, total=None, completed=0, figures="")
            case records.PhaseStarted(title=title, total_steps=total, done_steps=done):
                where = f"{self._arm}: {title}" if total > 1 else title
                self._bar.update(self._run, description=where, total=total, completed=done, figures="")
            case records.Progress():
                joules = "" if event.joules is None else words.joules(event.joules)
                figures = f"epoch {event.epoch:.1f}  {joules}"
                self._bar.update(self._run, completed=event.step, figures=figures)
            case records.ArmEnded(number=number, total=total):
                figures = f"{number} of {total}{_time_left(event, ', ')}"
                self._bar.update(self._runs, total=total, completed=number, figures=figures)
                _print_run(self._console, event)
            case _:
                _print_run(self._console, event)


def run_line(run: ArmRun, quality: str = "accuracy") -> str:
    """Return a finished run in one line: its energy with the class, its time, and its test result."""
    energy, seconds = words.joules(joules_of(run.windows)), words.seconds(seconds_of(run.windows))
    kinds = sorted({str(kind) for window in run.windows for kind in window.classes.values()})
    classes = " + ".join(kinds) or "not metered"
    result = f"failed: {run.failure}" if run.failure else f"test {quality} {run.accuracy:.4f}"
    if run.sizes:
        result += f" ({', '.join(f'{each.size:g}: {each.accuracy:.4f}' for each in run.sizes)})"
    return f"{run.arm}, seed {run.seed}: {energy} ({classes}), {seconds}, {result}"


def print_next(console: Console, outcome: records.RunResult) -> None:
    """Print the lines that are to be copied, whole whatever the width."""
    console.print()
    for line in tables.next_lines(outcome):
        _print_line(console, line)


def _print_result(console: Console, event: Comparing) -> None:
    """Print the events that are results: decisions, the pruning, notes and the closing tables."""
    match event:
        case records.Decided(decision=decision):
            console.print(tables.decision_text(decision), highlight=False)
        case records.Pruned():
            title = "Widths" if event.rounds == 1 else f"Widths, round {event.round} of {event.rounds}"
            console.print(tables.widths_table(event.groups, title))
            for line in tables.left_alone_lines(event.unpruned):
                console.print(f"left alone  {line}", highlight=False, markup=False)
            console.print(tables.prune_line(event), highlight=False)
        case records.Note(text=text):
            console.print(f"Note: {text}", highlight=False, markup=False)
        case records.Sized(member=member, number=number, total=total):
            _print_line(console, f"{number}/{total}  {tables.member_line(member, event.quality)}")
        case records.FamilyFinished(family=family, folder=folder):
            console.print(tables.family_table(family), highlight=False)
            _print_line(console, f"\nFamily: {folder}   Page: {folder}/README.md")
        case records.Repaired():
            console.print(tables.repaired_table(event), highlight=False)
            _print_line(console, f"\nBundle: {event.folder}   Page: {event.folder}/README.md")
        case records.Transferred():
            console.print(tables.transferred_table(event), highlight=False)
            _print_line(console, f"\nBundle: {event.folder}   Page: {event.folder}/README.md")
        case records.Finished(outcome=outcome):
            console.print(tables.closing(outcome), highlight=False)
            print_next(console, outcome)
        case _:
            pass


def _print_run(console: Console, event: Comparing) -> None:
    match event:
        case records.ArmBegun(arm="warm-up"):
            _print_line(console, "warming up: a short run, thrown away")
        case records.ArmEnded(number=number, total=total):
            line = f"{number}/{total}  {run_line(event.run, event.quality)}{_time_left(event, '; ')}"
            _print_line(console, line)
        case records.Note():
            _print_line(console, f"Note: {event.text}")
        case _:
            pass


def _time_left(event: records.ArmEnded, before: str) -> str:
    return f"{before}about {words.seconds(event.seconds_left)} left" if event.seconds_left else ""


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


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_json(stream: TextIO, line: dict[str, Any]) -> None:
    stream.write(escape_json(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n")
    stream.flush()
