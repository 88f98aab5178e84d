"""A run that several processes work on: its folder, its shards, and where all but the first write.

``state/processes.json`` of a run of several shards holds their number, the job that began it and how many
processes each attempt had. The first process alone finds, makes and writes the folder; each of the others has
a scratch folder, filled with what a resumed run reads, that is gone when it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from tpsprune import training
from tpsprune.errors import PeersError, RunFolderError
from tpsprune.numerics.peers import AbstractPeers
from tpsprune.pipeline.slots import common_of, read_slot
from tpsprune.pipeline.workbench import find_unfinished
from tpsprune.records import dump, load
from tpsprune.records.serial import Positive, Text
from tpsprune.runs import RunFolder, read_json, write_json_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """How many shards a run has, which job began it, and the processes of each attempt."""

    SCHEMA: ClassVar[str] = "tpsprune.job/1"

    schema: Literal["tpsprune.job/1"] = "tpsprune.job/1"
    shards: Positive
    job: Text
    processes: tuple[Positive, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: the processes with its shards, and the folder that is resumed, if one is."""

    peers: AbstractPeers
    found: RunFolder | None
    record: JobRecord
    is_finished: bool
    """Whether the job had finished its run when it was restarted."""

    def describe(self) -> dict[str, Any]:
        """Return shards and the processes of each attempt, for a result; nothing of one shard."""
        if self.record.shards == 1:
            return {}
        return {"shards": self.record.shards, "processes": list(self.record.processes)}


def find_start(
    peers: AbstractPeers, out: Path, name: str, digest: str, *, resume: bool, shards: int | None
) -> Start:
    """Return how the run of a digest begins; what the first process finds holds for all.

    A job that its launcher has restarted resumes the run that it began, and begins where it had none; of one
    that it had finished nothing is left to do.

    Raises:
        RunFolderError: there is nothing to resume.
        PeersError: the processes cannot share the shards that the run was begun with.
    """
    job = training.Job.of_environment()

    def find() -> tuple[str | None, int, list[int], bool]:
        found = _begun_by(job, out, name, digest) if job.is_restarted else None
        if found is None and resume:
            found = find_unfinished(out, name, digest)
        record = read_record(found) if found else None
        path, done = (str(found.path), found.is_finished) if found else (None, False)
        if record is None and found is not None and found.recipe.is_file():
            return path, 1, [1], done  # Begun by one process, in one shard.
        if record is None:
            return path, shards or peers.size, [], done
        return path, record.shards, list(record.processes), done

    path, count, processes, is_finished = peers.first(find)
    record = JobRecord(shards=count, job=job.identity, processes=(*processes, peers.size))
    return Start(peers.with_shards(count), RunFolder(Path(path)) if path else None, record, is_finished)


@contextmanager
def own_folder(
    start: Start, out: Path, name: str, digest: str, *, again: bool, spreads: bool = False
) -> Iterator[RunFolder]:
    """Yield the run's folder to the first process, to each other one a scratch folder of the same contents.

    Of a model that ``spreads`` over them each writes its parts into the first one's folder, and the weights
    that are there whole are the first one's alone.

    Raises:
        RunFolderError: the folder is there already, or cannot be made.
        PeersError: a process that is to write into it does not see it.
    """
    peers = start.peers

    def make() -> str:
        folder = start.found or RunFolder.create(out, name, digest, again=again)
        if peers.shards > 1 or training.Job.is_launched():
            with folder.locked():  # Of a run that another process works on nothing is touched.
                write_json_atomically(_record_path(folder), dump(start.record))
        return str(folder.path)

    folder = RunFolder(Path(peers.first(make)))
    if peers.size == 1:
        yield folder
        return
    if spreads:
        peers.together(lambda: _check_shared(folder))
    files = peers.first_tensors(lambda: _read_files(folder, spreads=spreads))
    if peers.is_first:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tpsprune-") as scratch:
        own = RunFolder(Path(scratch), is_scratch=True, home=folder.path)
        own.state.mkdir()
        for place, content in files.items():
            (own.path / place).write_bytes(content.numpy().tobytes())
        yield own


def read_record(folder: RunFolder) -> JobRecord | None:
    """Return the record of a run's shards; none of a run that has one.

    Raises:
        RunFolderError: it is damaged.
    """
    path = _record_path(folder)
    if not path.is_file():
        return None
    try:
        return load(JobRecord, read_json(path))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; start again with --again") from error


def _begun_by(job: training.Job, out: Path, name: str, digest: str) -> RunFolder | None:
    """Return the run that a job has begun, finished or not, if there is one."""
    runs = RunFolder.list_all(out, name, digest)
    for found in reversed(runs):
        record = read_record(found)
        if record is not None and record.job == job.identity:
            return found
    # Killed when it had made the folder, and nothing in it?
    is_empty = bool(runs) and not runs[-1].recipe.is_file() and read_record(runs[-1]) is None
    return runs[-1] if is_empty else None


def _check_shared(folder: RunFolder) -> None:
    if not folder.state.is_dir():
        raise PeersError(
            f"{folder.path} is not there for this process: with train.spread = 'shard' each writes its "
            "part of a checkpoint, on a disk that all share; choose one with --out"
        )


def _read_files(folder: RunFolder, *, spreads: bool) -> dict[str, torch.Tensor]:
    """Return what a resumed run reads from its folder, as bytes."""
    paths = [path for path in folder.state.iterdir() if path.is_file() and path.suffix != ""]
    paths += [path for path in (folder.plan, folder.dense) if path.is_file()]
    if spreads:
        slot = read_slot(folder)
        common = None if slot is None else common_of(folder, slot)
        paths = [path for path in paths if path.suffix != ".safetensors" or path == common]
    contents = ((path.relative_to(folder.path), path.read_bytes()) for path in sorted(paths))
    return {
        str(place): torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for place, content in contents
        if content
    }


def _record_path(folder: RunFolder) -> Path:
    return folder.state / "processes.json"
