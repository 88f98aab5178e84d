"""What is no accuracy is called by its name wherever a figure of quality is shown."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from tests.report.savings_examples import savings
from tests.report.test_report import EVENTS, decision, outcome
from tpsprune.records import Progress as Read
from tpsprune.records import Pruned, Reading, Savings, Standing, TaskFacts
from tpsprune.report import figures, tables
from tpsprune.report.compare_live import run_line
from tpsprune.report.live import PlainShow
from tpsprune.report.savings_document import savings_document
from tpsprune.report.savings_exports import boamps
from tpsprune.report.savings_markdown import markdown_page
from tpsprune.report.savings_plots import plots
from tpsprune.report.savings_text import savings_lines
from tpsprune.report.savings_words import standing_words, standing_words_of
from tpsprune.report.sparklines import course, signals_table

PAIRS = [("mse", "R²"), ("bce", "label accuracy"), ("theirs:loss", "quality")]


def of(loss: str, found: Savings) -> Savings:
    text = f'name = "x"\n[task]\nloss = "{loss}"\n[task.data]\nkind = "tabular"\n'
    design = replace(found.comparison.design, recipe_text=text)
    return replace(found, comparison=replace(found.comparison, design=design))


def printed(shown: object) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("loss", "quality"), PAIRS)
def test_the_tables_of_a_run_say_the_name(loss: str, quality: str) -> None:
    facts = TaskFacts(input_kind="vector", input_shape=(6,), classes=2, loss=loss)
    text = printed(tables.closing(replace(outcome(), task=facts)))
    assert f"test {quality} " in text
    assert quality == "label accuracy" or "accuracy" not in text


@pytest.mark.parametrize(("loss", "quality"), PAIRS)
def test_lines_of_a_run_under_way_say_the_name(loss: str, quality: str) -> None:
    console = Console(width=200, file=io.StringIO())
    show = PlainShow(console)
    for event in EVENTS:
        if isinstance(event, Read | Pruned):
            show.show(replace(event, quality=quality))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert f"{quality} 0.900  d_eff" in text
    assert f"validation {quality} 0.9000 before the cut" in text
    run = savings().comparison.runs[0]
    assert f"test {quality} {run.accuracy:.4f}" in run_line(run, quality)


@pytest.mark.parametrize(("loss", "quality"), PAIRS)
def test_the_report_of_a_comparison_says_the_name_on_every_page(loss: str, quality: str) -> None:
    found = of(loss, savings(Standing.ACCURACY_NOT_PRESERVED))
    drawn, left_out = plots(found)
    assert not left_out or all("accuracy" not in each for each in left_out)
    pages = {
        "markdown": markdown_page(savings_document(found, {})),
        "terminal": printed(savings_lines(found)),
        "captions": " ".join(f"{plot.title} {plot.spoken} {plot.columns}" for plot in drawn.values()),
        "axes": " ".join(
            axes.get_ylabel().replace("\n", " ") for plot in drawn.values() for axes in plot.figure.axes
        ),
    }
    for name, page in pages.items():
        assert quality in page.replace(quality.capitalize(), quality), name
        # Codes and anchors of programs keep their words.
        told = re.sub(r"ACCURACY\\?_NOT\\?_PRESERVED|see-accuracy", "", page)
        told = re.sub("label accuracy", "", told, flags=re.IGNORECASE)
        assert "accuracy" not in told.lower(), (name, told)


def test_a_standing_says_of_what_it_speaks() -> None:
    lost = Standing.ACCURACY_NOT_PRESERVED
    assert standing_words(lost, "R²") == "R² not shown to be kept"
    claim = replace(savings().verdict, standing=lost)
    assert standing_words_of(claim, "R²") == "R² not shown to be kept"
    assert standing_words_of(claim) == "accuracy not shown to be kept"


def test_a_share_that_is_right_is_an_accuracy_to_others_and_a_share_of_variance_is_none() -> None:
    tasks = {
        loss: boamps(of(loss, savings()))["task"] for loss in ("cross-entropy", "bce", "mse", "theirs:loss")
    }
    assert "measuredAccuracy" in tasks["cross-entropy"]
    assert "measuredAccuracy" in tasks["bce"]
    assert not any("measuredAccuracy" in tasks[loss] for loss in ("mse", "theirs:loss"))
    assert tasks["mse"]["taskFamily"] == "regression"
    assert "taskFamily" not in tasks["theirs:loss"]


def reading(signal: str, epoch: int, value: float) -> Reading:
    return Reading.of(signal, value, step=epoch * 16, epoch=float(epoch))


def test_a_picture_names_quality_and_unit_and_draws_a_loss_below_zero() -> None:
    readings = [
        reading(signal, epoch, value / epoch)
        for epoch in range(1, 9)
        for signal, value in (("train_loss", -2.0), ("validation_accuracy", -0.5))
    ]
    found = outcome()
    figure = figures.run_figure(
        "x", readings, decision("draw", 3), decision("stop", 8), found.groups, quality="R²", loss_unit=""
    )
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["loss", "validation\nR²"]
    assert figure.axes[0].get_yscale() == "linear"
    both = [figures.Beside("a", readings, 3.0, "R²", ""), figures.Beside("b", readings, 3.0)]
    labels = [axes.get_ylabel() for axes in figures.beside_figure(both).axes]
    assert labels[-1] == "validation\nR² / validation\naccuracy"


def test_the_course_of_a_run_says_the_name() -> None:
    readings = [reading("validation_accuracy", epoch, 0.1 * epoch) for epoch in range(1, 9)]
    plain = outcome()
    facts = TaskFacts(input_kind="vector", input_shape=(6,), classes=1, loss="mse")
    assert list(course(plain, readings).series) == ["validation_accuracy"]
    other = course(replace(plain, task=facts), readings)
    assert list(other.series) == ["R²"]
    assert "R² " in printed(signals_table([other]))
