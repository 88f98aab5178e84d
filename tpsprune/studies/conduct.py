"""A study from its first training to its page: whatever is done already is not done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from tpsprune.recipe import Recipe
from tpsprune.runs import cannot_write, write_json_atomically, write_text_atomically
from tpsprune.studies.catalogue import Prediction
from tpsprune.studies.crew import in_turn, side_by_side
from tpsprune.studies.finding import Done, Finding, Plan, Trial
from tpsprune.studies.notebook import Notebook
from tpsprune.studies.page import page
from tpsprune.studies.setup import machine_kind

__all__ = ["Settings", "Study", "conduct", "study_of"]


class Settings(Protocol):
    """What a study is run with."""

    def decisive(self) -> dict[str, Any]:
        """Return, flat, every setting that a finished training depends on."""


class Study(Protocol):
    """What a module of a study holds."""

    def setup(
        self, recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False
    ) -> Settings:
        """Return the settings of that size, the study's own where none is given; ``full`` is the larger."""

    def plan(self, setup: Any, done: Sequence[Any]) -> Plan:
        """Return the trainings known to be needed, done ones among them, and the arms of later ones."""

    def run(self, setup: Any, trial: Any) -> Done:
        """Do one of them."""

    def record(self, raw: dict[str, Any]) -> Done:
        """Rebuild one from its line in the journal."""

    def words(self, setup: Any, last: Any) -> str:
        """Return which training ended, and how."""

    def finding(self, setup: Any, done: Sequence[Any], machine: Mapping[str, Any]) -> Finding:
        """Return what the trainings say, once all that ``plan`` names are done."""


def study_of(prediction: Prediction) -> Study:
    """Return the module that puts a prediction to the test."""
    return cast(Study, import_module(f"tpsprune.studies.{prediction.name.replace('-', '_')}"))


def conduct(prediction: Prediction, setup: Settings, out: Path, workers: int = 1) -> Iterator[str | Finding]:
    """Do what is left of a study; yield a line for each training as it ends, last the finding.

    ``workers`` trainings run at a time, each in a process of its own where they are more than one.

    In ``out`` lie ``NAME.jsonl``, a line per finished training, flushed to the disk as it ends, and, once
    all are there, ``NAME.json`` and ``NAME.md``. Leaving the loop loses only the training under way.

    Raises:
        RunFolderError: the folder cannot be written, or its journal is of other settings.
        DivergedError: a training left the finite numbers.
    """
    study = study_of(prediction)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    machine = machine_kind()
    head = {"study": prediction.name, "settings": setup.decisive(), "machine": machine}
    notebook = Notebook(out / f"{prediction.name}.jsonl", head, study.record)
    done = notebook.read()

    def due() -> list[Trial]:
        return _due(study.plan(setup, done), done)

    do = partial(_run, prediction, setup)
    for trained in in_turn(due, do) if workers == 1 else side_by_side(due, do, workers):
        notebook.append(trained)
        done = (*done, trained)
        yield _progress(study.words(setup, trained), study.plan(setup, done), done, workers)
    finding = study.finding(setup, done, machine)
    write_json_atomically(out / f"{prediction.name}.json", finding.to_json())
    write_text_atomically(out / f"{prediction.name}.md", page(finding))
    yield finding


def _run(prediction: Prediction, setup: Settings, trial: Trial) -> Done:
    return study_of(prediction).run(setup, trial)


def _due(plan: Plan, done: Sequence[Done]) -> list[Trial]:
    finished = {trained.trial for trained in done}
    return [trial for trial in plan.trials if trial not in finished]


def _progress(words: str, plan: Plan, done: Sequence[Done], workers: int) -> str:
    """Return one line: which training ended, how, and about how long the rest will take."""
    due = _due(plan, done)
    place = plan.total - len(due) - len(plan.later_arms)
    left = sum(_expected_seconds(arm, done) for arm in (*(trial.arm for trial in due), *plan.later_arms))
    return f"{place}/{plan.total} {words}, about {left / workers:.0f} s left"


def _expected_seconds(arm: str, done: Sequence[Done]) -> float:
    """Return the mean wall time of the arm's trainings so far, or of all where it has had none."""
    times = [trained.seconds for trained in done if trained.trial.arm == arm]
    times = times or [trained.seconds for trained in done]
    return sum(times) / len(times)
