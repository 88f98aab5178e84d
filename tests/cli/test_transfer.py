"""``tpsprune transfer`` as typed: a run in, a bundle for a new task out, and every word that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

import tpsprune
from tpsprune import recipe
from tpsprune.data import load
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import load_tensors, save_tensors

Invoke = Callable[..., Result]


def transfer(invoke: Invoke, source: Path, *words: str) -> Result:
    return invoke("transfer", "small.toml", "--from", str(source), "--to", "new", "--device", "cpu", *words)


def test_the_encoder_stays_as_it_was_trained_and_the_bundle_loads(invoke: Invoke, trained: RunFolder) -> None:
    result = transfer(invoke, trained.path, "--no-cut", "--set", "seed=5", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    for words in (
        "the last linear layer (48 steps)",
        "frozen encoder",
        "features",
        "head",
        "170 were trained",
    ):
        assert words in " ".join(result.output.split()), result.output
    new, old = tpsprune.load("new").state_dict(), load_tensors(trained.dense)[0]
    moved = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_cut_is_made_for_the_new_task_and_programs_get_the_figures(
    invoke: Invoke, trained: RunFolder
) -> None:
    result = transfer(invoke, trained.path, "--target", "macs=0.5", "--json")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    last = events[-1]
    assert last["event"] == "transferred"
    assert last["macs_share"] <= 0.5
    assert set(last["parts"]) == {"features", "head", "cut"}
    assert last["ticket"] > 0.3
    # The head is trained before the cut, and again.
    phases = [each["phase"] for each in events if each["event"] == "phasestarted"]
    assert phases == ["train", "train"]
    ticket = tpsprune.load("new")
    read = recipe.read("small.toml")
    dataset = load(read.task.data)
    with torch.no_grad():
        right = ticket(dataset.prepare(dataset.test.inputs)).argmax(1) == dataset.test.labels
    assert right.float().mean().item() == pytest.approx(last["ticket"], abs=1e-6)


def test_a_ticket_is_taken_and_cut_further_as_one_plan(invoke: Invoke, trained: RunFolder) -> None:
    assert transfer(invoke, trained.path, "--target", "macs=0.6").exit_code == 0
    Path("new").rename("first")
    for words, share in ((("--no-cut",), 0.6), (("--target", "macs=0.6"), 0.4)):
        result = transfer(invoke, Path("first"), "--json", *words)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["macs_share"] <= share
        tpsprune.load("new")
        Path("new").rename(f"again {share}")


def test_another_number_of_classes_is_no_misfit(invoke: Invoke, trained: RunFolder) -> None:
    tensors = load_tensors(trained.dense)[0]
    tensors["head.weight"], tensors["head.bias"] = torch.zeros(4, 16), torch.zeros(4)
    save_tensors(Path("four.safetensors"), {f"module.{name}": each for name, each in tensors.items()}, {})
    result = transfer(invoke, Path("four.safetensors"), "--no-cut")
    assert result.exit_code == 0, result.output
    new = tpsprune.load("new").state_dict()
    assert new["head.weight"].shape == (10, 16)
    assert torch.equal(new["blocks.0.conv.weight"], tensors["blocks.0.conv.weight"])


def test_what_cannot_be_is_one_message_and_no_folder(invoke: Invoke, trained: RunFolder) -> None:
    wider = "task.model={kind='cnn', widths=[12, 20]}"
    for words, message in (
        (("--set", wider), "blocks.1.conv.weight is [16, 12, 3, 3]"),
        (
            ("--set", "task.loss=torch.nn.functional:cross_entropy"),
            "a new last layer needs a task of classes and 'cross-entropy'",
        ),
        (("--no-cut", "--target", "macs=0.5"), "choose one of them"),
        (("--target", "macs=2"), "a share above 0 and below 1 is needed"),
        (("--epochs", "0"), "train.epochs: must be greater than 0"),
        (("--to", "small.toml"), "small.toml"),
    ):
        result = transfer(invoke, trained.path, *words)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert message in " ".join(result.output.split())
        assert not Path("new").exists()
    result = transfer(invoke, Path("nowhere"))
    assert result.exit_code == 2
    assert "--from nowhere" in result.output
