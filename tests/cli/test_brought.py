"""Models of other libraries, from the recipe to the ticket."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Invoke = Callable[..., Result]

RECIPE = """
name = "brought"
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
probe_items = 32
[stop.draw]
rule = "epoch"
epoch = 0.5
[prune]
target = {{ macs = 0.8 }}
probe_items = 64
[energy]
meter = "fake"
"""
BRACKETS = """kind = "custom"
factory = "tpsprune_studies.tasks:brackets"
data_args = { length = 10, items = 128, held_out = 60 }"""
SMALL = "hidden_size = 24, num_hidden_layers = 1, num_attention_heads = 3, intermediate_size = 32"
BROUGHT = {
    "timm": (
        'kind = "digits"',
        'kind = "timm"\nname = "vit_tiny_patch16_224"\n'
        "model_args = { patch_size = 4, embed_dim = 24, depth = 1, num_heads = 3 }",
        {"num_classes": 10, "in_chans": 1, "img_size": 8},
    ),
    "transformers": (
        BRACKETS,
        f'kind = "transformers"\narchitecture = "BertForSequenceClassification"\nconfig = {{ {SMALL} }}',
        {"vocab_size": 2, "use_cache": False},
    ),
}


@pytest.mark.parametrize("library", BROUGHT)
def test_it_is_checked_trained_cut_and_exported(invoke: Invoke, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"the model is of {library}, which is not installed")
    data, model, from_data = BROUGHT[library]
    Path("brought.toml").write_text(RECIPE.format(data=data, model=model))
    checked = invoke("check", "brought.toml", "--json", "--device", "cpu")
    assert checked.exit_code == 0, checked.output
    found = json.loads(checked.output)
    assert found["from_data"].items() >= from_data.items()
    assert {"heads", "units"} <= {group["kind"] for group in found["groups"]}
    trained = invoke("train", "brought.toml", "--device", "cpu", "--quiet")
    assert trained.exit_code == 0, trained.output
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "result.json").read_text())["ticket"]["macs"] <= 0.8 * found["macs"] + 1
    exported = invoke("export", str(run), "--to", "ticket")
    assert exported.exit_code == 0, exported.output
    card = Path("ticket/README.md").read_text()
    assert f"built by {library}: `pip install 'tpsprune[{library}]'`" in card
    told: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0].replace("FOLDER", "ticket"), told)  # noqa: S102
    assert told["scores"].shape == (2, found["task"]["classes"])
