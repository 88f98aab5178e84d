"""What a bundle may ask for: its model is counted, and compared with its tensors, before it takes memory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tpsprune
from tests.export import bundles
from tpsprune import models
from tpsprune.errors import ArtifactError
from tpsprune.recipe.task import Model, TorchvisionModel, TransformersModel
from tpsprune.records import TaskFacts, dump

IMAGES = TaskFacts(input_kind="image", input_shape=(3, 32, 32), classes=10)
TOKENS = TaskFacts(input_kind="tokens", input_shape=(8,), classes=64, vocabulary=64, loss="next-token")
GPT = "n_embd = {}, n_head = 2, n_layer = {}, n_positions = 16, bos_token_id = 1, eos_token_id = 1"
RECIPE = """
name = "theirs"
[task]
loss = "{}"
[task.data]
{}
[task.model]
{}
[train]
epochs = 1
"""
TEXT = 'kind = "text"\nsource = "python-topics"'


def gpt(width: int, layers: int) -> str:
    config = GPT.format(width, layers)
    model = f'kind = "transformers"\narchitecture = "GPT2LMHeadModel"\nconfig = {{ {config} }}'
    return RECIPE.format("next-token", TEXT, model)


def cnn(layers: int) -> str:
    model = f'kind = "cnn"\npool_every = 1000\nwidths = [{", ".join(["1"] * layers)}]'
    return RECIPE.format("cross-entropy", 'kind = "digits"', model)


@pytest.mark.parametrize(
    ("text", "facts", "words"),
    [
        (gpt(12_000, 2), TOKENS, "before pruning it takes more than 536,870,912 bytes"),
        (gpt(4, 100_000), TOKENS, "its layers take more than [0-9,]+ steps to make"),
        (cnn(20_000), IMAGES, "1000 items"),
    ],
    ids=["wide", "deep", "deep and thin"],
)
def test_a_small_bundle_of_a_large_model_is_refused(
    tmp_path: Path, text: str, facts: TaskFacts, words: str
) -> None:
    if "transformers" in text:
        pytest.importorskip("transformers", reason="pip install 'tpsprune[transformers]'")
    folder = bundles.write(tmp_path / "bundle")
    bundles.restamp(folder, "recipe.toml", text.encode())
    bundles.change_manifest(folder, facts=dump(facts))
    with pytest.raises(ArtifactError, match=words):
        tpsprune.load(folder)


CONFIG: dict[str, Any] = {
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


@pytest.mark.parametrize(
    ("library", "model", "facts"),
    [
        ("transformers", TransformersModel(architecture="GPT2LMHeadModel", config=CONFIG), TOKENS),
        ("torchvision", TorchvisionModel(name="regnet_x_400mf"), IMAGES),
    ],
    ids=["transformers", "widths worked out with tensors"],
)
def test_a_model_of_a_library_is_rebuilt_and_compared_before(
    library: str, model: Model, facts: TaskFacts
) -> None:
    pytest.importorskip(
        "transformers" if library == "transformers" else "timm", reason=f"pip install 'tpsprune[{library}]'"
    )
    rebuild = import_module("tpsprune.pipeline.load")._rebuild
    held = models.build(model, facts).state_dict()
    rebuilt = rebuild(model, "theirs", facts, None, held)
    assert all(torch.equal(each, held[name]) for name, each in rebuilt.state_dict().items())
    name = next(name for name in held if name.endswith("weight"))
    with pytest.raises(ArtifactError, match=f"{name} is .* in the file and .* in the model"):
        rebuild(model, "theirs", facts, None, {**held, name: held[name][:1]})
