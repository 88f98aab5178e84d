"""A model that begins with somebody's weights: trained on, cut, exported, and loaded without their file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import tpsprune
from tests.pipeline.conftest import Events, folder_of, make_small, outcome_of
from tpsprune import models, pipeline, recipe
from tpsprune.errors import ArtifactError, RecipeError, RunFolderError
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import CustomModel
from tpsprune.records import Note, RunResult, TaskFacts
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import load_tensors, save_tensors, sha256_of

FACTORY = "tpsprune.models.architectures:Cnn"
MODEL = (
    f"task.model={{kind='custom', factory='{FACTORY}', weights='w.safetensors', "
    "model_args={image_shape=[1, 8, 8], widths=[12, 16], pool_every=1, classes=10}}"
)


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunFolder) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.dense, "w.safetensors")


def begun(*overrides: str) -> Recipe:
    return make_small(MODEL, "train.epochs=1", "stop.draw.epoch=0.5", *overrides)


def trained_on(read: Recipe) -> tuple[Events, RunFolder]:
    events = list(pipeline.train(read, Path("runs"), device="cpu"))
    return events, folder_of(events)


def pruned(read: Recipe, weights: Path | None) -> RunResult:
    return outcome_of(list(pipeline.prune(read, weights, Path("runs"), device="cpu")))


def words() -> str:
    return f"weights given: w.safetensors (SHA-256 {sha256_of(Path('w.safetensors'))[:12]})"


def test_training_begins_with_the_weights_and_reports_them() -> None:
    events, folder = trained_on(begun("train.learning_rate=1e-12", "train.weight_decay=0.0"))
    assert Note(words()) in events
    assert outcome_of(events).notes[0] == f"the training began with {words()}"
    pretrained, dense = load_tensors(Path("w.safetensors"))[0], load_tensors(folder.dense)[0]
    learned = [name for name in pretrained if name.endswith("weight") and "norm" not in name]
    assert learned
    assert all(torch.allclose(pretrained[name], dense[name], atol=1e-6) for name in learned)


def test_other_weights_are_another_run_and_an_exported_ticket_needs_no_file() -> None:
    _, first = trained_on(begun())
    tensors, _ = load_tensors(Path("w.safetensors"))
    save_tensors(Path("w.safetensors"), {name: 2 * tensor for name, tensor in tensors.items()}, {})
    _, second = trained_on(begun())
    assert first.path.name != second.path.name
    with pytest.raises(RunFolderError, match="finished"):
        list(pipeline.train(begun(), Path("runs"), device="cpu", resume=True))
    pipeline.export(first.path, Path("ticket"), trust_code=True)
    Path("w.safetensors").unlink()
    loaded = tpsprune.load("ticket", trust_code=True)
    assert loaded(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ArtifactError, match=r"^task.model.weights: w.safetensors is not there$"):
        list(pipeline.train(begun("seed=9"), Path("runs"), device="cpu"))


def test_weights_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    read = begun("task.model.model_args.widths=[12, 18]")
    with pytest.raises(ArtifactError, match=r"^task.model.weights: w.safetensors does not fit: .*\[18"):
        list(pipeline.train(read, Path("runs"), device="cpu"))
    assert not Path("runs").exists()


def test_a_prune_takes_the_weights_of_the_recipe_and_check_plans_its_widths(trained: RunFolder) -> None:
    ours, theirs = pruned(begun(), None), pruned(make_small(), trained.dense)
    assert ours.drawn.reason == words()
    assert ours.ticket.accuracy == theirs.ticket.accuracy
    assert ours.notes == theirs.notes
    initial = pipeline.check(make_small(), "cpu")
    pretrained = pipeline.check(make_small(), "cpu", weights=trained.dense)
    owned = pipeline.check(begun(), "cpu")
    assert (initial.trained, pretrained.trained, owned.trained) == (False, True, True)
    assert initial.weights == "initial weights, untrained"
    assert pretrained.weights == f"weights given: dense.safetensors (SHA-256 {sha256_of(trained.dense)[:12]})"
    assert owned.weights == words()
    widths = [[group.width_after for group in found.groups] for found in (ours, theirs, pretrained, owned)]
    assert widths == [widths[0]] * 4
    assert all(
        each.cost_share is not None and each.cost_share <= 0.5 for each in (initial, pretrained, owned)
    )


def test_weights_of_the_option_take_the_place_of_the_recipes(trained: RunFolder) -> None:
    Path("w.safetensors").unlink()
    outcome = pruned(begun(), trained.dense)
    kept = recipe.read(Path(outcome.folder) / "recipe.toml")
    assert isinstance(kept.task.model, CustomModel)
    assert kept.task.model.weights is None


def test_a_prune_without_any_weights_is_refused() -> None:
    wanted = r"a trained model is needed: --weights FILE gives one, or task.model.weights in the recipe"
    with pytest.raises(RecipeError, match=wanted):
        pruned(make_small(), None)


def test_a_shape_trained_from_scratch_begins_with_no_weights() -> None:
    for arm in ("shape-scratch", "dense", "ticket"):
        model = arm_recipe(arm, begun()).task.model
        assert isinstance(model, CustomModel)
        assert (model.weights is None) == (arm == "shape-scratch")


def test_check_may_leave_the_widths_out() -> None:
    found = pipeline.check(make_small(), "cpu", widths=False)
    assert found.cost_share is None
    assert all(group.width_after is None for group in found.groups)
    assert found.layers


def test_the_model_is_filled_in_place_of_what_the_seed_drew() -> None:
    facts = TaskFacts(input_kind="image", input_shape=(1, 8, 8), classes=10)
    first, second = (models.build(begun(f"seed={seed}").task.model, facts) for seed in (0, 1))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
