"""A file is wholly written or not there, and the disk's refusals come out in words."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpsprune.errors import RunFolderError
from tpsprune.runs import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
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
