"""Models of timm, torchvision and transformers: built to fit the data, or refused in words."""

from __future__ import annotations

import builtins
import re
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from tpsprune.errors import ModelError
from tpsprune.models import build, check_fits, from_data
from tpsprune.models.libraries import import_torchvision
from tpsprune.recipe.task import TimmModel, TorchvisionModel, TransformersModel
from tpsprune.records import TaskFacts

GREY = TaskFacts(input_kind="image", input_shape=(1, 16, 16), classes=7)
COLOUR = TaskFacts(input_kind="image", input_shape=(3, 32, 32), classes=10)
WIDE = TaskFacts(input_kind="image", input_shape=(3, 16, 32), classes=10)
TOKENS = TaskFacts(input_kind="tokens", input_shape=(12,), classes=5, vocabulary=50)
VECTORS = TaskFacts(input_kind="vector", input_shape=(12,), classes=3)
SMALL_VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 32,
}
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
needs_torchvision = pytest.mark.skipif(
    find_spec("torchvision") is None, reason="torchvision is not installed"
)
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed"
)


def fits(model: nn.Module, facts: TaskFacts) -> None:
    inputs = (
        torch.randint(0, facts.vocabulary or 1, (4, *facts.input_shape))
        if facts.input_kind == "tokens"
        else torch.randn(4, *facts.input_shape)
    )
    check_fits(model, inputs, torch.tensor([0, 1, 2, 0]), facts.classes)


def resnet(**arguments: Any) -> TimmModel:
    return TimmModel(name="resnet18", model_args=arguments)


@needs_timm
@pytest.mark.parametrize("facts", [GREY, COLOUR, WIDE], ids=["grey", "colour", "wide"])
def test_a_vit_of_timm_takes_classes_channels_and_size_from_the_data(facts: TaskFacts) -> None:
    model = TimmModel(name="vit_tiny_patch16_224", model_args=SMALL_VIT)
    fits(build(model, facts), facts)
    _, height, width = facts.input_shape
    assert from_data(model, facts) == {
        "num_classes": facts.classes,
        "in_chans": facts.input_shape[0],
        "img_size": height if height == width else (height, width),
    }


@needs_timm
def test_a_convolutional_net_of_timm_gets_no_size() -> None:
    model = TimmModel(name="resnet10t")
    assert from_data(model, GREY) == {"num_classes": 7, "in_chans": 1}
    fits(build(model, TaskFacts(input_kind="image", input_shape=(1, 32, 32), classes=7)), GREY)


@needs_timm
def test_what_the_user_sets_is_not_taken_from_the_data() -> None:
    model = TimmModel(name="resnet10t", model_args={"num_classes": 4})
    assert from_data(model, COLOUR) == {"in_chans": 3}
    with pytest.raises(ModelError, match=r"outputs shape \(4, 4\); expected \(4, 10\), one score per item"):
        fits(build(model, COLOUR), COLOUR)


@needs_timm
def test_equal_seeds_build_equal_models() -> None:
    model = TimmModel(name="vit_tiny_patch16_224", model_args=SMALL_VIT)
    first, second = ((torch.manual_seed(3), build(model, GREY))[1].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@needs_timm
@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        (
            TimmModel(name="resnet18x"),
            COLOUR,
            "task.model.name: timm has no 'resnet18x' (did you mean",
        ),
        (TimmModel(name="qqqq"), COLOUR, "task.model.name: timm has no 'qqqq' (it has "),
        (TimmModel(name="hf_hub:timm/resnet18"), COLOUR, "timm has no 'hf_hub:timm/resnet18'"),
        (resnet(pretrained=True), COLOUR, "task.model.model_args.pretrained: nothing is downloaded or read"),
        (TimmModel(name="resnet18"), TOKENS, "timm's models take images, the data are tokens of shape (12,)"),
        (resnet(no_such=3), COLOUR, "'resnet18' does not build with these settings: TypeError"),
    ],
    ids=["near", "far", "hub", "pretrained", "tokens", "argument"],
)
def test_what_timm_cannot_build_is_reported(model: TimmModel, facts: TaskFacts, words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        build(model, facts)


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "arguments", "followed"),
    [
        ("resnet18", {}, {"num_classes": 10}),
        ("mobilenet_v3_small", {}, {"num_classes": 10}),
        ("vit_b_16", {}, {"num_classes": 10, "image_size": 32}),
    ],
)
def test_a_classifier_of_torchvision_is_built_for_the_data(
    name: str, arguments: dict[str, Any], followed: dict[str, Any]
) -> None:
    model = TorchvisionModel(name=name, model_args=arguments)
    assert from_data(model, COLOUR) == followed
    fits(build(model, COLOUR), COLOUR)


@needs_torchvision
@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        (
            TorchvisionModel(name="resnet19"),
            COLOUR,
            "has no 'resnet19' (did you mean 'resnet18'?)",
        ),
        (TorchvisionModel(name="fasterrcnn_resnet50_fpn"), COLOUR, "torchvision has no 'fasterrcnn"),
        (
            TorchvisionModel(name="resnet18"),
            GREY,
            "take images of 3 channels, the data are images of shape (1, 16, 16); kind 'timm' takes",
        ),
        (TorchvisionModel(name="vit_b_16"), WIDE, "'vit_b_16' takes square images, the data are 16×32"),
        (
            TorchvisionModel(name="resnet18", model_args={"weights": "DEFAULT"}),
            COLOUR,
            "task.model.model_args.weights: nothing is downloaded",
        ),
    ],
    ids=["near", "detector", "grey", "wide", "weights"],
)
def test_what_torchvision_cannot_build_is_reported(
    model: TorchvisionModel, facts: TaskFacts, words: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        build(model, facts)


@needs_torchvision
def test_torchvision_is_imported_once_and_its_models_run() -> None:
    first = import_torchvision()
    assert import_torchvision() is first
    assert sys.modules["torchvision"] is first
    net = first.models.get_model("squeezenet1_1", num_classes=3).eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@needs_transformers
@pytest.mark.parametrize(
    "architecture", ["BertForSequenceClassification", "DistilBertForSequenceClassification"]
)
def test_a_classifier_of_tokens_takes_vocabulary_and_classes_from_the_data(architecture: str) -> None:
    config = (
        SMALL
        if architecture.startswith("Bert")
        else {"dim": 24, "n_layers": 1, "n_heads": 3, "hidden_dim": 32}
    )
    model = TransformersModel(architecture=architecture, config=config)
    followed = from_data(model, TOKENS)
    assert (followed["vocab_size"], followed["num_labels"]) == (50, 5)
    fits(build(model, TOKENS), TOKENS)


@needs_transformers
def test_a_vit_of_transformers_takes_images_from_the_data() -> None:
    model = TransformersModel(architecture="ViTForImageClassification", config={**SMALL, "patch_size": 4})
    assert from_data(model, GREY) == {"num_channels": 1, "image_size": 16, "num_labels": 7}
    fits(build(model, GREY), GREY)


CAUSAL = {
    "GPT2LMHeadModel": {"n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 12},
    "LlamaForCausalLM": {**SMALL, "num_key_value_heads": 3},
}


@needs_transformers
@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_language_model_predicts_every_token_and_keeps_no_cache(
    architecture: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = TransformersModel(architecture=architecture, config=CAUSAL[architecture])
    followed = from_data(model, TOKENS)
    assert followed["use_cache"] is False
    assert followed["vocab_size"] == 50
    built = build(model, TOKENS).eval()
    output = built(torch.randint(0, 50, (2, 12)))
    assert output.logits.shape == (2, 12, 50)
    assert output.past_key_values is None
    special = (built.config.bos_token_id, built.config.eos_token_id)  # type: ignore[union-attr]
    assert all(token is None or token < 50 for token in special)  # type: ignore[operator]
    assert not list(recwarn)


@needs_transformers
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            TransformersModel(architecture="GPT2LMHeadModl"),
            "task.model.architecture: transformers has no 'GPT2LMHeadModl' (did you mean 'GPT2LMHeadModel'?)",
        ),
        (TransformersModel(architecture="GPT2Config"), "'GPT2Config' is no model with a configuration"),
        (TransformersModel(architecture="pipeline"), "'pipeline' is no model with a configuration"),
        (
            TransformersModel(architecture="GPT2LMHeadModel", config={"n_layers": 2}),
            "task.model.config.n_layers: GPT2Config has no such key (did you mean 'n_layer'?)",
        ),
        (
            TransformersModel(architecture="GPT2LMHeadModel", config={"n_embd": 25, "n_head": 3}),
            "task.model.architecture: 'GPT2LMHeadModel' does not build with these settings: ",
        ),
    ],
    ids=["near", "config", "function", "key", "heads"],
)
def test_what_transformers_cannot_build_is_reported(model: TransformersModel, words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        build(model, TOKENS)


FILE = {"architecture": "resnet18", "model_args": {"checkpoint_path": "x.pth"}}
EVIL = {"model_type": "timm_backbone", "backbone": "hf-hub:somebody/model"}


@needs_transformers
@pytest.mark.parametrize(
    ("architecture", "config", "words"),
    [
        (
            "TimmBackbone",
            {"backbone": "hf-hub:x/y"},
            ".backbone: 'hf-hub:x/y' names a hub, a folder or a file",
        ),
        ("TimmBackbone", {"backbone": "local-dir:x"}, ".backbone: 'local-dir:x' names a hub"),
        (
            "DetrModel",
            {"backbone_config": EVIL},
            ".backbone_config.backbone: 'hf-hub:somebody/model' names",
        ),
        ("TimmWrapperForImageClassification", FILE, ".model_args.checkpoint_path: nothing is downloaded or"),
        (
            "LlavaForConditionalGeneration",
            {"text_config": {"auto_map": {"A": "b"}}},
            ".text_config.auto_map",
        ),
        ("GPT2LMHeadModel", {"architectures": ["a", "b:c"]}, ".architectures: 'b:c' names a hub"),
    ],
)
def test_a_configuration_that_would_load_something_is_refused_however_deep_it_reports_it(
    architecture: str, config: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was used"))
    with pytest.raises(ModelError, match=re.escape(f"task.model.config{words}")):
        build(TransformersModel(architecture=architecture, config=config), COLOUR)


@needs_transformers
def test_labels_may_be_any_text() -> None:
    labels = {0: "car/van", 1: "a: b"}
    config = {**SMALL, "id2label": labels, "label2id": {text: place for place, text in labels.items()}}
    model = TransformersModel(architecture="BertForSequenceClassification", config=config)
    assert build(model, TOKENS).config.id2label == labels  # type: ignore[union-attr]


@needs_timm
def test_a_setting_of_timm_that_names_a_folder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model_args.cache_dir: 'a/b' names a hub, a folder or a file, and"):
        build(resnet(cache_dir="a/b"), COLOUR)


@pytest.mark.parametrize(
    ("model", "library"),
    [
        (TimmModel(name="resnet18"), "timm"),
        (TorchvisionModel(name="resnet18"), "torchvision"),
        (TransformersModel(architecture="GPT2LMHeadModel"), "transformers"),
    ],
    ids=["timm", "torchvision", "transformers"],
)
def test_a_library_that_is_missing_is_reported_with_what_to_install(
    model: TimmModel | TorchvisionModel | TransformersModel, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how Python itself says that there is no such module.
    for name in [each for each in sys.modules if each.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    words = (
        f"task.model.kind: '{library}' needs {library}, which is not installed: "
        f"pip install -c constraints.txt 'tpsprune[{library}]'"
    )
    if library == "timm" and "torchvision" not in sys.modules:
        pytest.importorskip("torchvision", reason="timm imports torchvision first")
    with pytest.raises(ModelError, match=re.escape(words)):
        build(model, COLOUR)


def test_a_library_that_breaks_on_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any, **more: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchaudio::x does not exist\nand more")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    words = (
        r"torchvision does not import \(RuntimeError: operator torchaudio::x does not exist\); versions that"
    )
    with pytest.raises(ModelError, match=words):
        build(TorchvisionModel(name="resnet18"), COLOUR)


def test_vectors_suit_no_library_of_images() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    with pytest.raises(ModelError, match=r"the data are vectors of shape \(12,\)"):
        build(TorchvisionModel(name="resnet18"), VECTORS)
