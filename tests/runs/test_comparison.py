"""The journal of a comparison: what was measured comes back, and what is not one is refused with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.claims.conftest import design, idle, inference, run, window
from tpsprune.errors import RunFolderError
from tpsprune.records import BrokenOff, Choices, Grid, HistoryPoint
from tpsprune.runs import ComparisonFolder


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    found = ComparisonFolder(tmp_path)
    found.append("design", design())
    return found


def begun(**changes: Any) -> dict[str, Any]:
    return {"arm": "small", "seed": 1, "pair": 1, "position": 3, "folder": "runs/x"} | changes


def test_everything_measured_comes_back_as_it_was(folder: ComparisonFolder) -> None:
    history = (HistoryPoint(epoch=1.0, joules=2.0, validation_accuracy=0.5, signals={"d_eff": 0.25}),)
    first, second = run("dense", 0, 100.0, history=history), run("small", 0, 50.0, notes=("a note",))
    lost = BrokenOff(arm="small", seed=1, pair=1, position=3, windows=(window(1.0), window(2.0)))
    choices = Choices(grid=Grid(grams_per_kwh=56.0, country="France", year=2023, source="a table"), per_day=5)
    folder.append("idle", idle(0))
    folder.append("run", first)
    folder.append("run", second)
    folder.append("inference", inference("dense", 0, 1, 5.0))
    folder.append("broken-off", lost)
    folder.append("choices", choices)
    found, under_way = folder.read()
    assert found.design == design()
    assert found.runs == (first, second)
    assert found.idle == (idle(0),)
    assert found.inference == (inference("dense", 0, 1, 5.0),)
    assert found.broken_off == (lost,)
    assert found.choices == choices
    assert (found.pairs_asked, found.under_way, under_way) == (6, "", ())


def test_a_run_without_an_end_is_under_way_and_counts_for_nothing(folder: ComparisonFolder) -> None:
    folder.append("begun", begun())
    found, under_way = folder.read()
    assert found.runs == ()
    assert found.under_way == "'small', seed 1, has begun and not ended"
    assert [each.folder for each in under_way] == ["runs/x"]


@pytest.mark.parametrize("kind", ["run", "broken-off"])
def test_an_end_ends_it(folder: ComparisonFolder, kind: str) -> None:
    folder.append("begun", begun())
    ends = {
        "run": run("small", 1, 50.0),
        "broken-off": BrokenOff(arm="small", seed=1, pair=1, position=3, windows=()),
    }
    folder.append(kind, ends[kind])
    assert folder.read()[1] == ()
    assert folder.read()[0].under_way == ""


def test_a_line_truncated_at_the_end_is_left_out_and_noted(folder: ComparisonFolder) -> None:
    folder.append("run", run("dense", 0, 100.0))
    with folder.journal.path.open("a") as file:
        file.write('{"schema": "tpsprune.comparison/1", "kind": "ru')
    found, _ = folder.read()
    assert len(found.runs) == 1
    assert "truncated" in found.notes[-1]


@settings(max_examples=25)
@given(st.data())
def test_a_journal_truncated_anywhere_never_counts_half_a_run(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = ComparisonFolder(Path(place))
        folder.append("design", design())
        whole = folder.journal.path.stat().st_size
        for pair in range(2):
            folder.append("run", run("dense", pair, 100.0 + pair))
        content = folder.journal.path.read_bytes()
        kept = content[: data.draw(st.integers(whole, len(content)))]
        folder.journal.path.write_bytes(kept)
        runs = folder.read()[0].runs
        assert runs == tuple(run("dense", pair, 100.0 + pair) for pair in range(len(runs)))
        assert len(runs) <= kept.count(b"\n", whole) + 1


@pytest.mark.parametrize(
    ("runs", "looks", "note"), [(0, 1, ""), (1, 2, "from 6 to 8 after the results of 1")]
)
def test_pairs_requested_after_a_run_are_another_look(
    folder: ComparisonFolder, runs: int, looks: int, note: str
) -> None:
    for pair in range(runs):
        folder.append("run", run("dense", pair, 100.0))
    folder.append("pairs", {"pairs": 8})
    found, _ = folder.read()
    assert (found.pairs_asked, found.looks, len(found.notes)) == (8, looks, runs)
    assert note in "".join(found.notes)


def test_a_pair_set_aside_is_kept_in_the_journal_and_out_of_the_runs(folder: ComparisonFolder) -> None:
    for pair in range(2):
        folder.append("idle", idle(pair))
        folder.append("run", run("dense", pair, 100.0))
        folder.append("inference", inference("dense", pair, 1, 5.0))
    folder.append("redo", {"pair": 1, "why": "set aside: the counter did not move"})
    found, _ = folder.read()
    assert [(each.pair, each.arm) for each in found.runs] == [(0, "dense")]
    assert [each.pair for each in found.idle] == [0]
    assert [each.pair for each in found.inference] == [0]
    assert [(each.pair, each.why) for each in found.broken_off] == [
        (1, "set aside: the counter did not move")
    ]


def test_a_folder_without_a_journal_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no comparison.*tpsprune compare RECIPE --out"):
        ComparisonFolder(tmp_path).read()


def rewritten(folder: ComparisonFolder, line: int, **changes: Any) -> None:
    lines = folder.journal.path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    folder.journal.path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "tpsprune.comparison/2"}, "line 2 was written by a newer tpsprune"),
        ({"schema": "another.tool/1"}, "line 2 is no record of a comparison"),
        ({"kind": "tour"}, "line 2 is no record of a comparison .*'tour'"),
        ({"windows": None}, "line 2 is no record of a comparison .*changed from outside"),
        ({"unheard_of": 1}, "line 2 is no record of a comparison .*unheard_of"),
    ],
)
def test_a_line_that_is_none_of_ours_is_refused_by_its_number(
    folder: ComparisonFolder, changes: dict[str, Any], words: str
) -> None:
    folder.append("run", run("dense", 0, 100.0))
    rewritten(folder, 1, **changes)
    with pytest.raises(RunFolderError, match=words):
        folder.read()


def test_a_line_damaged_in_the_middle_is_refused_by_its_number(folder: ComparisonFolder) -> None:
    for pair in range(2):
        folder.append("run", run("dense", pair, 100.0))
    lines = folder.journal.path.read_text().splitlines()
    folder.journal.path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(RunFolderError, match="line 2 of 3 is not a JSON object"):
        folder.read()


def test_a_journal_begins_with_its_only_design(folder: ComparisonFolder) -> None:
    folder.append("design", design())
    with pytest.raises(RunFolderError, match=r"line 2 .*a second design"):
        folder.read()
    rewritten(folder, 0, kind="run")
    with pytest.raises(RunFolderError, match="does not begin with a design"):
        folder.read()
