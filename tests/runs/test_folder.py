"""A run folder is made once, found again, and held by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpsprune.errors import RunFolderError
from tpsprune.runs import RunFolder, digest_of

HOLD = (
    "import sys; from pathlib import Path; from tpsprune.runs import RunFolder\n"
    "with RunFolder.open_existing(Path(sys.argv[1])).locked():\n"
    "    print(flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder_of(folder: RunFolder) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    return child


def finish(child: subprocess.Popen[str]) -> None:
    child.communicate("")


def test_the_digest_tells_recipes_apart() -> None:
    assert digest_of("seed = 0\n") == digest_of("seed = 0\n")
    assert digest_of("seed = 0\n") != digest_of("seed = 1\n")
    assert len(digest_of("")) == 8


def test_a_new_folder_lies_where_name_and_digest_say(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", "mnist", "abcd1234")
    assert folder.path == tmp_path / "runs" / "mnist-abcd1234"
    assert folder.state.is_dir()
    assert not folder.is_finished
    names = [folder.recipe, folder.plan, folder.dense, folder.ticket, folder.result]
    assert [path.name for path in names] == [
        "recipe.toml",
        "plan.json",
        "dense.safetensors",
        "ticket.safetensors",
        "result.json",
    ]
    journals = [folder.readings, folder.energy, folder.decisions]
    assert [journal.path.stem for journal in journals] == ["readings", "energy", "decisions"]


@pytest.mark.parametrize(
    ("is_finished", "words"),
    [
        (False, "an unfinished run .*go on with --resume.*--again.*--out"),
        (True, "a finished run of this recipe: run it once more with --again.*--out"),
    ],
)
def test_a_run_is_not_written_over(tmp_path: Path, is_finished: bool, words: str) -> None:
    made = RunFolder.create(tmp_path, "mnist", "abcd1234")
    if is_finished:
        made.result.write_text("{}")
    with pytest.raises(RunFolderError, match=words):
        RunFolder.create(tmp_path, "mnist", "abcd1234")


def test_again_takes_the_next_free_folder(tmp_path: Path) -> None:
    made = [RunFolder.create(tmp_path, "mnist", "abcd1234", again=True) for _ in range(3)]
    assert [run.path.name for run in made] == ["mnist-abcd1234", "mnist-abcd1234-2", "mnist-abcd1234-3"]


def test_the_run_to_take_up_is_the_last_unfinished_one(tmp_path: Path) -> None:
    first, second, third = (RunFolder.create(tmp_path, "a", "0", again=True) for _ in range(3))
    third.result.write_text("{}")
    assert RunFolder.find(tmp_path, "a", "0") == second
    second.result.write_text("{}")
    first.result.write_text("{}")
    assert RunFolder.find(tmp_path, "a", "0") == third


def test_a_run_that_was_never_started_is_not_found(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "a", "0")
    with pytest.raises(RunFolderError, match=r"no run of this recipe .*without --resume"):
        RunFolder.find(tmp_path, "a", "1")


def test_opening_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not there"):
        RunFolder.open_existing(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match=r"holds neither recipe\.toml nor state/"):
        RunFolder.open_existing(tmp_path)
    made = RunFolder.create(tmp_path, "a", "0")
    assert RunFolder.open_existing(made.path) == made


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*file"):
        RunFolder.create(tmp_path / "file", "a", "0")
    with pytest.raises(RunFolderError, match=r"a part of it is a file.*choose another place"):
        RunFolder.create(tmp_path / "file" / "runs", "a", "0")


def test_a_read_only_place_is_reported() -> None:
    if not Path("/proc/sys/kernel").exists():
        pytest.skip("this system has no /proc")
    with pytest.raises(RunFolderError, match=r"cannot write|not permitted|read-only"):
        RunFolder.create(Path("/proc/sys/kernel/runs"), "a", "0")


def test_one_process_holds_a_folder_and_the_next_learns_which(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", "0")
    child = holder_of(folder)
    try:
        with pytest.raises(RunFolderError, match=f"a-0 is in use by process {child.pid}: .*--again"):
            folder.locked().__enter__()
    finally:
        finish(child)
    with folder.locked():
        assert (folder.state / "lock").read_text() == str(os.getpid())


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", "0")
    child = holder_of(folder)
    child.kill()
    finish(child)
    with folder.locked():
        pass


def test_an_error_inside_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", "0")
    with pytest.raises(BlockingIOError, match="mine"), folder.locked():
        raise BlockingIOError("mine")
    with folder.locked():
        pass


def test_who_takes_a_folder_up_sweeps_what_a_kill_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", "0")
    for place in (folder.path, folder.state):
        (place / ".tmp-tpsprune-0").mkdir()
        (place / ".tmp-tpsprune-0" / ".tmp1MKDTo").write_text("as safetensors names its own")
    with folder.locked():
        assert not list(folder.path.rglob("*.tmp*"))
