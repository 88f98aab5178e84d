"""``tpsprune repair`` as typed: another tool's file in, a bundle out, and every word that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import tpsprune
from tpsprune import models, recipe
from tpsprune.data import load
from tpsprune.pruning import PrunedGroup, find_groups
from tpsprune.pruning.surgery import pruned_copy
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import load_tensors, save_tensors

Invoke = Callable[..., Result]


@pytest.fixture
def cut(invoke: Invoke, trained: RunFolder) -> Path:
    """The trained model without every third unit, as another tool might leave it."""
    read = recipe.read("small.toml")
    dataset = load(read.task.data)
    model = models.build(read.task.model, dataset.facts)
    model.load_state_dict(load_tensors(trained.dense)[0])
    batch = dataset.prepare(dataset.train.inputs[:2])
    groups = find_groups(model, batch).groups
    kept = [PrunedGroup.of(each, [unit for unit in range(each.width) if unit % 3]) for each in groups]
    save_tensors(Path("pruned.safetensors"), pruned_copy(model, kept).state_dict(), {})
    return Path("pruned.safetensors")


def repair(invoke: Invoke, trained: RunFolder, *words: str) -> Result:
    own = (
        "--like",
        str(trained.path),
        "--to",
        "repaired",
        "--device",
        "cpu",
        "--set",
        "prune.repair_steps=4",
    )
    return invoke("repair", "small.toml", *own, *words)


def test_a_cut_model_is_fitted_and_written_as_a_bundle(invoke: Invoke, trained: RunFolder, cut: Path) -> None:
    result = repair(invoke, trained, str(cut))
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    for words in ("as it was pruned", "fitted to the dense model", "the pruned model's outputs err by"):
        assert words in " ".join(result.output.split())
    ticket = tpsprune.load("repaired")
    shapes = {name: value.shape for name, value in ticket.state_dict().items()}
    for name, value in load_tensors(cut)[0].items():
        assert shapes[name] == value.shape, name


def test_programs_get_the_figures(invoke: Invoke, trained: RunFolder, cut: Path) -> None:
    result = repair(invoke, trained, str(cut), "--json")
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["event"] == "repaired"
    assert last["ticket"] >= last["pruned"]
    assert 0.0 < last["macs_share"] < 1.0


def test_what_cannot_be_is_one_message_and_no_folder(invoke: Invoke, trained: RunFolder, cut: Path) -> None:
    for words, message in (
        ((str(trained.path / "dense.safetensors"),), "there is nothing to fit"),
        (("nowhere.safetensors",), "nowhere.safetensors"),
        ((str(cut), "--like", "nowhere"), "nowhere"),
    ):
        result = repair(invoke, trained, *words)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert message in " ".join(result.output.split())
        assert not Path("repaired").exists()
