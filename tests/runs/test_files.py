"""A file is wholly written or not there, a journal loses a line at most, and JSON is read strictly."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpsprune.errors import RunFolderError
from tpsprune.records import Milestone
from tpsprune.records.strict import LARGEST
from tpsprune.runs import (
    Journal,
    beside,
    read_json,
    strict_json,
    sweep,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-LARGEST, LARGEST) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights than this user has")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@SAME_FOLDER
@given(value=JSON)
def test_json_comes_back_as_it_was_written(tmp_path: Path, value: object) -> None:
    write_json_atomically(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_keys_keep_their_order_and_the_file_ends_with_a_line_end(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "value.json", {"b": 1, "a": "ψ"})
    assert (tmp_path / "value.json").read_bytes() == '{\n  "b": 1,\n  "a": "ψ"\n}\n'.encode()


def test_a_number_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json_atomically(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(path, {"loss": float("nan")})
    assert read_json(path) == {"loss": 1.0}


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(small_disk: Path) -> None:
    path = small_disk / "result.json"
    write_text_atomically(path, "old")
    with pytest.raises(RunFolderError, match=r"no space left on the device while writing .*; free some"):
        write_bytes_atomically(path, b"x" * 200_000)
    assert path.read_text() == "old"
    assert [entry.name for entry in small_disk.iterdir()] == ["result.json"]


def test_a_size_limit_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(RunFolderError, match=r"beyond the file size limit .*; raise it"):
            write_bytes_atomically(path, b"x" * 2_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_path_below_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"a part of it is a file.*choose another place"):
        write_text_atomically(tmp_path / "file" / "result.json", "new")


def test_a_folder_in_the_files_place_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(RunFolderError, match=r"a folder is in its place"):
        write_text_atomically(tmp_path / "result.json", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    program = (
        "import sys; from pathlib import Path; from tpsprune.runs import write_text_atomically\n"
        "print(flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n = (n + 1) % 10\n"
        "    write_text_atomically(Path(sys.argv[1]), str(n) * 300_000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    while not path.exists():
        assert child.poll() is None
    child.kill()
    child.wait()
    child.stdout.close()
    text = path.read_text()
    assert text == text[0] * 300_000
    write_text_atomically(path, "")
    assert list(tmp_path.iterdir()) == [path], "what the kill left is swept"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": 1,\n "b": }', "line 2 is not JSON"), (b'"\xff"', "byte 1 is not UTF-8")],
)
def test_damaged_json_is_named_with_its_place(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=words):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"value\.json is not there"):
        read_json(tmp_path / "value.json")


@given(JSON, st.booleans())
def test_what_is_json_comes_back(value: object, ascii_only: bool) -> None:
    assert strict_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_whatever_is_there_a_value_or_a_value_error_comes_of_it(content: bytes) -> None:
    value = None
    with suppress(ValueError):
        value = strict_json(content)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": {"b": 1, "b": 1}}', "the name 'b' is there twice"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b"[1e999]", "1e999 is beyond all numbers"),
        (b"[-Infinity]", "-Infinity is not a number of JSON"),
        (b'["\\ud800"]', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 100_000, "nested too deeply|is not JSON"),
        (b"9" * 5_000, "beyond all whole numbers"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"a": 1}{', "line 1 is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_what_the_library_lets_pass_is_refused_in_words(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json(content)


def test_a_name_that_is_there_twice_is_found_at_once_among_many() -> None:
    names = ",".join(f'"{number}":0' for number in range(30_000))
    begun = time.process_time()
    with pytest.raises(ValueError, match="the name 'z' is there twice"):
        strict_json(f'{{{names},"z":0,"z":0}}'.encode())
    assert time.process_time() - begun < 2.0, "a look at each pair of names would take a minute"


def test_a_pair_of_halves_is_a_character() -> None:
    assert strict_json(b'["\\ud83c\\udf31"]') == ["\N{SEEDLING}"]


RECORDS = st.lists(
    st.dictionaries(
        st.text(),
        st.none()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text()
        | st.lists(st.integers(-(2**63), 2**64 - 1), max_size=2),
        max_size=3,
    ),
    max_size=6,
)


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


def test_a_truncated_last_line_is_left_out_and_reported(journal: Journal) -> None:
    journal.path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert journal.read() == ([{"step": 1}, {"step": 2}], True)


@pytest.mark.parametrize("line", ["{broken}", "3", "", "\x00\x00"])
def test_a_damaged_line_in_the_middle_is_named(journal: Journal, line: str) -> None:
    journal.path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunFolderError, match=r"line 2 of 3 is not a JSON object .*--again"):
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


def test_truncating_drops_a_truncated_line_too(journal: Journal) -> None:
    journal.path.write_text('{"step": 1}\n{"st')
    assert journal.truncate_to(lambda record: True) == 0
    assert journal.path.read_text() == '{"step": 1}\n'


def test_a_full_device_is_reported(journal: Journal) -> None:
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


def test_records_are_lines_and_come_back(journal: Journal) -> None:
    milestone = Milestone(epoch=1.0, step=3, reason="calm", rule="plateau")
    journal.append_all([milestone, milestone])
    assert journal.parsed(Milestone) == [milestone, milestone]
    journal.append({"step": 1})
    with pytest.raises(RunFolderError, match=r"line 3 is no record of this journal \(epoch is missing\)"):
        journal.parsed(Milestone)


WRITER = (
    "import sys; from pathlib import Path; from tpsprune.runs import beside\n"
    "with beside(Path(sys.argv[1])) as temporary:\n"
    "    temporary.write_bytes(b'x' * 100_000)\n"
    "    print(flush=True); sys.stdin.readline()\n"
)


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a process that is half through writing ``path``."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.tmp*"))


@pytest.mark.parametrize("swept_by", [sweep, lambda folder: write_text_atomically(folder / "other", "new")])
def test_what_a_kill_left_is_swept_and_what_a_living_process_writes_stays(
    tmp_path: Path, swept_by: Callable[[Path], None]
) -> None:
    with writer(tmp_path / "killed") as child:
        child.kill()
    (left,) = temporaries(tmp_path)
    assert (left / "killed").stat().st_size == 100_000
    with writer(tmp_path / "living") as child:
        (living,) = temporaries(tmp_path)
        swept_by(tmp_path)
        assert temporaries(tmp_path) == [living]
        assert (living / "living").exists()
    swept_by(tmp_path)
    assert temporaries(tmp_path) == []


def test_a_folder_is_swept_though_another_process_writes_in_the_one_above_it(tmp_path: Path) -> None:
    (tmp_path / "runs" / "state").mkdir(parents=True)
    with writer(tmp_path / "runs" / "state" / "killed") as child:
        child.kill()
    with writer(tmp_path / "runs" / "living"):
        sweep(tmp_path)
        assert len(temporaries(tmp_path)) == 1
        assert not temporaries(tmp_path / "runs" / "state")


def test_sweeping_takes_nothing_of_anybody_else_and_follows_no_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    kept = [
        elsewhere / ".tmp-tpsprune-0" / "file",
        folder / ".file.tmp-1" / "file",
        folder / "x.tmp" / "file",
    ]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.write_text("kept")
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".tmp-tpsprune-1").symlink_to(elsewhere)
    sweep(folder)
    assert [path.read_text() for path in kept] == ["kept"] * 3


def test_two_threads_write_beside_each_other(tmp_path: Path) -> None:
    with beside(tmp_path / "one") as first, beside(tmp_path / "one") as second:
        assert first != second
        first.write_text("1")
        sweep(tmp_path)
        second.write_text("2")
        assert first.read_text() == "1"
    assert list(tmp_path.iterdir()) == []


def test_a_journal_of_too_many_values_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "many.jsonl")
    journal.append_all([{"a": number} for number in range(5)])
    assert len(journal.read()[0]) == 5
    monkeypatch.setattr(import_module("tpsprune.runs.files"), "MAX_JOURNAL_VALUES", 4)
    with pytest.raises(RunFolderError, match="is no journal: it holds more than 4 values"):
        journal.read()
