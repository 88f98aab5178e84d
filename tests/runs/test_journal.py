"""A journal loses at most the line being written, and says when it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpsprune.errors import RunFolderError
from tpsprune.runs import Journal

RECORDS = st.lists(
    st.dictionaries(
        st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=2), max_size=3
    ),
    max_size=6,
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "readings.jsonl")


@SAME_FOLDER
@given(records=RECORDS)
def test_records_come_back_as_they_were_appended(journal: Journal, records: list[dict[str, Any]]) -> None:
    journal.path.unlink(missing_ok=True)
    for record in records:
        journal.append(record)
    assert journal.read() == (records, False)
    journal.append_all(records)
    assert journal.read() == (records * 2, False)


@SAME_FOLDER
@given(records=RECORDS, data=st.data())
def test_wherever_a_kill_cuts_the_whole_lines_before_it_are_read(
    journal: Journal, records: list[dict[str, Any]], data: st.DataObject
) -> None:
    journal.path.unlink(missing_ok=True)
    journal.append_all([*records, {"last": "ü"}])
    content = journal.path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    journal.path.write_bytes(content[:cut])
    found, cut_off = journal.read()
    assert found == [*records, {"last": "ü"}][: len(found)]
    assert cut_off == (len(found) < content[:cut].count(b"\n") + bool(content[:cut].rpartition(b"\n")[2]))
    journal.append({"next": 1})
    assert journal.read() == ([*found, {"next": 1}], False)


def test_a_journal_that_was_never_written_is_empty(journal: Journal) -> None:
    assert journal.read() == ([], False)
    journal.append_all([])
    assert not journal.path.exists()


def test_a_cut_off_last_line_is_left_out_and_reported(journal: Journal) -> None:
    journal.path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert journal.read() == ([{"step": 1}, {"step": 2}], True)


@pytest.mark.parametrize("line", ["{broken}", "3", "", "\x00\x00"])
def test_a_damaged_line_in_the_middle_is_named(journal: Journal, line: str) -> None:
    journal.path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunFolderError, match=r"line 2 of 3 is not a JSON object; .*--again"):
        journal.read()


def test_a_number_that_is_not_finite_writes_nothing(journal: Journal) -> None:
    journal.append({"step": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append_all([{"step": 2}, {"loss": float("inf")}])
    assert journal.read() == ([{"step": 1}], False)


def test_truncating_keeps_what_the_predicate_holds_for(journal: Journal) -> None:
    journal.append_all([{"step": step} for step in range(5)])
    assert journal.truncate_to(lambda record: record["step"] <= 2) == 2
    assert journal.read() == ([{"step": 0}, {"step": 1}, {"step": 2}], False)
    assert journal.truncate_to(lambda record: True) == 0


def test_truncating_drops_a_cut_off_line_too(journal: Journal) -> None:
    journal.path.write_text('{"step": 1}\n{"st')
    assert journal.truncate_to(lambda record: True) == 0
    assert journal.path.read_text() == '{"step": 1}\n'


def test_a_full_device_is_told_in_words(journal: Journal) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    journal.path.symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="no space left on the device while writing"):
        journal.append({"step": 1})


def test_what_was_appended_outlives_a_kill(journal: Journal) -> None:
    program = (
        "import sys; from pathlib import Path; from tpsprune.runs import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "step = 0\n"
        "while True:\n"
        "    journal.append({'step': step, 'text': 'x' * 2000})\n"
        "    print(step, flush=True)\n"
        "    step += 1\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(journal.path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(20):
        last = int(child.stdout.readline())
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    acknowledged = int(rest[-1]) if rest else last
    records, _ = journal.read()
    assert [record["step"] for record in records] == list(range(len(records)))
    assert len(records) >= acknowledged + 1
