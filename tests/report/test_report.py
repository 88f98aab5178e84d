"""What people see: widths of 80 columns, classes beside joules, pictures that are the same each time."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from tpsprune.records import (
    Cost,
    Decided,
    Decision,
    EnergyClass,
    EnergyMethod,
    Event,
    Finished,
    GroupChange,
    Latency,
    LeftAlone,
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
)
from tpsprune.report import figures, tables
from tpsprune.report.live import BarShow, JsonShow, PlainShow, print_next


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
        cut_validation_accuracy=0.9,
        groups=(GroupChange(group="conv1", width_before=32, width_after=11, effective_rank=9.1),),
        left_alone=(LeftAlone(name="head", reason="it is the model's output"),),
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


def printed(thing: object) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(thing, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_closing_tables_fit_80_columns_and_carry_their_classes() -> None:
    text = printed(tables.closing(outcome()))
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("0.9800", "0.9790", "20,000", "0.40", "12.8 ms", "123 J", "modelled", "projection", "1.2%",
                 "TPS unknown", "Note: a note"):  # fmt: skip
        assert word in text, word


def test_the_commands_to_type_next_are_never_broken_in_two() -> None:
    console = Console(width=40, file=io.StringIO(), force_terminal=False)
    print_next(console, outcome())
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-2:] == [
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
        left_alone=(LeftAlone(name="head", reason="it is the model's output"),),
        macs_share=0.4,
        parameters_share=0.41,
        validation_accuracy_before=0.9,
        validation_accuracy_after=0.88,
    ),
    Note("[not markup]"),
    Finished(outcome()),
]


def test_plain_lines_hold_each_reading_once_and_no_colour() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    for event in EVENTS:
        PlainShow(console).show(event)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("epoch 1.0  loss 0.510  acc 0.900  d_eff 0.3  28 W 12.0 J") == 1
    assert "epoch 0.5" not in text
    assert "Note: [not markup]" in text
    assert "\x1b" not in text


def test_json_lines_can_each_be_read_by_a_program() -> None:
    stream = io.StringIO()
    for event in EVENTS:
        JsonShow(stream).show(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__.lower() for event in EVENTS]
    assert lines[-1]["schema"] == "tpsprune.result/1"


def test_the_bar_shows_figures_and_leaves_the_terminal_as_it_was() -> None:
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system=None)
    with BarShow(console) as show:
        for event in EVENTS:
            show.show(event)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "loss 0.510" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


@pytest.fixture
def readings() -> list[Reading]:
    return [
        Reading.of(signal, value / (1 + epoch), step=epoch * 16, epoch=float(epoch))
        for epoch in range(1, 31)
        for signal, value in (
            ("train_loss", 2.0),
            ("validation_accuracy", 0.9),
            ("d_eff", 0.5),
            ("norm", 30.0),
        )
    ]


def test_a_picture_has_a_panel_for_each_signal_that_was_read(readings: list[Reading]) -> None:
    figure = figures.run_figure(
        "digits", readings, decision("draw", 9), decision("stop", 30), outcome().groups
    )
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:4] == ["loss (nats)", "validation\naccuracy", "d_eff / width", "‖θ‖₂"]
    assert len(figure.axes) == 5


def test_equal_runs_give_equal_pictures(readings: list[Reading]) -> None:
    first, second = (
        figures.rendered(
            figures.run_figure("x", readings, decision("draw", 9), decision("stop", 30), outcome().groups),
            "svg",
        )
        for _ in range(2)
    )
    assert first == second
    assert b"ticket drawn at epoch 9 (red)" in first


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_bar_fits_the_terminal_and_keeps_time_left_and_energy(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
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
    with BarShow(console) as show:
        show.show(PhaseStarted(phase="retrain", title="retrain", total_steps=32))
        show.show(event)
    assert isinstance(console.file, io.StringIO)
    parts = re.split(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]+", console.file.getvalue())
    drawn = [part for part in parts if "loss" in part]
    assert drawn
    assert all(len(part) <= width for part in drawn)
    if width >= 80:
        assert all("283 J" in part and "…" not in part for part in drawn)
