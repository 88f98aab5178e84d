"""Where a run of several processes begins: its own folder after a restart, nobody else's, and its shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tpsprune.errors import RunFolderError
from tpsprune.numerics.peers import Alone
from tpsprune.pipeline.job import Start, find_start, own_folder
from tpsprune.runs import RunFolder, write_text_atomically


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return monkeypatch


def start(out: Path, *, resume: bool = False) -> Start:
    return find_start(Alone(2), out, "small", "0123abcd", resume=resume, shards=2)


def begin(out: Path, found: Start) -> RunFolder:
    with own_folder(found, out, "small", "0123abcd", again=False) as folder:
        write_text_atomically(folder.recipe, "seed = 0\n")
        return folder


def test_a_restarted_job_goes_on_with_its_run(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    folder = begin(tmp_path, start(tmp_path))
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = start(tmp_path)
    assert again.found == folder
    assert again.record.processes == (1, 1)
    assert not again.is_finished


def test_a_restarted_job_leaves_the_run_of_another_alone(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    begin(tmp_path, start(tmp_path))
    job.setenv("TORCHELASTIC_RUN_ID", "another")
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    found = start(tmp_path)
    assert found.found is None
    with pytest.raises(RunFolderError, match="holds an unfinished run"):
        begin(tmp_path, found)


def test_a_job_that_was_killed_when_its_run_was_finished_has_nothing_left_to_do(
    tmp_path: Path, job: pytest.MonkeyPatch
) -> None:
    """With --resume too, where a plain command is told that there is nothing to resume."""
    folder = begin(tmp_path, start(tmp_path))
    write_text_atomically(folder.result, "{}")
    with pytest.raises(RunFolderError, match="nothing to resume"):
        start(tmp_path, resume=True)
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start(tmp_path).is_finished
    assert start(tmp_path, resume=True).is_finished


def test_a_job_that_was_killed_before_it_wrote_a_word_takes_its_empty_folder(
    tmp_path: Path, job: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, "small", "0123abcd")
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start(tmp_path).found == folder


def test_a_run_that_is_resumed_by_another_job_is_that_jobs(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    begin(tmp_path, start(tmp_path))
    job.setenv("TORCHELASTIC_RUN_ID", "another")
    folder = begin(tmp_path, start(tmp_path, resume=True))
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start(tmp_path).found == folder
    assert start(tmp_path).record.processes == (1, 1, 1)


def test_a_run_that_one_process_began_stays_in_one_shard(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path, "small", "0123abcd")
    write_text_atomically(folder.recipe, "seed = 0\n")
    found = start(tmp_path, resume=True)
    assert (found.record.shards, found.record.processes) == (1, (1, 1))


def test_one_process_that_torchrun_started_is_known_after_a_restart(
    tmp_path: Path, job: pytest.MonkeyPatch
) -> None:
    def start_one() -> Start:
        return find_start(Alone(), tmp_path, "small", "0123abcd", resume=False, shards=None)

    folder = begin(tmp_path, start_one())
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start_one().found == folder


def test_a_run_beside_an_older_one_is_found_when_it_is_finished(
    tmp_path: Path, job: pytest.MonkeyPatch
) -> None:
    job.setenv("TORCHELASTIC_RUN_ID", "older")
    begin(tmp_path, start(tmp_path))
    job.setenv("TORCHELASTIC_RUN_ID", "mine")
    with own_folder(start(tmp_path), tmp_path, "small", "0123abcd", again=True) as folder:
        write_text_atomically(folder.result, "{}")
    job.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start(tmp_path).is_finished


def test_a_run_that_another_process_holds_is_not_touched(tmp_path: Path, job: pytest.MonkeyPatch) -> None:
    folder = begin(tmp_path, start(tmp_path))
    before = (folder.state / "processes.json").read_bytes()
    job.setenv("TORCHELASTIC_RUN_ID", "another")
    with folder.locked(), pytest.raises(RunFolderError, match="is in use"):
        begin(tmp_path, start(tmp_path, resume=True))
    assert (folder.state / "processes.json").read_bytes() == before


def test_the_number_of_shards_is_that_of_the_first_start(tmp_path: Path) -> None:
    begin(tmp_path, start(tmp_path))
    resumed = find_start(Alone(), tmp_path, "small", "0123abcd", resume=True, shards=None)
    assert resumed.peers.shards == 2
    assert replace(resumed.record, processes=()).shards == 2


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = begin(tmp_path, start(tmp_path))
    write_text_atomically(folder.state / "processes.json", '{"shards": 0}')
    with pytest.raises(RunFolderError, match=r"processes\.json is damaged: .*--again"):
        start(tmp_path, resume=True)
