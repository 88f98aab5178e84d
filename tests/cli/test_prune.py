"""``tpsprune prune`` as typed: what is shown, what is written, and every word that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from tpsprune.runs import RunFolder, read_json
from tpsprune.runs.tensors import load_tensors, save_tensors

Invoke = Callable[..., Result]


def prune(invoke: Invoke, trained: RunFolder, *words: str) -> Result:
    return invoke("prune", "small.toml", "--weights", str(trained.path), "--device", "cpu", *words)


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    shown = " ".join(result.output.replace("│", " ").split())
    for word in words:
        assert word in shown, shown
    assert not Path("runs").exists()


def test_a_trained_model_is_pruned_and_the_ticket_exported(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    result = prune(invoke, trained, "--target", "macs=0.4")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines() if "runs" not in line)
    for words in (
        "Weights given: dense.safetensors (SHA-256 ",
        "left alone head: it is the model's output",
        "dense, as given",
        "End at epoch ",
        "no retraining was requested",
        "What the training of the dense model cost is not known here.",
    ):
        assert words in " ".join(result.output.split()), words
    assert "dense to the end" not in result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_json(folder / "plan.json")["target"] == "macs=0.4"
    assert json.loads((folder / "result.json").read_text())["macs_share"] <= 0.4
    shown = invoke("show", str(folder))
    assert shown.exit_code == 0
    assert "Weights given: dense.safetensors" in shown.output
    assert "at draw" not in shown.output, "nothing was trained, so there are no signals"
    beside = invoke("show", str(folder), str(trained.path))
    assert beside.exit_code == 0
    assert beside.output.splitlines()[:2] == [f"A  {folder.name}, seed 0", f"B  {trained.path.name}, seed 0"]
    assert "validation_loss" in beside.output
    both = invoke("show", str(folder), str(trained.path), "--json")
    assert both.exit_code == 2
    assert "--json is for one run" in both.output
    drawn = invoke("show", str(folder), str(trained.path), "--picture")
    assert drawn.exit_code == 0, drawn.output
    for ending in ("svg", "png"):
        assert (folder / f"beside-{trained.path.name}.{ending}").stat().st_size > 10_000
    exported = invoke("export", str(folder), "--to", "ticket")
    assert exported.exit_code == 0, exported.output


def test_a_dry_run_shows_widths_and_loss_and_writes_nothing(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = prune(invoke, trained, "--target", "params=0.5", "--dry-run")
    assert result.exit_code == 0, result.output
    for words in ("residual", "residual", "MACs kept", "output error on the calibration data", "right after"):
        assert words in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_json_is_one_object_per_line_and_the_last_is_the_result(invoke: Invoke, trained: RunFolder) -> None:
    lines = [json.loads(line) for line in prune(invoke, trained, "--json").output.splitlines()]
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["projected_dense"] is None
    assert next(line for line in lines if line["event"] == "pruned")["output_error"] > 0


def test_widths_may_be_text_or_as_a_file(invoke: Invoke, trained: RunFolder, tmp_path: Path) -> None:
    wanted = {"blocks.0.conv": 5, "blocks.1.conv": 7}
    (tmp_path / "widths.json").write_text(json.dumps(wanted))
    plans = []
    for out, words in (("a", "blocks.0.conv=5,blocks.1.conv=7"), ("b", "widths.json")):
        result = prune(invoke, trained, "--target", f"widths={words}", "--out", out, "--quiet")
        assert result.exit_code == 0, result.output
        (folder,) = (tmp_path / out).iterdir()
        plans.append(read_json(folder / "plan.json")["groups"])
    assert {group["name"]: len(group["kept"]) for group in plans[0]} == wanted
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("macs=0", "macs=0: a share above 0 and below 1 is needed"),
        ("macs=1", "macs=1: a share above 0 and below 1 is needed"),
        ("params=1.5", "params=1.5: a share above 0 and below 1 is needed"),
        ("latency=nan", "latency=nan: a share above 0 and below 1 is needed"),
        ("tolerance=-0.1", "tolerance=-0.1: a share above 0 and below 1 is needed"),
        ("macs=half", "macs=half: a number above 0 and below 1 is needed"),
        ("macs=", "macs=: a number above 0 and below 1 is needed"),
        ("mac=0.5", "'mac=0.5' is no target (did you mean 'macs'?)"),
        ("0.5", "'0.5' is no target: use macs=0.5, params=0.5"),
        ("widths=", "widths names no group"),
        ("widths=conv1", "'conv1' is not GROUP=UNITS"),
        ("widths=conv1=many", "'conv1=many' is not GROUP=UNITS"),
        ("widths=none.json", "widths=none.json: the file is not there"),
        ("widths=list.json", "an object of units by group is needed"),
        ("widths=broken.json", "widths=broken.json: cannot be read as JSON"),
        ("widths=conv1=0", "conv1"),
    ],
)
def test_a_target_that_is_none_is_reported_in_one_message(
    invoke: Invoke, trained: RunFolder, tmp_path: Path, target: str, words: str
) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    assert_refused(prune(invoke, trained, "--target", target), words)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--resume", "--again"), "choose one of them"),
        (("--quiet", "--json"), "choose one of them"),
        (("--dry-run", "--again"), "--dry-run writes nothing"),
        (("--set", "prune.ignored_layers=['nothing*']"), "nothing*"),
        (("--set", "retrain.rewind=init"), "retrain.rewind: 'init' needs the training"),
        (("--set", "prune.targets=1"), "prune.targets: unknown key (did you mean 'target'?)"),
        (("--target", "macs=0.0001"), "macs"),
        (("--resume",), "no run of this recipe in runs"),
    ],
)
def test_options_that_cannot_be_are_reported_before_anything_is_written(
    invoke: Invoke, trained: RunFolder, words: tuple[str, ...], fault: str
) -> None:
    assert_refused(prune(invoke, trained, *words), fault)


def test_weights_are_required(invoke: Invoke) -> None:
    words = "a trained model is needed: --weights FILE gives one, or task.model.weights in the recipe"
    assert_refused(invoke("prune", "small.toml"), words)


def test_weights_of_another_model_are_reported_by_the_first_tensor(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    tensors, _ = load_tensors(trained.dense)
    wide = {**tensors, "blocks.0.conv.weight": torch.zeros(13, 1, 3, 3)}
    save_tensors(tmp_path / "wide.safetensors", wide, {})
    assert_refused(
        invoke("prune", "small.toml", "--weights", "wide.safetensors"),
        "blocks.0.conv.weight is [13, 1, 3, 3] in the file and [12, 1, 3, 3] in the recipe's model",
    )


def test_weights_that_are_not_finite_are_refused_whole(
    invoke: Invoke, trained: RunFolder, tmp_path: Path
) -> None:
    tensors, _ = load_tensors(trained.dense)
    nothing = {name: tensor * float("nan") for name, tensor in tensors.items() if tensor.is_floating_point()}
    torch.save(nothing, tmp_path / "nan.pt")
    result = invoke("prune", "small.toml", "--weights", "nan.pt", "--device", "cpu")
    assert result.exit_code == 2
    assert "not finite" in " ".join(result.output.replace("│", " ").split())
