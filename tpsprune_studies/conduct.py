"""A study from its first training to its page, with a journal so that no training is run twice."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from tpsprune.energy.machine import cpu_model
from tpsprune.errors import RunFolderError, WorkerError
from tpsprune.jobs import Due, run_afar, run_in_parallel, run_serially
from tpsprune.jobs.address import Address
from tpsprune.jobs.alike import agree, find_differences, refuse_another
from tpsprune.records import dump, load
from tpsprune.runs import Journal, cannot_write, machine_facts, write_json_atomically, write_text_atomically
from tpsprune_studies.catalogue import JOURNALS, Prediction, Settings, load_study
from tpsprune_studies.finding import Finding, Plan, Training, Trial, describe

if TYPE_CHECKING:
    from tpsprune.jobs.cluster import Cluster


def conduct(
    prediction: Prediction, setup: Settings, out: Path, workers: int | Address = 1
) -> Iterator[str | Finding]:
    """Run what is left of a study; yield a line for each training as it ends, and last the finding.

    ``workers`` trainings run at a time, each in a process of its own where they are more than one; or those
    of a cluster run them, of one kind of machine, which the journal then names.

    ``out`` receives ``NAME.jsonl``, a line per finished training, flushed to the disk as it ends, and, once
    all are there, ``NAME.json`` and ``NAME.md``. Leaving the loop loses only the trainings under way. A study
    that names another's journal reads that one, and adds to it what is missing.

    Raises:
        RunFolderError: the folder cannot be written, or its journal is of other settings.
        DivergedError: the loss of a training is not finite.
        WorkerError: the cluster is not there, its workers are not alike, or a training has ended two of them.
    """
    with ExitStack() as stack:
        if isinstance(workers, Address):
            # Here, since it is there with the extra alone.
            from tpsprune.jobs.cluster import connect

            cluster = stack.enter_context(connect(workers))
            yield from _conduct(prediction, setup, out, cluster)
        else:
            yield from _conduct(prediction, setup, out, workers)


def _conduct(
    prediction: Prediction, setup: Settings, out: Path, workers: int | Cluster
) -> Iterator[str | Finding]:
    study = load_study(prediction.name)
    if isinstance(workers, int):
        kind = _describe_kind()
    else:
        # A journal holds one kind of machine: seconds of two would not compare, nor need last digits.
        kind = agree(workers.name, workers.ask_each(_describe_kind, None))
    machine = kind["machine"]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    owner = JOURNALS[prediction.name]
    head = {"study": owner, "settings": setup.decisive(), "machine": machine}
    journal = StudyJournal(out / f"{owner}.jsonl", head, study.TRAINING)
    done = journal.read()

    def due() -> list[Trial]:
        return _left(study.plan(setup, done), done)

    run = partial(_run, prediction.name, setup)
    trainings: Iterator[Training]
    if not isinstance(workers, int):
        trainings = _run_on(workers, due, partial(_run_afar, prediction.name, setup), study.TRAINING, kind)
    elif workers == 1:
        trainings = run_serially(due, run)
    else:
        trainings = run_in_parallel(due, run, workers)
    for training in trainings:
        journal.append(training)
        done = (*done, training)
        places = workers if isinstance(workers, int) else max(1, workers.count_places())
        yield _describe_progress(describe(owner, setup, training), study.plan(setup, done), done, places)
    finding = study.conclude(setup, done, machine)
    write_json_atomically(out / f"{prediction.name}.json", finding.to_json())
    write_text_atomically(out / f"{prediction.name}.md", finding.render_page())
    yield finding


def _run_on(
    cluster: Cluster,
    due: Due[Trial],
    do: Callable[[Trial], dict[str, Any]],
    record: type[Any],
    kind: Mapping[str, Any],
) -> Iterator[Training]:
    """Run what is due on the workers of a cluster; yield each training as a record of its kind.

    Raises:
        WorkerError: a worker that came later is another kind of machine, or sent what is no training.
    """
    for ended in run_afar(due, do, cluster.submit, cluster.count_places, _name):
        refuse_another(cluster.name, ended["kind"], kind)
        try:
            yield load(record, ended["training"])
        except ValueError as error:
            raise WorkerError(f"{cluster.name}: a worker sent what is no training: {error}") from error


def _describe_kind(_: None = None) -> dict[str, Any]:
    # The processor's model is in no journal, but decides how long a second of it is.
    path = Path("/proc/cpuinfo")
    processor = cpu_model(path.read_text(encoding="utf-8")) if path.is_file() else None
    return {"machine": describe_machine(), "processor": processor}


def _name(trial: Trial) -> str:
    seed = getattr(trial, "seed", None)
    return f"the training '{trial.arm}{'' if seed is None else f', seed {seed}'}'"


def describe_machine() -> dict[str, Any]:
    """Return what of this machine decides how long a processor second is; no names, no places."""
    facts = {name: fact for name, fact in machine_facts().items() if name != "python"}
    # In the order of the journals that there are, so that a page says the same whoever writes it.
    return {**facts, "torch": str(torch.__version__), "python": platform.python_version()}


def _run(name: str, setup: Settings, trial: Trial) -> Training:
    started = time.monotonic()
    training = load_study(name).run(setup, trial)
    return replace(training, seconds=time.monotonic() - started)


def _run_afar(name: str, setup: Settings, trial: Trial) -> dict[str, Any]:
    return {"kind": _describe_kind(), "training": dump(_run(name, setup, trial))}


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
            for difference in find_differences(found, wanted):
                raise RunFolderError(
                    f"{self.path} line {number} is of another study or of other settings: "
                    f"{difference.tell()}; run with the settings it was begun with, or write elsewhere with "
                    "--out"
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
