"""A study from its first training to its page, with a journal so that no training is run twice."""

from __future__ import annotations

import multiprocessing
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, final

import torch

from tpsprune.errors import RunFolderError
from tpsprune.records import dump, load
from tpsprune.records.serial import shorten
from tpsprune.runs import Journal, cannot_write, machine_facts, write_json_atomically, write_text_atomically
from tpsprune_studies.catalogue import JOURNALS, Prediction, Settings, load_study
from tpsprune_studies.finding import Finding, Plan, Training, Trial, describe

Job = TypeVar("Job")
Result = TypeVar("Result")
Due = Callable[[], Sequence[Job]]
"""The jobs left to do, the most urgent first; called again whenever a job has ended."""
POLL_SECONDS: Final = 0.05


def conduct(prediction: Prediction, setup: Settings, out: Path, workers: int = 1) -> Iterator[str | Finding]:
    """Run what is left of a study; yield a line for each training as it ends, and last the finding.

    ``workers`` trainings run at a time, each in a process of its own where they are more than one.

    ``out`` receives ``NAME.jsonl``, a line per finished training, flushed to the disk as it ends, and, once
    all are there, ``NAME.json`` and ``NAME.md``. Leaving the loop loses only the training under way. A study
    that names another's journal reads that one, and adds to it what is missing.

    Raises:
        RunFolderError: the folder cannot be written, or its journal is of other settings.
        DivergedError: the loss of a training is not finite.
    """
    study = load_study(prediction.name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    machine = describe_machine()
    owner = JOURNALS[prediction.name]
    head = {"study": owner, "settings": setup.decisive(), "machine": machine}
    journal = StudyJournal(out / f"{owner}.jsonl", head, study.TRAINING)
    done = journal.read()

    def due() -> list[Trial]:
        return _left(study.plan(setup, done), done)

    run = partial(_run, prediction.name, setup)
    for training in run_serially(due, run) if workers == 1 else run_in_parallel(due, run, workers):
        journal.append(training)
        done = (*done, training)
        yield _describe_progress(describe(owner, setup, training), study.plan(setup, done), done, workers)
    finding = study.conclude(setup, done, machine)
    write_json_atomically(out / f"{prediction.name}.json", finding.to_json())
    write_text_atomically(out / f"{prediction.name}.md", finding.render_page())
    yield finding


def describe_machine() -> dict[str, Any]:
    """Return what of this machine decides how long a processor second is; no names, no places."""
    facts = {name: fact for name, fact in machine_facts().items() if name != "python"}
    # In the order of the journals that there are, so that a page says the same whoever writes it.
    return {**facts, "torch": str(torch.__version__), "python": platform.python_version()}


def _run(name: str, setup: Settings, trial: Trial) -> Training:
    started = time.monotonic()
    training = load_study(name).run(setup, trial)
    return replace(training, seconds=time.monotonic() - started)


def _left(plan: Plan, done: Sequence[Training]) -> list[Trial]:
    finished = {training.trial for training in done}
    return [trial for trial in plan.trials if trial not in finished]


def _describe_progress(line: str, plan: Plan, done: Sequence[Training], workers: int) -> str:
    """Return one line: which training ended, how, and about how long the rest will take."""
    left = _left(plan, done)
    place = plan.total - len(left) - len(plan.later_arms)
    seconds = sum(_expect_seconds(arm, done) for arm in (*(trial.arm for trial in left), *plan.later_arms))
    return f"{place}/{plan.total} {line}, about {seconds / workers:.0f} s left"


def _expect_seconds(arm: str, done: Sequence[Training]) -> float:
    """Return the mean wall time of the arm's trainings so far, or of all where it has had none."""
    times = [training.seconds for training in done if training.trial.arm == arm]
    times = times or [training.seconds for training in done]
    return sum(times) / len(times)


@final
@dataclass(frozen=True, slots=True)
class StudyJournal:
    """The finished trainings of a study on disk; ``head`` holds their conditions, the same on every line.

    ``record`` is the dataclass that the training of a line is read into.
    """

    SCHEMA: ClassVar[str] = "tpsprune.study-training/1"

    path: Path
    head: Mapping[str, Any]
    record: type[Any]

    def read(self) -> tuple[Training, ...]:
        """Return the trainings that are done, in the order they were done.

        Raises:
            RunFolderError: the journal is damaged, or is of another study, other settings or another kind of
                machine; the message names the first difference.
        """
        lines, _ = Journal(self.path).read()
        wanted = {"schema": self.SCHEMA, **self.head}
        done = []
        for number, line in enumerate(lines, start=1):
            found = {key: value for key, value in line.items() if key != "training"}
            if differences := _compare(found, wanted):
                raise RunFolderError(
                    f"{self.path} line {number} is of another study or of other settings: {differences[0]}; "
                    "run with the settings it was begun with, or write elsewhere with --out"
                )
            try:
                done.append(load(self.record, line.get("training")))
            except ValueError as error:
                raise RunFolderError(
                    f"{self.path} line {number} is no training of this study ({error}): the file was changed "
                    "from outside; write elsewhere with --out"
                ) from error
        return tuple(done)

    def append(self, training: Training) -> None:
        """Keep a finished training: it is on the disk when this returns.

        Raises:
            RunFolderError: it cannot be written.
        """
        Journal(self.path).append({"schema": self.SCHEMA, **self.head, "training": dump(training)})


def _compare(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Return a message for each difference of two JSON values, by dotted place."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for key in (*wanted, *(key for key in found if key not in wanted))
            for line in _compare(found.get(key), wanted.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if found == wanted else [f"{place} is {shorten(found)} there and {shorten(wanted)} here"]


def run_serially(due: Due[Job], run: Callable[[Job], Result]) -> Iterator[Result]:
    """Run what is due, one job after the other, in this process."""
    while jobs := due():
        yield run(jobs[0])


def run_in_parallel(due: Due[Job], run: Callable[[Job], Result], workers: int) -> Iterator[Result]:
    """Run what is due, ``workers`` jobs at a time; yield results as they come.

    ``run`` and jobs are sent to spawned processes, which ignore an interrupt: leaving the loop ends them, and
    the jobs under way are lost.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        under_way: dict[Job, AsyncResult[Result]] = {}
        while True:
            waiting = [job for job in due() if job not in under_way]
            for job in waiting[: workers - len(under_way)]:
                under_way[job] = pool.apply_async(run, (job,))
            if not under_way:
                return
            ended = [job for job, result in under_way.items() if result.ready()]
            for job in ended:
                yield under_way.pop(job).get()
            if not ended:
                time.sleep(POLL_SECONDS)
