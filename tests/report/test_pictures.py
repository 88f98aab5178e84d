"""Pictures say what the records say: of a run, of two runs, of a study; equal records, equal pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_terminal import decision, outcome
from tpsprune.records import Reading
from tpsprune.report import pictures
from tpsprune.report.study_figure import plot_study, study_figure


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
    figure = pictures.run_figure(
        "digits", readings, decision("draw", 9), decision("stop", 30), outcome().groups
    )
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:4] == ["loss (nats)", "validation\naccuracy", "d_eff / width", "‖θ‖₂"]
    assert len(figure.axes) == 5


def test_equal_runs_give_equal_pictures(readings: list[Reading]) -> None:
    first, second = (
        pictures.render(
            pictures.run_figure("x", readings, decision("draw", 9), decision("stop", 30), outcome().groups),
            "svg",
        )
        for _ in range(2)
    )
    assert first == second
    assert b"ticket drawn at epoch 9 (red)" in first


def test_a_picture_names_quality_and_unit_and_draws_a_loss_below_zero() -> None:
    readings = [
        Reading.of(signal, value / epoch, step=epoch * 16, epoch=float(epoch))
        for epoch in range(1, 9)
        for signal, value in (("train_loss", -2.0), ("validation_accuracy", -0.5))
    ]
    found = outcome()
    figure = pictures.run_figure(
        "x", readings, decision("draw", 3), decision("stop", 8), found.groups, quality="R²", loss_unit=""
    )
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["loss", "validation\nR²"]
    assert figure.axes[0].get_yscale() == "linear"
    both = [pictures.PlottedRun("a", readings, 3.0, "R²", ""), pictures.PlottedRun("b", readings, 3.0)]
    labels = [axes.get_ylabel() for axes in pictures.two_runs_figure(both).axes]
    assert labels[-1] == "validation\nR² / validation\naccuracy"


def record(low: float | None, high: float | None) -> dict[str, Any]:
    def quantity(name: str, predicted: str) -> dict[str, Any]:
        return {"name": name, "predicted": predicted, "measured": {"mean": 3.0, "low": 2.0, "high": 4.0}}

    return {
        "study": "tides",
        "verdict": "undecided",
        "measure": "height in metres",
        "predicted_range": {"low": low, "high": high},
        "quantities": [quantity("spring", "more"), quantity("neap", "")],
    }


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.0, 5.0, "1 to 5"), (1.0, None, "above 1"), (None, 0.1, "below 0.1"), (-0.5, -0.5, "-0.5")],
)
def test_the_picture_names_its_quantities_and_what_was_predicted(
    tmp_path: Path, low: float | None, high: float | None, words: str
) -> None:
    file = tmp_path / "tides.json"
    file.write_text(json.dumps(record(low, high)))
    picture = plot_study(file)
    assert picture == tmp_path / "tides.svg"
    drawn = picture.read_text()
    for label in (
        "spring",
        "neap",
        "height in metres, mean and 95 % interval",
        f"tides: undecided (orange: predicted, {words})",
    ):
        assert label in drawn
    assert plot_study(file).read_text() == drawn


def test_a_study_that_measured_nothing_still_has_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "tides.json"
    file.write_text(json.dumps({**record(1.0, None), "quantities": []}))
    assert "tides: undecided" in plot_study(file).read_text()


def panel(title: str, *, log_x: bool) -> dict[str, Any]:
    up = {"name": "flood", "points": [[1.0, 2.0], [10.0, 3.0]], "dashed": False}
    down = {"name": "ebb", "points": [[10.0, 3.0], [1.0, 2.5]], "dashed": True}
    other = {"name": "still", "points": [[1.0, 1.0], [10.0, 1.0]], "dashed": False}
    return {
        "title": title,
        "x": "hours",
        "y": "metres",
        "curves": [up, down, other],
        "log_x": log_x,
        "log_y": False,
    }


def test_panels_are_drawn_as_they_are_given_and_a_dashed_curve_has_the_colour_of_the_one_before() -> None:
    panels = [panel("by day", log_x=True), panel("by night", log_x=False)]
    axes = study_figure({**record(1.0, None), "panels": panels}).axes
    assert [each.get_title() for each in axes[1:]] == ["by day", "by night"]
    assert [each.get_xscale() for each in axes[1:]] == ["log", "linear"]
    up, down, other = axes[1].get_lines()
    assert [line.get_label() for line in (up, down, other)] == ["flood", "ebb", "still"]
    assert (up.get_linestyle(), down.get_linestyle()) == ("-", "--")
    assert up.get_color() == down.get_color() != other.get_color()
    assert down.get_xydata().tolist() == [[10.0, 3.0], [1.0, 2.5]]


def test_a_panel_without_curves_is_empty_and_no_fault() -> None:
    bare = {**panel("by day", log_x=True), "curves": []}
    axes = study_figure({**record(1.0, None), "panels": [bare]}).axes
    assert not axes[1].get_lines()


@pytest.mark.parametrize(
    ("lows", "scale"), [((0.3, 2.0), "log"), ((-0.3, 2.0), "linear"), ((1.0, 2.0), "linear")]
)
def test_intervals_over_decades_of_positive_numbers_stand_on_a_logarithmic_axis(
    lows: tuple[float, float], scale: str
) -> None:
    found = record(2.0, 5.0)
    for quantity, low in zip(found["quantities"], lows, strict=True):
        quantity["measured"] = {"mean": 3.0, "low": low, "high": 8.0}
    assert study_figure(found).axes[0].get_xscale() == scale
