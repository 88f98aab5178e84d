"""Signals in a terminal: blocks that say what the journal says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tpsprune.report.sparklines import Course, signals_table, spark


def printed(*runs: Course) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(signals_table(runs), highlight=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def run(title: str, *values: float | None, drawn: float = 2.0, name: str = "d_eff") -> Course:
    points = tuple((float(epoch), value) for epoch, value in enumerate(values, start=1))
    return Course(title, {name: points}, drawn, float(len(values)))


def test_blocks_go_from_the_lowest_to_the_highest_and_a_dot_is_no_value() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert spark([7, None, 0], 0, 7) == "█·▁"
    assert spark([3.0, 3.0], 3.0, 3.0) == "▄▄"


def test_a_run_has_a_block_for_each_reading_and_its_numbers() -> None:
    title, head, marks, line, note = printed(run("digits", 1.0, 2.0, None, 8.0))
    assert title == "digits"
    assert head.split() == ["signal", "epoch", "0", "to", "4", "first", "at", "draw", "last"]
    assert line.split() == ["d_eff", "▁▂·█", "1", "2", "8"]
    assert marks.index("D") == line.index("▂")
    assert marks.index("E") == line.index("█")
    assert note == "D drawn, E the end; · no value; each line from its lowest to its highest"


def test_many_readings_share_blocks_by_their_mean_and_the_line_stays_short() -> None:
    *_, line, _ = printed(run("long", *[float(k) for k in range(560)], drawn=560.0))
    blocks = line.split()[1]
    assert len(blocks) == 28
    assert blocks == "".join(sorted(blocks))
    assert all(len(each) <= 80 for each in printed(run("long", *[1e-9] * 300, name="h1_sum_of_squares")))


def test_two_runs_are_on_one_scale_and_over_the_same_epochs() -> None:
    lines = printed(run("a", 0.0, 7.0, 7.0, 7.0), run("b", 3.0, 4.0, drawn=1.0))
    assert lines[:2] == ["A  a", "B  b"]
    assert lines[3].split() == ["A", "D", "E"]
    assert lines[4].split() == ["B", "DE"]
    assert lines[5].split() == ["d_eff", "A", "▁███", "0", "7", "7"]
    assert lines[6].split() == ["B", "▄▅··", "3", "3", "4"]


@pytest.mark.parametrize("values", [(), (None, None)])
def test_a_signal_that_was_never_read_has_dots_and_no_numbers(values: tuple[None, ...]) -> None:
    other = run("a", 1.0, 2.0)
    course = Course("b", {"h1": tuple((1.0, value) for value in values)}, 1.0, 2.0)
    line = next(line for line in printed(other, course) if line.startswith("h1"))
    assert line.split() == ["h1", "A", "··"]
