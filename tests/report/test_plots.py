"""Plots of a report: drawn from the numbers beside them, in paints that follow a page into the dark."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from math import inf, nan

import pytest

from tests.report.savings_examples import ALL_OF_IT, EXAMPLES, at_the_wall, savings, written
from tests.report.test_pages import read
from tests.report.test_sentences import with_one_given_up
from tpsprune.records import Choices, Standing
from tpsprune.report.savings.pages import render_page
from tpsprune.report.savings.plots import (
    STEMS,
    Plot,
    break_even_plot,
    csv_text,
    forest_plot,
    history_plot,
    make_plots,
    models_plot,
    pairs_plot,
    pareto_plot,
    phases_plot,
)
from tpsprune.report.savings.svg import (
    INK,
    PAPER,
    add_axes,
    energy_unit,
    inline_svg,
    make_canvas,
    standalone_svg,
)

DRAW = {
    "pairs": pairs_plot,
    "claims": forest_plot,
    "phases": phases_plot,
    "history": history_plot,
    "break_even": break_even_plot,
    "accuracy": pareto_plot,
    "models": models_plot,
}


def made(plot: Plot | None) -> Plot:
    assert plot is not None
    return plot


@pytest.mark.parametrize("stem", STEMS)
def test_a_plot_is_a_small_picture_with_its_numbers_and_their_class_beside_it(stem: str) -> None:
    files = written(ALL_OF_IT)
    picture, numbers = files[f"plots/{stem}.svg"], files[f"plots/{stem}.csv"]
    assert not read(picture).open
    assert len(picture) < 80_000
    assert "<text" in picture
    assert "var(--" not in picture
    rows = list(csv.DictReader(numbers.splitlines()))
    assert rows
    assert all(row["class"] for row in rows)
    assert "mixed" not in {row["class"] for row in rows}


@pytest.mark.parametrize("stem", STEMS)
def test_what_has_nothing_to_show_is_not_drawn(stem: str) -> None:
    drawn = DRAW[stem](EXAMPLES["nothing metered"])
    assert (drawn is None) == (stem != "history")
    if drawn is not None:
        assert drawn.kind == "counted"
        assert {row[0] for row in drawn.rows} == {"accuracy", "d_eff", "H1 z"}


def test_equal_figures_are_equal_files_and_words_in_them_stay_as_they_are() -> None:
    first, second = (made(pareto_plot(savings())) for _ in range(2))
    assert standalone_svg(first.figure, "a") == standalone_svg(second.figure, "a")
    figure = make_canvas(3, 2)
    add_axes(figure).set_xticks([0.5], ["0.99254 & more"])
    assert "0.99254 &amp; more" in standalone_svg(figure, "a")


def test_inline_names_are_the_plots_own_and_paints_are_variables() -> None:
    figure = make_canvas(3, 2)
    add_axes(figure).plot([0, 1], [0, 1], color=INK, marker="o")
    text = inline_svg(figure, "mine", "A & B", 'says "so"')
    assert 'aria-label="A &amp; B. says &quot;so&quot;"' in text
    assert "stroke: var(--ink)" in text
    names = re.findall(r'\bid="([^"]+)"', text)
    assert names
    assert all(each.startswith("mine-") for each in names)


def test_the_pairs_drawn_are_the_counted_ones_with_both_sides() -> None:
    found = savings()
    drawn = made(pairs_plot(found))
    set_aside = {run.pair for run in found.runs if not run.counted}
    assert set_aside
    assert {row[1] for row in drawn.rows} == set(range(6)) - set_aside
    first = found.comparison.runs[0]
    assert drawn.rows[0] == (
        "ticket",
        0,
        0,
        "dense",
        pytest.approx(sum(w.total_joules or 0 for w in first.windows)),
        "modelled + constant",
    )


def test_a_saving_lies_right_of_the_line_and_a_cost_left_of_it() -> None:
    for found, sign in ((savings(), 1), (savings(Standing.COST_INCREASE_MODELLED, factor=2.4), -1)):
        drawn = made(forest_plot(found))
        totals = [row for row in drawn.rows if row[1] == "total"]
        assert all(row[3] * sign > 0 for row in totals)
        points = [
            line.get_xdata()[0] for line in drawn.figure.axes[0].get_lines() if line.get_markersize() == 7
        ]
        assert [each * sign > 0 for each in points] == [True] * 3


def test_what_was_refused_is_hollow_however_clear_of_the_line_its_interval_is() -> None:
    found = savings()
    drawn = made(forest_plot(found))
    points = [line for line in drawn.figure.axes[0].get_lines() if line.get_markersize() == 7]
    assert [each.get_markerfacecolor() == PAPER for each in points] == [
        not claim.standing.is_saving for claim in found.claims
    ]
    assert [claim.standing.is_saving for claim in found.claims] == [True, False, False]
    assert all(claim.change is not None and claim.change.low > 0 for claim in found.claims)


def test_a_cost_without_measure_does_not_dwarf_the_other_claims() -> None:
    found = savings(Standing.COST_INCREASE_MODELLED, factor=2.4)
    claim = found.claims[0]
    assert claim.change is not None
    vast = replace(claim, change=replace(claim.change, saving_share=-9.0, low=-80.0, high=-2.0))
    drawn = made(forest_plot(replace(found, claims=(vast, *found.claims[1:]))))
    assert drawn.figure.axes[0].get_xlim()[0] > -2
    assert drawn.rows[0][4] == -80.0


def test_an_interval_without_ends_is_drawn_to_the_edges() -> None:
    found = savings(pairs=2)
    claim = found.claims[0]
    assert claim.change is not None
    endless = replace(claim, change=replace(claim.change, low=-inf, high=nan), idle_subtracted=None)
    drawn = made(forest_plot(replace(found, claims=(endless,))))
    low, high = drawn.figure.axes[0].get_lines()[1].get_xdata()
    assert low < -1
    assert high == 1


def test_the_energy_per_epoch_is_what_was_spent_between_two_readings() -> None:
    found = savings()
    drawn = made(history_plot(found))
    run = found.comparison.run_of("dense", 0)
    assert run is not None
    before, after = run.history[:2]
    assert before.joules is not None
    assert after.joules is not None
    row = drawn.rows[0]
    assert row[:4] == ("energy", "dense", 0, after.epoch)
    assert row[4] == pytest.approx((after.joules - before.joules) / (after.epoch - before.epoch))


def test_the_history_is_of_the_first_pair_that_counts() -> None:
    found = savings()
    lines = tuple(
        replace(each, counted=each.counted and (each.arm, each.pair) != ("ticket", 0)) for each in found.runs
    )
    drawn = made(history_plot(replace(found, runs=lines)))
    assert {row[2] for row in drawn.rows} == {2}


@pytest.mark.parametrize(("lost", "bars"), [(90.0, ["in no claim (sum)"]), (None, [])])
def test_joules_in_no_claim_have_a_bar_of_their_own(lost: float | None, bars: list[str]) -> None:
    found = savings()
    found = replace(found, quality=replace(found.quality, lost_joules=lost))
    drawn = made(phases_plot(found))
    assert [each.get_text() for each in drawn.figure.axes[0].get_yticklabels()] == ["dense", "ticket", *bars]
    text = render_page("md", found, {"phases": drawn})
    assert ("is shown below as a sum: 90.0 J *(modelled + constant)*." in text) == (lost is not None)
    text = render_page("md", with_one_given_up(found), {"phases": drawn})
    assert ("*(modelled + constant)*, without 1 *(counted)* of unknown energy" in text) == (lost is not None)


def test_joules_in_no_claim_are_of_the_class_of_their_own_windows() -> None:
    drawn = made(phases_plot(at_the_wall()))
    assert drawn.kind == "measured"
    assert drawn.rows[-1][:4] == ("in no claim (sum)", "", 102.0, "modelled + constant")
    assert {row[3] for row in drawn.rows[:-1]} == {"measured"}


def test_the_line_of_a_break_even_crosses_where_the_record_says() -> None:
    found = savings(None, factor=2.4, inference_factor=1.0)
    drawn = made(break_even_plot(found))
    line, mark = drawn.figure.axes[0].get_lines()[:2]
    (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
    assert x0 - y0 * (x1 - x0) / (y1 - y0) == pytest.approx(found.break_even[0].inferences)
    assert mark.get_xdata()[0] == found.break_even[0].inferences


def test_runs_that_do_not_count_are_hollow() -> None:
    found = savings()
    drawn = made(pareto_plot(found))
    lines = drawn.figure.axes[0].get_lines()[: len(found.runs)]
    assert [line.get_markerfacecolor() == "none" for line in lines] == [not run.counted for run in found.runs]


def test_each_arm_stands_at_its_means_with_both_intervals() -> None:
    found = savings()
    axes = made(pareto_plot(found)).figure.axes[0]
    size, _ = energy_unit([run.joules or 0.0 for run in found.runs])
    drawn = {tuple(bars.lines[0].get_xydata()[0]): len(bars.lines[2]) for bars in axes.containers}
    assert drawn == {(each.cost / size, each.accuracy): 2 for each in found.answer.arms}


def test_a_name_with_signs_of_mathematics_is_a_name() -> None:
    found = savings(arms=2)
    arms = ("dense", "_$a^")
    runs = tuple(replace(each, arm="_$a^" if each.arm == "ticket" else each.arm) for each in found.runs)
    comparison = replace(
        found.comparison, design=replace(found.comparison.design, arms=arms), choices=Choices()
    )
    drawn = made(pareto_plot(replace(found, runs=runs, comparison=comparison)))
    assert ">$a^<" in standalone_svg(drawn.figure, "a")
    assert "_$a^" in csv_text(drawn)


def test_every_paint_is_another_in_the_dark_and_no_picture_has_a_paint_of_its_own() -> None:
    page = written(ALL_OF_IT)["report.html"]
    inline = "".join(re.findall(r"<svg\b.*?</svg>", page, flags=re.DOTALL))
    assert {"var(--ink)", "var(--paper)", "var(--series-0)"} <= set(re.findall(r"var\([\w-]+\)", inline))
    assert not re.findall(r"#[0-9a-f]{6}", inline)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", rule)) for rule in page.split(":root {")[1:3])
    assert set(light) == set(dark)
    assert not [paint for paint in light if light[paint] == dark[paint]]


def test_the_titles_and_axes_of_plots_say_what_quality_is_called() -> None:
    text = 'name = "x"\n[task]\nloss = "mse"\n[task.data]\nkind = "tabular"\n'
    found = savings()
    design = replace(found.comparison.design, recipe_text=text)
    drawn, left_out = make_plots(replace(found, comparison=replace(found.comparison, design=design)))
    assert not left_out
    words = " ".join(f"{plot.title} {plot.spoken} {plot.columns}" for plot in drawn.values())
    labels = " ".join(axes.get_ylabel() for plot in drawn.values() for axes in plot.figure.axes)
    assert "R²" in words
    assert "validation\nR²" in labels
    assert "accuracy" not in (words + labels).lower()
