"""``check``: every layer, what pruning does to it, and the widths that the target would give."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from tpsprune.runs import RunFolder

Invoke = Callable[..., Result]


def test_the_tables_fit_eighty_columns_and_name_every_layer(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke("check", "small.toml", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    shown = " ".join(result.output.split())
    for words in (
        "Every layer",
        "blocks.1.norm",
        "produces blocks.0.conv",
        "it is the model's output",
        "weights drawn anew, untrained",
        "a trained model (--weights F) would keep other widths",
    ):
        assert words in shown, words


def test_the_object_holds_every_layer_with_its_share_and_widths(invoke: Invoke, trained: RunFolder) -> None:
    result = invoke("check", "small.toml", "--json", "--device", "cpu", "--weights", str(trained.path))
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["trained"] is True
    assert found["weights"].startswith("weights given: dense.safetensors (SHA-256 ")
    assert 0 < found["cost_share"] <= 0.5
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert set(layers) == {f"blocks.{n}.{part}" for n in (0, 1) for part in ("conv", "norm")} | {"head"}
    assert sum(layer["macs"] for layer in layers.values()) == found["macs"]
    assert sum(layer["parameters"] for layer in layers.values()) == found["parameters"]
    assert (layers["blocks.0.norm"]["fate"], layers["blocks.0.norm"]["groups"]) == (
        "follows",
        ["blocks.0.conv"],
    )
    assert layers["head"]["reason"] == "it is the model's output"
    assert all(0 < group["width_after"] <= group["width"] for group in found["groups"])
    assert any(group["width_after"] < group["width"] for group in found["groups"])


def test_of_every_layer_it_is_told_what_it_reads(invoke: Invoke) -> None:
    result = invoke("check", "small.toml", "--no-widths", "--device", "cpu")
    assert "keeps its units: it is the model's output; consumes blocks.1.conv" in " ".join(
        result.output.split()
    )


def test_widths_may_be_left_out(invoke: Invoke) -> None:
    result = invoke("check", "small.toml", "--no-widths", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "not planned (--no-widths)" in result.output
    assert " kept)" not in result.output


def test_weights_that_do_not_fit_are_refused(invoke: Invoke, trained: RunFolder) -> None:
    result = invoke(
        "check", "small.toml", "--weights", str(trained.path), "--set", "task.model.widths=[12, 18]"
    )
    assert result.exit_code == 2, result.output
    assert "does not fit" in result.output
    assert "Traceback" not in result.output


def test_rounds_are_foreseen_as_one_cut_and_said_to_be(invoke: Invoke) -> None:
    result = invoke("check", "small.toml", "--set", "prune.rounds=2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "in one round (the recipe takes 2)" in " ".join(result.output.split())
