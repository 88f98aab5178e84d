"""A comparison as it happens: a line for each run, JSON for programs, bars on a terminal."""

from __future__ import annotations

import json
from io import StringIO

from rich.console import Console

from tests.claims.conftest import run
from tpsprune.records import ArmBegun, ArmEnded, Comparing, Note, PhaseStarted, Progress
from tpsprune.report.compare_live import BarCompare, JsonCompare, PlainCompare

EVENTS: tuple[Comparing, ...] = (
    ArmBegun(arm="warm-up", seed=0, number=0, total=0),
    ArmBegun(arm="dense", seed=3, number=1, total=12),
    PhaseStarted(phase="train", title="train", total_steps=100),
    Progress(phase="train", step=50, total_steps=100, epoch=2.5, joules=80.0),
    ArmEnded(run=run("dense", 3, 120.0), number=1, total=12, seconds_left=90.0),
    ArmEnded(
        run=run("ticket", 3, 20.0, failure="the loss is not finite", accuracy=None),
        number=2,
        total=12,
        seconds_left=0.0,
    ),
    Note("after three pairs: [bold]these[/] words"),
)


def shown(terminal: bool) -> str:
    stream = StringIO()
    console = Console(file=stream, width=100, force_terminal=terminal)
    with BarCompare(console) if terminal else PlainCompare(console) as show:
        for event in EVENTS:
            show.show(event)
    return stream.getvalue()


def test_lines_say_what_a_run_took_its_class_and_where_it_came_to() -> None:
    assert shown(terminal=False).splitlines() == [
        "warming up: a short run, thrown away",
        "1/12  dense, seed 3: 120 J (measured), 20.0 s, test accuracy 0.9000; about 90.0 s left",
        "2/12  ticket, seed 3: 20.0 J (measured), 20.0 s, failed: the loss is not finite",
        "Note: after three pairs: [bold]these[/] words",
    ]


def test_a_terminal_has_bars_and_the_same_lines() -> None:
    text = shown(terminal=True)
    assert "2 of 12" in text
    assert "dense, seed 3: train" in text
    assert "epoch 2.5  80.0 J" in text
    assert "test accuracy 0.9000" in text


def test_json_has_a_line_for_each_run_and_note_without_windows() -> None:
    stream = StringIO()
    for event in EVENTS:
        JsonCompare(stream).show(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["arm-ended", "arm-ended", "note"]
    assert (lines[0]["arm"], lines[0]["accuracy"]) == ("dense", 0.9)
    assert not {"windows", "course", "method"} & set(lines[0])
