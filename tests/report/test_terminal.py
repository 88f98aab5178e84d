"""What a terminal shows: 80 columns, classes beside joules, runs as they happen, signals as blocks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.claims.conftest import run as arm_run
from tests.report.savings_examples import savings
from tpsprune.records import (
    ArmBegun,
    ArmEnded,
    Comparing,
    Cost,
    Decided,
    Decision,
    EnergyClass,
    EnergyMethod,
    Event,
    Finished,
    GroupChange,
    Latency,
    Milestone,
    ModelFigures,
    Note,
    PhaseEnded,
    PhaseEnergy,
    PhaseStarted,
    Progress,
    Projection,
    Pruned,
    Reading,
    RunResult,
    TaskFacts,
    Unpruned,
)
from tpsprune.report import tables
from tpsprune.report.live import (
    AbstractShow,
    BarCompare,
    BarShow,
    JsonCompare,
    JsonShow,
    LineCompare,
    LineShow,
    OurConsole,
    print_next,
    run_line,
)
from tpsprune.report.tables import RunSignals, collect_signals, signals_table, spark


def model(accuracy: float, parameters: int) -> ModelFigures:
    latencies = {
        f"batch-{batch}": Latency(
            median_seconds=2e-4 * batch,
            lower_quartile_seconds=1.9e-4 * batch,
            upper_quartile_seconds=2.3e-4 * batch,
            repeats=40,
        )
        for batch in (1, 64)
    }
    return ModelFigures(
        accuracy=accuracy,
        parameters=parameters,
        macs=parameters * 16,
        bytes=parameters * 4,
        latency_seconds=latencies,
    )


def decision(kind: str, epoch: float) -> Decision:
    return Decision(
        kind=kind, act=True, step=int(epoch * 16), epoch=epoch, rule="plateau", reason="d_eff calm"
    )


def outcome(joules: float | None = 123.4, valid: bool = True) -> RunResult:
    phase = PhaseEnergy(
        windows=9,
        seconds=4.2,
        cpu_seconds=8.1,
        joules=joules,
        joules_by_component={} if joules is None else {"cpu": joules},
        energy_class=EnergyClass.MODELLED if joules is not None else EnergyClass.NONE,
        valid=valid,
    )
    return RunResult(
        name="digits",
        seed=3,
        device="cpu",
        machine={"logical_cpus": 2},
        task=TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=10),
        dense=model(0.98, 50_000),
        ticket=model(0.979, 20_000),
        pruned_validation_accuracy=0.9,
        groups=(GroupChange(group="conv1", width_before=32, width_after=11, effective_rank=9.1),),
        unpruned=(Unpruned(name="head", reason="it is the model's output"),),
        drawn_at=Milestone.of(decision("draw", 9.0)),
        stopped_at=Milestone.of(decision("stop", 30.0)),
        epochs={"budget": 30.0, "trained": 30.0},
        energy={"train": phase},
        method=EnergyMethod(
            meter="codecarbon", scope="the whole machine", classes={"cpu": EnergyClass.MODELLED}
        ),
        total=Cost(joules=joules, seconds=4.2, cpu_seconds=8.1),
        projected_dense=Projection(joules=joules, seconds=14.0, cpu_seconds=27.0),
        overhead={"signals": 0.0123, "TPS": None},
        attempts=1,
        folder="runs/digits-01234567",
        notes=("a note",),
    )


def rendered(use: Callable[[Console], object], width: int = 80, *, terminal: bool = False) -> str:
    """Return what a console is given."""
    stream = io.StringIO()
    use(Console(width=width, file=stream, force_terminal=terminal, color_system=None))
    return stream.getvalue()


def printed(thing: object) -> str:
    return rendered(lambda console: console.print(thing, highlight=False))


def shown(make: Callable[[Console], AbstractShow], events: Iterable[Comparing], **more: Any) -> str:
    def run(console: Console) -> None:
        with make(console) as show:
            for event in events:
                show.show(event)

    return rendered(run, **more)


def lines_of(
    make: Callable[[io.StringIO], AbstractShow], events: Iterable[Comparing]
) -> list[dict[str, Any]]:
    stream = io.StringIO()
    for event in events:
        make(stream).show(event)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_closing_tables_fit_80_columns_and_carry_their_classes() -> None:
    text = printed(tables.closing(outcome()))
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("0.9800", "0.9790", "20,000", "0.40", "12.8 ms", "123 J", "modelled", "projection", "1.2%",
                 "TPS unknown", "Note: a note"):  # fmt: skip
        assert word in text, word


def test_the_commands_to_type_next_are_never_broken_in_two() -> None:
    text = rendered(lambda console: print_next(console, outcome()), 40)
    assert text.splitlines()[-2:] == [
        "  tpsprune show runs/digits-01234567",
        "  tpsprune export runs/digits-01234567 --to tickets/digits",
    ]


def test_what_was_not_metered_is_not_zero() -> None:
    text = printed(tables.closing(outcome(joules=None)))
    assert "not metered" in text
    assert " 0.00 J" not in text


def test_invalid_windows_are_seen_in_the_table() -> None:
    assert "modelled (invalid windows)" in printed(tables.closing(outcome(valid=False)))


def test_a_long_table_of_widths_says_what_it_leaves_out() -> None:
    groups = [GroupChange(group=f"layer{k}", width_before=8, width_after=4) for k in range(60)]
    text = printed(tables.widths_table(groups))
    assert "… 36 more, in plan.json" in text
    assert "layer0 " in text
    assert "layer59" in text


def test_a_run_is_shown_again_from_its_outcome() -> None:
    text = printed(tables.whole_run(outcome()))
    assert "Draw at epoch 9: d_eff calm" in text
    assert "left alone  head: it is the model's output" in text


EVENTS: list[Event] = [
    PhaseStarted(phase="train", title="train", total_steps=32),
    Progress(phase="train", step=8, total_steps=32, epoch=0.5),
    Progress(
        phase="train",
        step=16,
        total_steps=32,
        epoch=1.0,
        loss=0.51,
        validation_accuracy=0.9,
        signals=(("d_eff", 0.3),),
        joules=12.0,
        watts=28.0,
        read=True,
    ),
    PhaseEnded(phase="train"),
    Decided(decision=decision("draw", 1.0)),
    Pruned(
        groups=(GroupChange(group="conv1", width_before=32, width_after=11),),
        unpruned=(Unpruned(name="head", reason="it is the model's output"),),
        macs_share=0.4,
        parameters_share=0.41,
        validation_accuracy_before=0.9,
        validation_accuracy_after=0.88,
    ),
    Note("[not markup]"),
    Finished(outcome()),
]


def test_plain_lines_hold_each_reading_once_and_no_colour() -> None:
    text = shown(LineShow, EVENTS)
    assert text.count("epoch 1.0  loss 0.510  acc 0.900  d_eff 0.3  28 W 12.0 J") == 1
    assert "epoch 0.5" not in text
    assert "Note: [not markup]" in text
    assert "\x1b" not in text


def test_json_lines_can_each_be_read_by_a_program() -> None:
    lines = lines_of(JsonShow, EVENTS)
    assert [line["event"] for line in lines] == [type(event).__name__.lower() for event in EVENTS]
    assert lines[-1]["schema"] == "tpsprune.result/1"


def test_the_bar_shows_figures_and_leaves_the_terminal_as_it_was() -> None:
    text = shown(BarShow, EVENTS, width=120, terminal=True)
    assert "loss 0.510" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_bar_fits_the_terminal_and_keeps_time_left_and_energy(width: int) -> None:
    event = Progress(
        phase="retrain",
        step=16,
        total_steps=32,
        epoch=30.0,
        loss=0.001,
        validation_accuracy=0.996,
        signals=(("d_eff", 0.489), ("H1 z", 0.182), ("edge", 2.68)),
        joules=283.0,
        watts=28.0,
        read=True,
    )
    started = PhaseStarted(phase="retrain", title="retrain", total_steps=32)
    text = shown(BarShow, [started, event], width=width, terminal=True)
    parts = re.split(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]+", text)
    drawn = [part for part in parts if "loss" in part]
    assert drawn
    assert all(len(part) <= width for part in drawn)
    if width >= 80:
        assert all("283 J" in part and "…" not in part for part in drawn)


RUNS: tuple[Comparing, ...] = (
    ArmBegun(arm="warm-up", seed=0, number=0, total=0),
    ArmBegun(arm="dense", seed=3, number=1, total=12),
    PhaseStarted(phase="train", title="train", total_steps=100),
    Progress(phase="train", step=50, total_steps=100, epoch=2.5, joules=80.0),
    ArmEnded(run=arm_run("dense", 3, 120.0), number=1, total=12, seconds_left=90.0),
    ArmEnded(
        run=arm_run("ticket", 3, 20.0, failure="the loss is not finite", accuracy=None),
        number=2,
        total=12,
        seconds_left=0.0,
    ),
    Note("after three pairs: [bold]these[/] words"),
)


def test_lines_say_what_a_run_took_its_class_and_where_it_came_to() -> None:
    assert shown(LineCompare, RUNS, width=100).splitlines() == [
        "warming up: a short run, thrown away",
        "1/12  dense, seed 3: 120 J (measured), 20.0 s, test accuracy 0.9000; about 90.0 s left",
        "2/12  ticket, seed 3: 20.0 J (measured), 20.0 s, failed: the loss is not finite",
        "Note: after three pairs: [bold]these[/] words",
    ]


def test_a_terminal_has_bars_and_the_same_lines() -> None:
    text = shown(BarCompare, RUNS, width=100, terminal=True)
    for words in ("2 of 12", "dense, seed 3: train", "epoch 2.5  80.0 J", "test accuracy 0.9000"):
        assert words in text


def test_json_has_a_line_for_each_run_and_note_without_windows() -> None:
    lines = lines_of(JsonCompare, RUNS)
    assert [line["event"] for line in lines] == ["arm-ended", "arm-ended", "note"]
    assert (lines[0]["arm"], lines[0]["accuracy"]) == ("dense", 0.9)
    assert not {"windows", "history", "method"} & set(lines[0])


def signals(*runs: RunSignals) -> list[str]:
    return [line.rstrip() for line in printed(signals_table(runs)).splitlines()]


def signals_of(title: str, *values: float | None, drawn: float = 2.0, name: str = "d_eff") -> RunSignals:
    points = tuple((float(epoch), value) for epoch, value in enumerate(values, start=1))
    return RunSignals(title, {name: points}, drawn, float(len(values)))


def test_blocks_go_from_the_lowest_to_the_highest_and_a_dot_is_no_value() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert spark([7, None, 0], 0, 7) == "█·▁"
    assert spark([3.0, 3.0], 3.0, 3.0) == "▄▄"


def test_a_run_has_a_block_for_each_reading_and_its_numbers() -> None:
    title, head, marks, line, note = signals(signals_of("digits", 1.0, 2.0, None, 8.0))
    assert title == "digits"
    assert head.split() == ["signal", "epoch", "0", "to", "4", "first", "at", "draw", "last"]
    assert line.split() == ["d_eff", "▁▂·█", "1", "2", "8"]
    assert marks.index("D") == line.index("▂")
    assert marks.index("E") == line.index("█")
    assert note == "D drawn, E the end; · no value; each line from its lowest to its highest"


def test_many_readings_share_blocks_by_their_mean_and_the_line_stays_short() -> None:
    *_, line, _ = signals(signals_of("long", *[float(k) for k in range(560)], drawn=560.0))
    blocks = line.split()[1]
    assert len(blocks) == 28
    assert blocks == "".join(sorted(blocks))
    assert all(
        len(each) <= 80 for each in signals(signals_of("long", *[1e-9] * 300, name="h1_sum_of_squares"))
    )


def test_two_runs_are_on_one_scale_and_over_the_same_epochs() -> None:
    lines = signals(signals_of("a", 0.0, 7.0, 7.0, 7.0), signals_of("b", 3.0, 4.0, drawn=1.0))
    assert lines[:2] == ["A  a", "B  b"]
    assert lines[3].split() == ["A", "D", "E"]
    assert lines[4].split() == ["B", "DE"]
    assert lines[5].split() == ["d_eff", "A", "▁███", "0", "7", "7"]
    assert lines[6].split() == ["B", "▄▅··", "3", "3", "4"]


@pytest.mark.parametrize("values", [(), (None, None)])
def test_a_signal_that_was_never_read_has_dots_and_no_numbers(values: tuple[None, ...]) -> None:
    other = signals_of("a", 1.0, 2.0)
    none = RunSignals("b", {"h1": tuple((1.0, value) for value in values)}, 1.0, 2.0)
    line = next(line for line in signals(other, none) if line.startswith("h1"))
    assert line.split() == ["h1", "A", "··"]


@pytest.mark.parametrize(
    ("loss", "quality"), [("mse", "R²"), ("bce", "label accuracy"), ("own:loss", "quality")]
)
def test_what_is_no_accuracy_is_called_by_its_name(loss: str, quality: str) -> None:
    facts = TaskFacts(input_kind="vector", input_shape=(6,), classes=2, loss=loss)
    found = replace(outcome(), task=facts)
    text = printed(tables.closing(found))
    assert f"test {quality} " in text
    assert quality == "label accuracy" or "accuracy" not in text
    events = [replace(event, quality=quality) for event in EVENTS if isinstance(event, Progress | Pruned)]
    text = shown(LineShow, events, width=200)
    assert f"{quality} 0.900  d_eff" in text
    assert f"validation {quality} 0.9000 before" in text
    run = savings().comparison.runs[0]
    assert f"test {quality} {run.accuracy:.4f}" in run_line(run, quality)
    readings = [Reading.of("validation_accuracy", 0.1, step=16, epoch=1.0)]
    assert list(collect_signals(found, readings).series) == [quality]
    assert list(collect_signals(outcome(), readings).series) == ["validation_accuracy"]


def test_text_of_files_is_shown_as_it_is_and_steers_nothing() -> None:
    table = tables.make_table({"signal [/]": {}, "value": {}}, "ti[/]tle\x1b[2J")
    table.add_row("[/]", "x\x1b[31m\x9b7")
    table.add_row("[red]:smile:", "no\N{NO-BREAK SPACE}break")
    stream = io.StringIO()
    OurConsole(file=stream, width=60).print(table, "[/]\x07", Text("of us \x1b[2J\u202e"))
    shown = stream.getvalue()
    expected = (
        "ti[/]tle\\x1b[2J",
        "signal [/]",
        "x\\x1b[31m\\x9b7",
        "[red]:smile:",
        "[/]\\x07",
        "\\x1b[2J\\u202e",
    )
    assert all(each in shown for each in expected)
    assert shown.replace("\n", "").replace("\N{NO-BREAK SPACE}", "").isprintable()


@pytest.mark.parametrize("show", [BarShow, LineShow])
def test_a_bar_shows_titles_and_signals_without_markup(show: Any) -> None:
    stream = io.StringIO()
    console = OurConsole(file=stream, width=120, force_terminal=show is BarShow)
    with show(console) as shown:
        shown.show(PhaseStarted(phase="dense", title="[/] dense", total_steps=3))
        shown.show(
            Progress(
                phase="dense", step=1, total_steps=3, epoch=1.0, signals=(("[/]\x1b]0;x", 1.0),), read=True
            )
        )
    assert "[/] dense" in stream.getvalue()
    assert "[/]\\x1b]0" in stream.getvalue()
    assert "\x1b]0;x" not in stream.getvalue()
