"""Tasks of the study ``reach``: each can be begun as it stands; and what contests on several come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from tests.studies.conftest import made
from tpsprune.studies.contest import Contest, Size, Trained, Trial
from tpsprune.studies.contest_run import recipe_of
from tpsprune.studies.page import page
from tpsprune.studies.reach import Reach, finding, plan, setup
from tpsprune.studies.reach_tasks import CONTROLS, ORDINARY, STRUCTURED, ReachTask, contests, missing
from tpsprune.studies.speed_up import SpeedUp
from tpsprune.studies.trial import begin, regulariser_of

MACHINE = {"logical_cpus": 2}
TASKS = [(task, contest) for task, contest in contests(full=False)]


@pytest.mark.parametrize(("task", "contest"), TASKS, ids=lambda each: getattr(each, "name", ""))
def test_every_arm_of_every_task_can_be_begun_and_takes_a_step(task: ReachTask, contest: Contest) -> None:
    for arm in contest.arms:
        trial = Trial(
            stage="pilot",
            task=contest.task,
            conditions=contest.conditions,
            name=arm.name,
            seed=0,
            learning_rate=arm.learning_rates[0],
            weight_decay=arm.weight_decays[0],
            strength=arm.strengths[0],
            allowed_steps=1,
        )
        recipe = recipe_of(contest, trial)
        assert recipe.train.schedule == "constant"
        dataset, model = begin(recipe)
        regulariser = regulariser_of(recipe, dataset, model, 10)
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
    for _, contest in (*contests(full=False), *contests(full=True)):
        sizes = {arm.name: arm.size for arm in contest.arms}
        assert sizes["none"] == max(sizes[arm.name] for arm in contest.arms if not arm.grokfast), contest.task


def test_tasks_have_names_of_their_own_and_every_kind_is_there() -> None:
    names = [task.name for task in (*STRUCTURED, *ORDINARY, *CONTROLS)]
    assert len(set(names)) == len(names)
    assert len(STRUCTURED) >= 12
    assert {task.kind for task in STRUCTURED} == {"structured"}
    assert {task.kind for task in ORDINARY} == {"ordinary"}


def test_a_task_without_data_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = replace(ORDINARY[1], changes=(*ORDINARY[1].changes, "task.data.folder='nowhere'"))
    monkeypatch.setattr("tpsprune.studies.reach_tasks.ORDINARY", (ORDINARY[0], moved))
    assert missing() == (moved.name,)
    assert moved.name not in [task.name for task, _ in contests(full=False)]


def reach(tiny: SpeedUp, steps: Mapping[str, tuple[int, int]]) -> tuple[Reach, list[Trained]]:
    """A study of made-up tasks, by the steps without and with TPS; its size is that of ``tiny``."""
    kinds = {"digits": "ordinary", "control": "control"}
    tasks = tuple(
        (
            ReachTask(name=name, kind=kinds.get(name, "structured")),  # type: ignore[arg-type]
            replace(tiny.contest, task=name, cap_steps=5000),
        )
        for name in steps
    )
    study = Reach(tasks=tasks, size=Size(pilot_seeds=1, seeds=2))
    done: list[Trained] = []
    while True:
        finished = {trained.trial for trained in done}
        due = [trial for trial in plan(study, done).trials if trial not in finished]
        if not due:
            return study, done
        trial = due[0]
        assert isinstance(trial, Trial)
        given = steps[trial.task][trial.name != "none"] + trial.seed
        allowed = trial.allowed_steps
        done.append(made(trial, given if 0 < given <= allowed else -allowed))


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
    tiny: SpeedUp, steps: Mapping[str, tuple[int, int]], ruling: str, words: str
) -> None:
    study, done = reach(tiny, steps)
    found = finding(study, done, MACHINE)
    assert found.ruling == ruling
    assert words in found.sentence


def test_the_page_tells_what_no_one_learned_and_what_never_got_there(tiny: SpeedUp) -> None:
    study, done = reach(tiny, {"a": (-9000, 100), "control": (-5000, -5000)})
    text = page(finding(study, done, MACHINE))
    assert "| control | labels |  |  |  |  | never learned | yes |" in text
    row = next(line for line in text.splitlines() if line.startswith("| a | labels |"))
    assert "at least" in row
    assert row.endswith("| confirmed | yes |")
    assert "`labels` alone, on the 1 that it fits: confirmed on 1." in text
    assert "> 5,000, > 5,000" in text


def test_sizes_are_those_asked_for() -> None:
    from tpsprune import recipe

    read = recipe.read("modular-addition")
    assert setup(read, None, None).size == Size(pilot_seeds=1, seeds=5)
    assert setup(read, 7, None, full=True).size == Size(pilot_seeds=3, seeds=7)
    assert {arm.name for arm in setup(read, None, None, full=True).tasks[0][1].arms} >= {"none", "grokfast"}


def test_text_held_out_is_text_not_trained_on() -> None:
    from tpsprune.studies.text import windows

    found = windows(length=8, items=500, seed=1)
    assert found["train"][0].shape == (500, 8)
    assert found["validation"][0].shape == (50, 8)
    whole = windows(length=8, items=10**6, seed=1)
    assert len(whole["train"][0]) > 300_000
    again = windows(length=8, items=500, seed=1)
    assert (found["train"][0] == again["train"][0]).all()
    assert (
        found["classes"]
        == found["vocabulary"]
        == int(max(whole["train"][0].max(), whole["train"][1].max())) + 1
    )


def test_a_model_names_the_units_that_moments_couples() -> None:
    from tpsprune.models.architectures import Mlp, TokenMlp, Transformer
    from tpsprune.tps.unit_layers import fitting_unit_layers

    torch.manual_seed(0)
    named = {
        "hidden.0": (Mlp(4, (8,), 2), torch.ones(3, 4)),
        "hidden.0.gate * hidden.0.up": (TokenMlp(5, 2, 4, (8,), 5, gated=True), torch.ones(3, 2).long()),
        "mlp_in": (Transformer(5, 8, 2, 16, 5, layers=2), torch.ones(3, 2).long()),
    }
    for name, (model, probe) in named.items():
        assert [layer.name for layer in fitting_unit_layers(model, (), probe)] == [name]
