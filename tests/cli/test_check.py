"""``tpsprune check``: every kind of data and model, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tpsprune import recipe
from tpsprune.runs import RunFolder

Invoke = Callable[..., Result]

STRUCTURED = """
name = "structured"
[task.data]
{data}
[task.model]
{model}
[train]
epochs = 2
batch_size = 64
threads = 1
[watch]
signals = ["d_eff", "norm", "condensation"]
every_epochs = 1
calibration_items = 64
[stop.draw]
rule = "epoch"
epoch = 1.0
[prune]
calibration_items = 64
[energy]
meter = "fake"
"""
MODULAR = 'kind = "modular"\nmodulus = 13'
TRANSFORMER = 'kind = "transformer"\nwidth = 16\nheads = 2\nmlp_width = 24'
MLP = 'kind = "mlp"\nwidths = [24]\nembedding = 8'
OF_STUDIES = 'kind = "custom"\nfactory = "tpsprune_studies.tasks:{}"\ndata_args = {{ {} }}'
PERMUTATIONS = OF_STUDIES.format("permutations", "degree = 4")
PARITY = OF_STUDIES.format("parity", "bits = 10, items = 200, held_out = 100")
BRACKETS = OF_STUDIES.format("brackets", "length = 8, items = 40, held_out = 30")
KINDS = {
    "brackets": (BRACKETS, MLP, ["embedding", "hidden.0"]),
    "brackets in two layers": (
        BRACKETS,
        f"{TRANSFORMER}\nlayers = 2",
        ["embedding", "earlier.0.q", "earlier.0.mlp_in", "q", "mlp_in"],
    ),
    "parity": (PARITY, MLP, ["hidden.0"]),
    "gated parity": (PARITY, f"{MLP}\ngated = true", ["hidden.0.gate"]),
    "permutations": (PERMUTATIONS, MLP, ["embedding", "hidden.0"]),
    "gated": (MODULAR, f"{MLP}\ngated = true", ["embedding", "hidden.0.gate"]),
    "two layers": (
        MODULAR,
        f"{TRANSFORMER}\nlayers = 2",
        ["embedding", "earlier.0.q", "earlier.0.mlp_in", "q", "mlp_in"],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_check_finds_what_can_be_pruned(invoke: Invoke, name: str) -> None:
    data, model, groups = KINDS[name]
    Path("kind.toml").write_text(STRUCTURED.format(data=data, model=model))
    result = invoke("check", "kind.toml", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [group["name"] for group in json.loads(result.output)["groups"]] == groups


@pytest.mark.parametrize("name", KINDS)
def test_its_resolved_recipe_reads_back(name: str) -> None:
    data, model, _ = KINDS[name]
    read = recipe.parse(STRUCTURED.format(data=data, model=model), "r.toml")
    assert recipe.parse(recipe.dumps(read), "again") == read


@pytest.mark.parametrize("name", ["gated", "parity", "brackets in two layers"])
def test_it_trains_is_pruned_and_trains_on(invoke: Invoke, name: str) -> None:
    data, model, _ = KINDS[name]
    Path("kind.toml").write_text(STRUCTURED.format(data=data, model=model))
    result = invoke("train", "kind.toml", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.output.splitlines()[-1])
    assert outcome["ticket"]["macs"] <= outcome["dense"]["macs"] / 2


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
        "initial weights, untrained",
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


def test_every_layers_inputs_are_listed(invoke: Invoke) -> None:
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


def test_rounds_are_planned_as_one_and_noted(invoke: Invoke) -> None:
    result = invoke("check", "small.toml", "--set", "prune.rounds=2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "in one round (the recipe takes 2)" in " ".join(result.output.split())


RECIPE = """
name = "foreign"
[task.data]
{data}
[task.model]
{model}
[train]
epochs = 1
batch_size = 64
threads = 1
[watch]
signals = ["d_eff", "norm"]
calibration_items = 32
[stop.draw]
rule = "epoch"
epoch = 0.5
[prune]
target = {{ macs = 0.8 }}
calibration_items = 64
[energy]
meter = "fake"
"""
BRACKETS_DATA = OF_STUDIES.format("brackets", "length = 10, items = 128, held_out = 60")
SMALL = "hidden_size = 24, num_hidden_layers = 1, num_attention_heads = 3, intermediate_size = 32"
FOREIGN = {
    "timm": (
        'kind = "digits"',
        'kind = "timm"\nname = "vit_tiny_patch16_224"\n'
        "model_args = { patch_size = 4, embed_dim = 24, depth = 1, num_heads = 3 }",
        {"num_classes": 10, "in_chans": 1, "img_size": 8},
    ),
    "transformers": (
        BRACKETS_DATA,
        f'kind = "transformers"\narchitecture = "BertForSequenceClassification"\nconfig = {{ {SMALL} }}',
        {"vocab_size": 2, "use_cache": False},
    ),
}


@pytest.mark.parametrize("library", FOREIGN)
def test_it_is_checked_trained_pruned_and_exported(invoke: Invoke, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"the model is of {library}, which is not installed")
    data, model, from_data = FOREIGN[library]
    Path("foreign.toml").write_text(RECIPE.format(data=data, model=model))
    checked = invoke("check", "foreign.toml", "--json", "--device", "cpu")
    assert checked.exit_code == 0, checked.output
    found = json.loads(checked.output)
    assert found["from_data"].items() >= from_data.items()
    assert {"heads", "units"} <= {group["kind"] for group in found["groups"]}
    trained = invoke("train", "foreign.toml", "--device", "cpu", "--quiet")
    assert trained.exit_code == 0, trained.output
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "result.json").read_text())["ticket"]["macs"] <= 0.8 * found["macs"] + 1
    exported = invoke("export", str(run), "--to", "ticket")
    assert exported.exit_code == 0, exported.output
    card = Path("ticket/README.md").read_text()
    assert f"built by {library}: `pip install 'tpsprune[{library}]'`" in card
    scope: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("FOLDER", "ticket"), scope)  # noqa: S102
    assert scope["scores"].shape == (2, found["task"]["classes"])
