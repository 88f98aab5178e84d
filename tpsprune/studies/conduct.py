"""A study from its first training to its page: whatever is done already is not done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from tpsprune.runs import cannot_write, write_json_atomically, write_text_atomically
from tpsprune.studies.catalogue import Prediction
from tpsprune.studies.figures import count
from tpsprune.studies.finding import Finding, Plan
from tpsprune.studies.notebook import Notebook
from tpsprune.studies.page import page
from tpsprune.studies.setup import Setup, machine_kind
from tpsprune.studies.trial import Trained, Trial, run_trial

__all__ = ["Study", "conduct"]


class Study(Protocol):
    """What a module of a study holds."""

    def plan(self, setup: Setup, done: Sequence[Trained]) -> Plan:
        """Return the trainings known to be needed, done ones among them, and the arms of later ones."""

    def finding(self, setup: Setup, done: Sequence[Trained], machine: Mapping[str, Any]) -> Finding:
        """Return what the trainings say, once all that ``plan`` names are done."""


def conduct(prediction: Prediction, setup: Setup, out: Path) -> Iterator[str | Finding]:
    """Do what is left of a study; yield a line for each training as it ends, last the finding.

    In ``out`` lie ``NAME.jsonl``, a line per finished training, flushed to the disk as it ends, and, once
    all are there, ``NAME.json`` and ``NAME.md``. Leaving the loop loses only the training under way.

    Raises:
        RunFolderError: the folder cannot be written, or its journal is of other settings.
        DivergedError: a training left the finite numbers.
    """
    study = cast(Study, import_module(f"tpsprune.studies.{prediction.name.replace('-', '_')}"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    machine = machine_kind()
    head = {"study": prediction.name, "settings": setup.decisive(), "machine": machine}
    notebook = Notebook(out / f"{prediction.name}.jsonl", head)
    done = notebook.read()
    while due := _due(study.plan(setup, done), done):
        trained = run_trial(setup, due[0])
        notebook.append(trained)
        done = (*done, trained)
        yield _progress(setup, study.plan(setup, done), done)
    finding = study.finding(setup, done, machine)
    write_json_atomically(out / f"{prediction.name}.json", finding.to_json())
    write_text_atomically(out / f"{prediction.name}.md", page(finding))
    yield finding


def _due(plan: Plan, done: Sequence[Trained]) -> list[Trial]:
    finished = {trained.trial for trained in done}
    return [trial for trial in plan.trials if trial not in finished]


def _progress(setup: Setup, plan: Plan, done: Sequence[Trained]) -> str:
    """Return one line: which training ended, how, how fast, and about how long the rest will take."""
    last, due = done[-1], _due(plan, done)
    place = plan.total - len(due) - len(plan.later_arms)
    reached = f"{setup.level:g} at step {count(last.steps)}"
    missed = f"{last.validation_accuracy:.3f} after {count(last.steps)} steps, {setup.level:g} not reached"
    left = sum(_expected_seconds(arm, done) for arm in (*(trial.arm for trial in due), *plan.later_arms))
    return (
        f"{place}/{plan.total} {last.trial.stage} seed {last.trial.seed} {last.trial.arm} "
        f"weight decay {last.trial.weight_decay:g}: {reached if last.reached else missed}, "
        f"{last.cpu_seconds:.1f} CPU-s ({last.steps / last.seconds:.0f} steps/s), about {left:.0f} s left"
    )


def _expected_seconds(arm: str, done: Sequence[Trained]) -> float:
    """Return the mean wall time of the arm's trainings so far, or of all where it has had none."""
    times = [trained.seconds for trained in done if trained.trial.arm == arm]
    times = times or [trained.seconds for trained in done]
    return sum(times) / len(times)
