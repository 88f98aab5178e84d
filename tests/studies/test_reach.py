"""Tasks of the study ``reach``: each can be prepared as it stands; and what several of them show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from tests.studies.conftest import MACHINE, follow, made
from tpsprune import recipe
from tpsprune_studies.reach import TASKS, Reach, ReachTask, conclude, make_setup, plan
from tpsprune_studies.setup import prepare
from tpsprune_studies.tuned_comparison import (
    ArmTraining,
    ArmTrial,
    Experiment,
    Seeds,
    TunedSetup,
    make_recipe,
)

EXPERIMENTS = make_setup(recipe.read("modular-addition"), None, None).experiments


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.task)
def test_every_arm_of_every_task_can_be_prepared_and_pulls(experiment: Experiment) -> None:
    for arm in experiment.arms:
        trial = ArmTrial(
            stage="pilot",
            task=experiment.task,
            conditions=experiment.conditions,
            name=arm.name,
            seed=0,
            learning_rate=arm.learning_rates[0],
            weight_decay=arm.weight_decays[0],
            strength=arm.strengths[0],
            allowed_steps=1,
        )
        prepared = prepare(make_recipe(experiment, trial))
        dataset, model = prepared.dataset, prepared.model
        assert prepared.recipe.train.schedule == "constant"
        regulariser = prepared.build_regulariser(10)
        assert (regulariser is None) == (arm.variant == "none")
        if regulariser is None or not regulariser.in_loss:
            continue
        inputs, labels = dataset.train.inputs[:64], dataset.train.labels[:64]
        with regulariser.listening():
            model(dataset.prepare(inputs))
        penalty = regulariser.penalty(0, labels)
        assert penalty is not None
        penalty.backward()
        moved = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
        assert moved > 0 or len(labels) <= dataset.facts.classes


def test_without_tps_as_many_settings_are_tried_as_with_any_variant() -> None:
    full = make_setup(recipe.read("modular-addition"), None, None, full=True).experiments
    for experiment in (*EXPERIMENTS, *full):
        sizes = {arm.name: arm.size for arm in experiment.arms}
        assert sizes["none"] == max(sizes[arm.name] for arm in experiment.arms if not arm.grokfast), (
            experiment.task
        )


def test_tasks_have_names_of_their_own_and_every_kind_is_there() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert Counter(task.kind for task in TASKS) == {"structured": 16, "ordinary": 3, "control": 2}


def test_a_task_without_data_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, tiny: TunedSetup) -> None:
    images = next(task for task in TASKS if task.base == "fashion-mnist")
    moved = replace(images, changes=(*images.changes, "task.data.folder='nowhere'"))
    monkeypatch.setattr("tpsprune_studies.reach.TASKS", (TASKS[0], moved))
    found = make_setup(recipe.read("modular-addition"), None, None)
    assert [task.name for task in found.tasks] == [each.task for each in found.experiments] == [TASKS[0].name]
    study, done = reach(tiny, {"a": (900, 100)})
    left_out = f"- Left out, since their data are not on this machine: {moved.name}."
    assert left_out in conclude(study, done, MACHINE).render_page().splitlines()


def reach(tiny: TunedSetup, steps: Mapping[str, tuple[int, int]]) -> tuple[Reach, list[ArmTraining]]:
    """A study of made-up tasks, by the steps without and with TPS; its size is that of ``tiny``."""
    kinds = {"digits": "ordinary", "control": "control"}
    study = Reach(
        tasks=tuple(ReachTask(name=name, kind=kinds.get(name, "structured")) for name in steps),  # type: ignore[arg-type]
        experiments=tuple(replace(tiny.experiments[0], task=name, cap_steps=5000) for name in steps),
        seeds=Seeds(pilot_seeds=1, seeds=2),
    )

    def make(trial: ArmTrial) -> ArmTraining:
        return made(trial, steps[trial.task][trial.name != "none"] + trial.seed)

    return study, follow(lambda done: plan(study, done), make)


@pytest.mark.parametrize(
    ("steps", "ruling", "words"),
    [
        ({"a": (900, 100), "b": (800, 200)}, "confirmed", "beyond doubt, on 2 (a; b)"),
        (
            {"a": (900, 100), "b": (300, 200)},
            "refuted",
            "on 1 (a), less than twice as fast, beyond doubt, on 1 (b)",
        ),
        (
            {"a": (900, 100), "digits": (200, 200)},
            "confirmed",
            "On ordinary work steps without over steps with it are: digits 1.00.",
        ),
        ({"a": (900, 100), "control": (-5000, -5000)}, "confirmed", "of 1 structured tasks"),
        ({"a": (-5000, -5000)}, "undecided", "of 0 structured tasks"),
        ({"a": (-9000, 100)}, "confirmed", "beyond doubt, on 1 (a)"),
    ],
)
def test_one_structured_task_can_refute_and_all_must_confirm(
    tiny: TunedSetup, steps: Mapping[str, tuple[int, int]], ruling: str, words: str
) -> None:
    study, done = reach(tiny, steps)
    found = conclude(study, done, MACHINE)
    assert found.ruling == ruling
    assert words in found.sentence


def test_the_page_tells_what_no_one_learned_and_what_never_got_there(tiny: TunedSetup) -> None:
    study, done = reach(tiny, {"a": (-9000, 100), "control": (-5000, -5000)})
    text = conclude(study, done, MACHINE).render_page()
    assert "| control | labels |  |  |  |  | never learned | yes |" in text
    row = next(line for line in text.splitlines() if line.startswith("| a | labels |"))
    assert "at least" in row
    assert row.endswith("| confirmed | yes |")
    assert "`labels` alone, on the 1 that it fits: confirmed on 1." in text
    assert "> 5,000, > 5,000" in text


def test_sizes_are_those_asked_for() -> None:
    read = recipe.read("modular-addition")
    assert make_setup(read, None, None).seeds == Seeds(pilot_seeds=1, seeds=5)
    full = make_setup(read, 7, None, full=True)
    assert full.seeds == Seeds(pilot_seeds=3, seeds=7)
    assert {arm.name for arm in full.experiments[0].arms} >= {
        "none",
        "grokfast",
    }


def test_a_model_names_the_units_that_moments_couples() -> None:
    from tpsprune.models.architectures import Mlp, TokenMlp, Transformer
    from tpsprune.tps.moments import find_unit_layers

    torch.manual_seed(0)
    named = {
        "hidden.0": (Mlp(4, (8,), 2), torch.ones(3, 4)),
        "hidden.0.gate * hidden.0.up": (TokenMlp(5, 2, 4, (8,), 5, gated=True), torch.ones(3, 2).long()),
        "mlp_in": (Transformer(5, 8, 2, 16, 5, layers=2), torch.ones(3, 2).long()),
    }
    for name, (model, probe) in named.items():
        assert [layer.name for layer in find_unit_layers(model, (), probe)] == [name]
