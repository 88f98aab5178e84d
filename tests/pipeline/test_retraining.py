"""Retraining with a teacher and with few parameters: whose outputs teach, what trains, what is left."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.conftest import SMALL, Events, folder_of, make_small, outcome_of
from tests.pipeline.own_tasks import TASK, text_recipe
from tpsprune import pipeline, training
from tpsprune import recipe as recipe_reader
from tpsprune.errors import RecipeError
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.pipeline.state import load_checkpoint
from tpsprune.recipe import Recipe
from tpsprune.records import Note, Progress, Reading
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import load_tensors
from tpsprune.training import Teacher

ticket_file = import_module("tpsprune.pipeline.ticket")
TAUGHT = "retrain.teacher=dense"


def run(recipe: Recipe, out: Path) -> Events:
    return list(pipeline.train(recipe, out, device="cpu"))


def weights(folder: RunFolder) -> bytes:
    return folder.ticket.read_bytes()


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[Teacher]:
    """Return the teachers of every training that begins."""
    found: list[Teacher] = []
    fit = training.fit

    def spy(*args: Any, **options: Any) -> Any:
        found.extend([options["teacher"]] if options.get("teacher") else [])
        return fit(*args, **options)

    monkeypatch.setattr(training, "fit", spy)
    return found


@pytest.mark.parametrize("is_text", [False, True], ids=["digits", "dropout"])
def test_a_teacher_of_no_share_leaves_every_bit_and_no_other_window(is_text: bool, tmp_path: Path) -> None:
    text = text_recipe(tmp_path) if is_text else SMALL
    few = ("train.epochs=3", "stop.draw.epoch=1.0")
    plain, none, taught = (
        run(recipe_reader.parse(text, "r.toml", (*few, *more)), tmp_path / str(number))
        for number, more in enumerate(((), (TAUGHT, "retrain.teacher_share=0.0"), (TAUGHT,)))
    )
    assert weights(folder_of(plain)) == weights(folder_of(none)) != weights(folder_of(taught))
    assert outcome_of(plain).energy.keys() == outcome_of(none).energy.keys()


@pytest.mark.parametrize("rewind", ["none", "init"])
def test_the_teacher_is_the_dense_model_as_drawn_evaluating_and_is_charged_to_the_retraining(
    rewind: str, teachers: list[Teacher], tmp_path: Path
) -> None:
    events = run(make_small(TAUGHT, f"retrain.rewind={rewind}", "retrain.teacher_share=0.25"), tmp_path)
    folder = folder_of(events)
    (teacher,) = teachers
    assert (teacher.share, teacher.temperature) == (0.25, 2.0)
    dense, _ = load_tensors(folder.dense)
    assert dense.keys() == teacher.model.state_dict().keys()
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, dense[name]), name
    assert not any(each.training for each in teacher.model.modules())
    phases = [window["phase"] for window in folder.energy.read()[0]]
    assert set(phases[phases.index("retrain") :]) <= {"retrain", "watch", "evaluate", "benchmark"}


def test_every_round_has_the_first_dense_model_for_a_teacher_and_cuts_a_ticket_that_all_trains(
    teachers: list[Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    draw = ticket_file.draw_ticket

    def spy(bench: Any, ledger: Any, model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        held.extend(not each.requires_grad for each in model.parameters())
        return draw(bench, ledger, model, *args, **options)

    monkeypatch.setattr(ticket_file, "draw_ticket", spy)
    rounds = ("prune.rounds=2", "prune.target.macs=0.4", "retrain.adapter=lora")
    events = run(make_small(TAUGHT, *rounds), tmp_path)
    assert held
    assert not any(held)
    assert len(teachers) == 2
    count = outcome_of(events).dense.parameters
    assert [sum(each.numel() for each in teacher.model.parameters()) for teacher in teachers] == [count] * 2


@pytest.mark.parametrize("adapter", ["head", "lora", "singlora"])
def test_an_adapted_ticket_is_plain_saves_loads_and_exports_as_usual(adapter: str, tmp_path: Path) -> None:
    recipe = make_small(f"retrain.adapter={adapter}", "retrain.adapter_rank=2")
    events = run(recipe, tmp_path / "runs")
    folder, outcome = folder_of(events), outcome_of(events)
    (note,) = [each.text for each in events if isinstance(each, Note)]
    assert f"numbers train in the place of {outcome.ticket.parameters:,}" in note
    tensors, _ = load_tensors(folder.ticket)
    plain = folder_of(run(make_small(), tmp_path / "plain"))
    assert [*tensors] == [*load_tensors(plain.ticket)[0]]
    dense, _ = load_tensors(folder.dense)
    first = next(name for name in tensors if name.endswith("weight"))
    assert tensors[first].shape[0] < dense[first].shape[0]
    exported = pipeline.export(folder.path, tmp_path / "bundle", ["safetensors", "torch-export"])
    assert all(each.largest_difference < 1e-5 for each in exported.compared)
    loaded = pipeline.load(tmp_path / "bundle")
    assert all(each.requires_grad for each in loaded.parameters())
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    assert not checkpoint.has_adapter


def test_what_an_adapter_does_not_train_is_as_it_was_cut(tmp_path: Path, monkeypatch: Any) -> None:
    cut: dict[str, torch.Tensor] = {}
    begin = ticket_file._begin_training

    def spy(bench: Any, state: Any, ticket: Any, moments: Any) -> Any:
        cut.update({name: each.clone() for name, each in ticket.state_dict().items()})
        return begin(bench, state, ticket, moments)

    monkeypatch.setattr(ticket_file, "_begin_training", spy)
    folder = folder_of(run(make_small("retrain.adapter=head"), tmp_path))
    left, _ = load_tensors(folder.ticket)
    changed = {name for name, tensor in left.items() if not torch.equal(tensor, cut[name])}
    assert len(changed) == 2, "weight and bias of the last layer, and no batch norm's statistics"


def test_the_optimiser_of_an_adapter_holds_its_numbers_alone_and_signals_go_on(tmp_path: Path) -> None:
    sizes: set[int] = set()
    for event in pipeline.train(make_small("retrain.adapter=singlora"), tmp_path, device="cpu"):
        (path,) = tmp_path.iterdir()
        if isinstance(event, Note):
            sizes.add(int(event.text.split()[0]))
        if isinstance(event, Progress) and event.read and sizes:
            tensors, _ = load_tensors(RunFolder(path).state / "checkpoint.safetensors")
            if any(name.startswith("adapter:") for name in tensors):
                sizes.add(sum(each.numel() for name, each in tensors.items() if name.endswith("/exp_avg")))
                sizes.add(sum(each.numel() for name, each in tensors.items() if name.endswith("a_xr")))
    assert len(sizes) == 1, "as many in each moment as in the factors"
    readings = RunFolder(path).readings.parsed(Reading)
    last = max(each.step for each in readings)
    assert {"d_eff", "norm"} <= {each.signal for each in readings if each.step == last}


def test_tps_ends_with_the_draw_where_an_adapter_trains(tmp_path: Path) -> None:
    events = run(make_small("tps.variant=neurons", "retrain.adapter=lora"), tmp_path)
    readings = folder_of(events).readings.parsed(Reading)
    drawn = outcome_of(events).drawn.step
    steps = {each.step for each in readings if each.signal == "tps_energy"}
    assert steps
    assert max(steps) <= drawn < max(each.step for each in readings)


def test_nothing_trains_and_nothing_is_adapted_where_no_retraining_is_asked_for(tmp_path: Path) -> None:
    asked = ("retrain.epochs=0", "retrain.adapter=singlora", TAUGHT)
    events = run(make_small(*asked), tmp_path / "a")
    plain = run(make_small("retrain.epochs=0"), tmp_path / "b")
    assert weights(folder_of(events)) == weights(folder_of(plain))


@pytest.mark.parametrize("start", [pipeline.check, lambda recipe: next(pipeline.train(recipe, Path("x")))])
def test_a_model_with_nothing_to_adapt_is_refused_before_it_runs(
    start: Callable[[Recipe], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = TASK.format(
        loss="cross-entropy",
        data='kind = "digits"',
        model='kind = "custom"\nfactory = "tests.pipeline.test_retraining:only_convolutions"',
    )
    with pytest.raises(RecipeError, match=r"retrain.adapter: 'head' has nothing to train here"):
        start(recipe_reader.parse(text, "r.toml", ("retrain.adapter=head",)))
    assert not (tmp_path / "x").exists()


def only_convolutions() -> torch.nn.Module:
    """Return a net without a linear layer."""
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 6), nn.Flatten())


def test_the_published_rival_is_retrained_as_published() -> None:
    recipe = make_small(TAUGHT, "retrain.adapter=lora")
    rival = arm_recipe("early-bird", recipe).retrain
    assert (rival.teacher, rival.adapter) == ("none", "none")
    assert arm_recipe("random-ticket", recipe).retrain == recipe.retrain
