"""Studies small enough for a test, run once a session; and trainings made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tpsprune import recipe
from tpsprune.recipe import Recipe
from tpsprune_studies import (
    antidistillation,
    attention_width,
    collapse,
    condensation,
    coupling,
    coupling_edges,
    dimension,
    draw_time,
    edge_position,
    inducers,
    landscape,
    latent_field,
    lead_time,
    morse,
    paths,
    plateau,
    pullback,
    sequence_tasks,
    universal,
)
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.conduct import conduct
from tpsprune_studies.coupling import CouplingSetup
from tpsprune_studies.finding import Finding, Plan
from tpsprune_studies.sequence_tasks import SequenceTask
from tpsprune_studies.setup import Setup
from tpsprune_studies.tuned_comparison import Arm, ArmTraining, ArmTrial, Experiment, Seeds, TunedSetup, plan

OVERRIDES = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")
MACHINE = {"logical_cpus": 2, "torch": "2.13.0"}
NONE = Arm(name="none", learning_rates=(0.01, 0.03), weight_decays=(1.0,))
LABELS = Arm(
    name="labels", variant="labels", learning_rates=(0.01,), weight_decays=(1.0,), strengths=(1.0, 3.0)
)
Done = TypeVar("Done")


@cache
def small_recipe() -> Recipe:
    """Thirteen residues and a narrow net."""
    return recipe.read("modular-addition", OVERRIDES)


def make_tiny() -> TunedSetup:
    experiment = Experiment(
        task="addition",
        recipe=small_recipe(),
        arms=(NONE, LABELS),
        level=0.1,
        cap_steps=30,
        reading_steps=10,
    )
    return TunedSetup(experiments=(experiment,), seeds=Seeds(pilot_seeds=1, seeds=2))


tiny = pytest.fixture(scope="session", name="tiny")(make_tiny)


def tiny_setup(study: Any, seeds: int = 2, cap_steps: int = 40) -> Any:
    setup: Setup = study.make_setup(small_recipe(), seeds, cap_steps)
    return replace(setup, level=0.06, reading_steps=10)


def tiny_coupling() -> CouplingSetup:
    full = coupling.make_setup(recipe.read("modular-addition"), 2, 5000)
    small = replace(full, sizes=(8, 16, 32), ramp_steps=2, slow_steps=3, slow_size=16)
    return replace(small, cap_steps=20, level=0.02)


@pytest.fixture
def three_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Dyck-1 and SCAN on three seeds each, whatever the study's own number."""
    tasks = {arm: replace(task, seeds=3) for arm, task in sequence_tasks.TASKS.items()}
    monkeypatch.setattr(sequence_tasks, "TASKS", tasks)


def tiny_sequence_tasks() -> dict[str, SequenceTask]:
    """Dyck-1 with a narrow net, read after every step."""
    task = sequence_tasks.TASKS["Dyck-1"]
    args = {**task.model_args, "width": 8, "mlp_width": 8}
    tiny = replace(task, model_args=args, reading_steps=1, cap_steps=5)
    return {"Dyck-1": tiny, "Dyck-1, no decay": replace(tiny, weight_decay=0.0)}


@contextmanager
def shortened(name: str) -> Iterator[Any]:
    """Make the trainings of a study few and short; return its setup."""
    read = recipe.read
    with pytest.MonkeyPatch.context() as patch:
        if name == "speed-up":
            yield make_tiny()
        if name == "coupling":
            patch.setattr(coupling_edges, "HIGHEST", 1)
            yield tiny_coupling()
        if name == "lead-time":
            patch.setattr(lead_time, "DIGITS_EPOCHS", 2)
            patch.setattr(lead_time, "TASKS", {name: lead_time.TASKS[name] for name in ("add", "a3+ab")})
            patch.setattr(sequence_tasks, "TASKS", tiny_sequence_tasks())
            yield tiny_setup(lead_time)
        if name == "inducers":
            patch.setattr(inducers, "EPOCHS", 1)
            patch.setattr(inducers, "LEARNING_RATES", (0.01,))
            few = (inducers.PLAIN, inducers.HOT, "init x 0.1")
            patch.setattr(inducers, "INDUCERS", {name: inducers.INDUCERS[name] for name in few})
            yield tiny_setup(inducers)
        if name == "condensation":
            yield condensation.make_setup(small_recipe(), 2, 30)
        if name == "morse":
            patch.setattr(morse, "LOSSES", (2.35, 2.3))
            yield morse.make_setup(recipe.read("modular-addition"), 2, 60)
        if name == "paths":
            read_short = partial(read, "digits")
            patch.setattr(
                recipe, "read", lambda _source, changes=(): read_short(("train.epochs=2", *changes))
            )
            yield paths.make_setup(small_recipe(), 2, None)
        if name == "pullback":
            yield pullback.make_setup(small_recipe(), 2, 40)
        if name == "latent-field":
            yield latent_field.make_setup(small_recipe(), 2, 40)
        if name == "collapse":
            yield collapse.make_setup(small_recipe(), 2, 20)
        if name == "plateau":
            yield plateau.make_setup(small_recipe(), 2, 40)
        if name == "landscape":
            for constant, value in (("WIDTHS", (8,)), ("RATES", (1e-2,)), ("SIDE", 3), ("SLICES", 1)):
                patch.setattr(landscape, constant, value)
            yield landscape.make_setup(small_recipe(), 2, 20)
        if name == "attention-width":
            patch.setattr(attention_width, "WIDTHS", (2, 8))
            yield attention_width.make_setup(small_recipe(), 2, 500)
        if name in {"universal", "antidistillation"}:
            small = ("task.model.config.hidden_size=8", "task.model.config.intermediate_size=8")
            changes = (*edge_position.TEXT_CHANGES, *small, "task.data.length=8")
            if name == "universal":
                steps = {"PLACES": 8, "SEQUENCES": 100, "PRETRAINING_STEPS": 3, "SPARE_STEPS": 600}
                for constant, value in {**steps, "CHANGES": (*changes, "train.batch_size=4")}.items():
                    patch.setattr(universal, constant, value)
                yield universal.make_setup(small_recipe(), 2, 6)
            else:
                sizes = {
                    "DENSE_STEPS": 4,
                    "RETRAIN_STEPS": 2,
                    "SEQUENCES": 64,
                    "PROXY_ITEMS": 8,
                    "SHARE": 0.9,
                }
                for constant, value in {**sizes, "TEXT_CHANGES": changes}.items():
                    patch.setattr(antidistillation, constant, value)
                yield antidistillation.make_setup(small_recipe(), 2, 2)
        if name == "edge-position":
            regimes = {
                task: replace(regime, reading_steps=1) for task, regime in edge_position.REGIMES.items()
            }
            patch.setattr(edge_position, "REGIMES", regimes)
            small = ("task.data.length=8", "task.model.config.hidden_size=8", "train.batch_size=4")
            patch.setattr(edge_position, "TEXT_CHANGES", (*edge_position.TEXT_CHANGES, *small))
            yield tiny_setup(edge_position, cap_steps=12)
        if name in {"dimension", "draw-time"}:
            epochs = "train.epochs=3" if name == "draw-time" else "train.epochs=2"
            short = (epochs, "task.model.widths=[8, 8]")
            patch.setattr(recipe, "read", lambda source, changes=(): read(source, (*short, *changes)))
            for moment, value in (("TRANSITION", 0.06), ("MEMORISED", 0.06), ("AFTER_STEPS", 5)):
                patch.setattr(draw_time, moment, value)
            yield tiny_setup(dimension, cap_steps=30) if name == "dimension" else tiny_setup(draw_time)


@dataclass(frozen=True)
class Conducted:
    """A study that was run to its end."""

    name: str
    folder: Path
    lines: list[str]
    finding: Finding

    @property
    def journal(self) -> list[str]:
        return (self.folder / f"{self.name}.jsonl").read_text().splitlines()


@pytest.fixture(scope="session")
def conducted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Conducted]:
    """Return a study run to its end, the same one for every test."""

    @cache
    def run(name: str) -> Conducted:
        folder = tmp_path_factory.mktemp(name)
        with shortened(name) as setup:
            *lines, finding = conduct(STUDIES[name], setup, folder)
        assert isinstance(finding, Finding)
        return Conducted(name, folder, [str(line) for line in lines], finding)

    return run


def longer(setup: TunedSetup, cap_steps: int = 5000) -> TunedSetup:
    return replace(setup, experiments=(replace(setup.experiments[0], cap_steps=cap_steps),))


def made(trial: ArmTrial, steps: int) -> ArmTraining:
    """A training that reached the level after so many steps, or was stopped after so many (negative)."""
    taken = min(abs(steps), trial.allowed_steps)
    reached = steps == taken
    return ArmTraining(
        trial=trial,
        steps=taken,
        reached=reached,
        validation_accuracy=0.96 if reached else 0.1,
        cpu_seconds=taken * (0.01 if trial.name == "none" else 0.015),
        tps_cpu_seconds=0.0 if trial.name == "none" else taken * 0.005,
        seconds=taken * 0.02,
    )


def follow(planned: Callable[[Sequence[Done]], Plan], make: Callable[[Any], Done]) -> list[Done]:
    """All trainings of a plan, each made up once it is known to be needed."""
    done: dict[Any, Done] = {}
    while due := [trial for trial in planned(list(done.values())).trials if trial not in done]:
        done |= {trial: make(trial) for trial in due}
    return list(done.values())


def played(setup: TunedSetup, outcome: Callable[[ArmTrial], int]) -> list[ArmTraining]:
    """All trainings of a study, each with the steps of ``outcome``, or those it is allowed."""
    return follow(lambda done: plan(setup, done), lambda trial: made(trial, outcome(trial)))


def played_pairs(setup: TunedSetup, pairs: list[tuple[int, int]]) -> list[ArmTraining]:
    """Pilot and pairs as from ``(steps without, steps with)``; a negative number never reached the level."""

    def outcome(trial: ArmTrial) -> int:
        if trial.stage == "pilot":
            return 400 if trial.name == "labels" else 3000
        return pairs[setup.seeds.pairs.index(trial.seed)][trial.name == "labels"]

    return played(setup, outcome)
