"""``check`` on the structured tasks and on what else than the plain models a recipe can name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tpsprune import recipe

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
probe_items = 64
[stop.draw]
rule = "epoch"
epoch = 1.0
[prune]
probe_items = 64
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
def test_it_trains_is_cut_and_trains_on(invoke: Invoke, name: str) -> None:
    data, model, _ = KINDS[name]
    Path("kind.toml").write_text(STRUCTURED.format(data=data, model=model))
    result = invoke("train", "kind.toml", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.output.splitlines()[-1])
    assert outcome["ticket"]["macs"] <= outcome["dense"]["macs"] / 2
