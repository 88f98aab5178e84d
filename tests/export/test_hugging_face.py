"""A ticket as its own architecture at other widths: where a configuration has them, else why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpsprune
from tests.export.nets import made
from tpsprune.errors import ArtifactError
from tpsprune.export import HuggingFace, is_pretrained, predictor_of
from tpsprune.export.hugging_face import fitting_config
from tpsprune.models.libraries import help_torchvision

help_torchvision()
transformers = pytest.importorskip("transformers", reason="pip install 'tpsprune[transformers]'")
FORMAT = HuggingFace()


def llama(**changes: Any) -> Any:
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 31,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "tie_word_embeddings": False,
            **changes,
        }
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    torch.manual_seed(5)
    config = transformers.GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def rows(layer: nn.Linear, kept: list[int]) -> nn.Linear:
    new = nn.Linear(layer.in_features, len(kept), bias=layer.bias is not None)
    new.weight = nn.Parameter(layer.weight.detach()[kept])
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach()[kept])
    return new


def columns(layer: nn.Linear, kept: list[int], *, bias: bool = False) -> nn.Linear:
    new = nn.Linear(len(kept), layer.out_features, bias=bias)
    new.weight = nn.Parameter(layer.weight.detach()[:, kept])
    return new


def cut_llama(model: Any, widths: tuple[int, ...], *, bias: bool = False) -> Any:
    for layer, width in zip(model.model.layers, widths, strict=True):
        kept, mlp = list(range(width)), layer.mlp
        mlp.gate_proj, mlp.up_proj = rows(mlp.gate_proj, kept), rows(mlp.up_proj, kept)
        mlp.down_proj = columns(mlp.down_proj, kept, bias=bias)
    return model


def exported(folder: Path, model: Any) -> dict[str, Any]:
    """Write and reload the model, compare its outputs with the reloaded one's, and return its config."""
    FORMAT.refuse(model)
    names = FORMAT.write(folder, model, None)
    assert set(names) == {path.name for path in folder.iterdir()}
    reloaded = FORMAT.reload(folder)
    for items in (1, 2, 7):
        ids = torch.randint(31, (items, 9))
        wanted = predictor_of(model)(ids)
        assert (reloaded(ids) - wanted).abs().max() <= FORMAT.tolerance_share * wanted.abs().max()
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_a_model_that_was_not_pruned_is_its_own_configuration(tmp_path: Path) -> None:
    assert exported(tmp_path, llama())["intermediate_size"] == 48


def test_equal_widths_become_the_configurations(tmp_path: Path) -> None:
    config = exported(tmp_path, cut_llama(llama(), (20, 20)))
    assert config["intermediate_size"] == 20
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_a_bias_that_pruning_added_is_the_architectures_and_its_others_are_zero(tmp_path: Path) -> None:
    config = exported(tmp_path, cut_llama(llama(), (20, 20), bias=True))
    assert config["mlp_bias"] is True
    assert config["intermediate_size"] == 20


def test_key_and_query_heads_become_the_configurations_at_the_same_head_width(tmp_path: Path) -> None:
    model = llama(head_dim=8)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_proj = rows(attention.q_proj, list(range(16)))
        attention.k_proj, attention.v_proj = (
            rows(each, list(range(8))) for each in (attention.k_proj, attention.v_proj)
        )
        attention.o_proj = columns(attention.o_proj, list(range(16)))
    config = exported(tmp_path, model)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 8)


def test_an_empty_field_is_filled_where_it_holds_the_width(tmp_path: Path) -> None:
    model = gpt2()
    for layer in model.transformer.h:
        mlp = layer.mlp
        mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight.detach()[:, :50])
        mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias.detach()[:50])
        mlp.c_fc.nf = 50
        mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight.detach()[:50])
        mlp.c_proj.nx = 50
    assert exported(tmp_path, model)["n_inner"] == 50


def test_widths_that_differ_from_layer_to_layer_are_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        FORMAT.refuse(cut_llama(llama(), (20, 30)))
    words = str(caught.value)
    assert "hf: no LlamaConfig has the widths of this ticket" in words
    assert "intermediate_size is one number for all layers" in words
    assert "20 fits model.layers.0.mlp." in words
    assert "30 fits model.layers.1.mlp." in words


def test_a_layer_at_odds_with_its_neighbours_is_reported_with_the_number_that_they_have() -> None:
    model = llama()
    model.model.layers[1].mlp.gate_proj = rows(model.model.layers[1].mlp.gate_proj, list(range(20)))
    with pytest.raises(ArtifactError) as caught:
        FORMAT.refuse(model)
    assert "20 fits model.layers.1.mlp.gate_proj.weight, 48 fits model.layers.0.mlp." in str(caught.value)


def test_a_tensor_that_no_field_reaches_is_named() -> None:
    model = gpt2()
    attention = model.transformer.h[0].attn
    attention.c_attn.weight = nn.Parameter(attention.c_attn.weight.detach()[:, :72])
    attention.c_attn.bias = nn.Parameter(attention.c_attn.bias.detach()[:72])
    with pytest.raises(
        ArtifactError, match=r"h\.0\.attn\.c_attn\.weight is \[32, 72\] where GPT2LMHeadModel has"
    ):
        FORMAT.refuse(model)


def test_what_is_no_model_of_the_library_is_refused() -> None:
    assert not is_pretrained(made("Pair"))
    assert is_pretrained(llama())
    with pytest.raises(ArtifactError, match="the ticket is a Pair; use safetensors, torch-export or onnx"):
        FORMAT.refuse(made("Pair"))


def test_looking_for_a_configuration_leaves_model_and_dice_alone() -> None:
    model = cut_llama(llama(), (20, 20))
    before, state = model.config.to_dict(), torch.get_rng_state()
    fit = fitting_config(model)
    assert fit.config.intermediate_size == 20
    assert model.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_folder_holds_no_place_where_the_model_came_from(tmp_path: Path) -> None:
    model = llama()
    model.config._name_or_path = "/home/somebody/weights"
    exported(tmp_path, model)
    assert b"somebody" not in (tmp_path / "config.json").read_bytes()


def test_a_ticket_that_tpsprune_pruned_leaves_as_its_own_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(use_cache=False)
    batches = [torch.randint(31, (16, 7)) for _ in range(3)]
    found = tpsprune.extract(model, batches, target=tpsprune.Macs(0.8))
    groups = [each.group for each in found.changes if "mlp" in each.group]
    assert len(groups) == 2
    ticket = tpsprune.extract(model, batches, target=tpsprune.Widths(dict.fromkeys(groups, 20))).ticket.eval()
    capsys.readouterr()
    assert exported(tmp_path, ticket)["intermediate_size"] == 20
    assert "Loading weights" not in capsys.readouterr().err


def test_a_uniform_pruning_that_leaves_the_stream_alone_is_its_own_architecture(tmp_path: Path) -> None:
    model = llama(use_cache=False)
    batches = [torch.randint(31, (16, 7)) for _ in range(3)]
    found = tpsprune.extract(
        model, batches, target=tpsprune.Macs(0.6), widths="uniform", ignored_layers=["model.embed_tokens"]
    )
    widths = {each.width_after for each in found.changes if "mlp" in each.group}
    assert exported(tmp_path, found.ticket.eval())["intermediate_size"] == widths.pop() < 48
    assert not widths
