"""A ticket as its own architecture at other widths: by a configuration, by code beside it, or not at all."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpsprune
from tests.export.nets import made
from tpsprune.errors import ArtifactError
from tpsprune.export import HuggingFace, predictor_of, saves_itself
from tpsprune.export.configurations import fitting_config
from tpsprune.export.pruned_architecture import pruned_class
from tpsprune.models.libraries import help_torchvision

help_torchvision()
transformers = pytest.importorskip("transformers", reason="pip install 'tpsprune[transformers]'")
FORMAT = HuggingFace()
SMALL: dict[str, Any] = {
    **{"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
    **{"bos_token_id": 1, "eos_token_id": None, "pad_token_id": None},
}


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


def test_widths_that_no_configuration_has_leave_with_the_code_that_builds_them(tmp_path: Path) -> None:
    model = cut_llama(llama(), (20, 30))
    assert fitting_config(model) is None
    config = exported(tmp_path, model)
    assert config["architectures"] == ["PrunedLlamaForCausalLM"]
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_pruned.PrunedLlamaForCausalLM"}
    assert config["pruned"]["shapes"]["model.layers.1.mlp.down_proj.weight"] == [32, 30]
    assert config["pruned"]["numbers"]["model.layers.0.mlp.gate_proj"] == {"out_features": 20}
    assert len(config["pruned"]["shapes"]) == len(config["pruned"]["numbers"]) == 6


def test_what_differs_in_more_than_widths_is_refused(tmp_path: Path) -> None:
    model = cut_llama(llama(), (20, 30))
    model.model.layers[1].mlp.act_fn = nn.GELU()
    with pytest.raises(
        ArtifactError, match=r"layers\.1\.mlp\.act_fn is GELU in the ticket and SiLUActivation in"
    ):
        FORMAT.refuse(model)
    model = cut_llama(llama(), (20, 30))
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:2]
    with pytest.raises(ArtifactError, match="inv_freq has other sizes than in LlamaForCausalLM"):
        FORMAT.refuse(model)


def test_an_architecture_of_somebodys_own_is_refused_where_no_configuration_has_its_widths() -> None:
    class Own(transformers.LlamaForCausalLM):  # type: ignore[misc,name-defined]
        pass

    with pytest.raises(ArtifactError, match="Own is not an architecture of the transformers library itself"):
        FORMAT.refuse(cut_llama(Own(llama().config), (20, 30)))


class PerLayerMlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, config.intermediate_size), nn.Linear(config.intermediate_size, 8)


def per_layer(**changes: Any) -> Any:
    """An architecture that reads a configuration for each of its layers."""

    class PerLayer(transformers.PreTrainedModel):  # type: ignore[misc,name-defined]
        config_class = transformers.LlamaConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.embedding = nn.Embedding(31, 8)
            self.layers = nn.ModuleList([PerLayerMlp(each) for each in config.per_layer_config])
            self.post_init()

    config = {"num_hidden_layers": 4, "intermediate_size": 24, "hidden_size": 8, "num_attention_heads": 2}
    return PerLayer(transformers.LlamaConfig(**config, **changes))


def test_widths_of_each_layer_are_the_configurations_where_the_architecture_takes_them() -> None:
    model = per_layer()
    for layer, width in zip(model.layers, (10, 24, 7, 10), strict=True):
        layer.up, layer.down = (
            rows(layer.up, list(range(width))),
            columns(layer.down, list(range(width)), bias=True),
        )
    fit = fitting_config(model)
    assert fit is not None
    assert fit.new_biases == {}
    own = {rank: {"intermediate_size": width} for rank, width in ((0, 10), (2, 7), (3, 10))}
    assert fit.changes == {"per_layer_config": own}


AUTO = {"BertForMaskedLM": "AutoModelForMaskedLM"}
WORDS = {"vocab_size": 31, "bos_token_id": None, "eos_token_id": None}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CAUSAL = {**WORDS, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": CAUSAL,
    "Qwen3ForCausalLM": {**CAUSAL, "head_dim": 8},
    "MistralForCausalLM": CAUSAL,
    "GPT2LMHeadModel": {**WORDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "BertForMaskedLM": {"vocab_size": 31, **SIZES},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_greedy_ticket_saves_itself_and_generates_as_before(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    torch.manual_seed(5)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**ARCHITECTURES[architecture])).eval()
    batches = [torch.randint(31, (16, 12)) for _ in range(4)]
    found = tpsprune.extract(model, batches, target=tpsprune.Macs(0.55))
    assert any("attn" in each.group or "attention" in each.group for each in found.changes)
    assert not any("embed" in each.group for each in found.changes)
    assert not found.plan.new_biases
    ticket = found.ticket.eval()
    ticket.save_pretrained(tmp_path / "ticket")
    auto = getattr(transformers, AUTO.get(architecture, "AutoModelForCausalLM"))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        auto.from_pretrained(tmp_path / "ticket", trust_remote_code=False)
    again = auto.from_pretrained(tmp_path / "ticket", trust_remote_code=True)
    again.save_pretrained(tmp_path / "again")
    third = auto.from_pretrained(tmp_path / "again", trust_remote_code=True)
    ids = torch.randint(31, (2, 9))
    wanted = predictor_of(ticket)(ids)
    for model in (again, third):
        assert torch.equal(predictor_of(model)(ids), wanted)
    for model in (ticket, again) if architecture not in AUTO else ():
        grown = [
            model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)
            for options in ({"use_cache": False}, {}, {"cache_implementation": "static"})
        ]
        assert len({tuple(each.flatten().tolist()) for each in grown}) == 1


def test_copies_of_a_ticket_save_themselves_and_files_of_it_hold_no_code(tmp_path: Path) -> None:
    ticket = saves_itself(cut_llama(llama(), (20, 30)))
    other = copy.deepcopy(ticket)
    with torch.no_grad():
        other.get_parameter("lm_head.weight").zero_()
    for place, each in (("copied", other), ("pickled", pickle.loads(pickle.dumps(other)))):  # noqa: S301
        each.save_pretrained(tmp_path / place)
        assert FORMAT.reload(tmp_path / place)(torch.zeros(1, 3, dtype=torch.int64)).abs().max() == 0.0
    with pytest.raises(ValueError, match="save it to a folder first"):
        other.save_pretrained(tmp_path, push_to_hub=True)  # type: ignore[operator]


def test_what_is_no_model_of_the_library_is_refused() -> None:
    with pytest.raises(ArtifactError, match="the ticket is a Pair; use safetensors, torch-export or onnx"):
        FORMAT.refuse(made("Pair"))


def test_heads_of_another_width_are_not_taken_for_fewer(tmp_path: Path) -> None:
    torch.manual_seed(5)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=4, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    images = torch.randn(64, 3, 16, 16)
    found = tpsprune.extract(
        model, images, tpsprune.Macs(0.3), widths="uniform", quality="fast", embedding_width=True
    )
    widths = {each.group: each.width_after for each in found.changes}
    assert widths["vit.embeddings.patch_embeddings.projection"] == 16
    assert widths["vit.layers.0.attention.q_proj"] == 2
    found.ticket.save_pretrained(tmp_path)  # type: ignore[operator]
    assert json.loads((tmp_path / "config.json").read_text())["num_attention_heads"] == 2
    wanted = predictor_of(found.ticket)(images)
    assert (FORMAT.reload(tmp_path)(images) - wanted).abs().max() < 1e-5


def test_an_architecture_whose_tensors_the_library_renames_in_files_keeps_them(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**WORDS, **SIZES)).eval()
    ids = torch.randint(31, (16, 9))
    found = tpsprune.extract(model, ids, tpsprune.Macs(0.6), quality="fast")
    found.ticket.save_pretrained(tmp_path)  # type: ignore[operator]
    assert (tmp_path / "modeling_pruned.py").is_file()
    assert torch.equal(FORMAT.reload(tmp_path)(ids), predictor_of(found.ticket)(ids))


def test_what_generation_needs_is_saved_beside_a_new_configuration(tmp_path: Path) -> None:
    model = saves_itself(cut_llama(llama(), (20, 20)))
    model.generation_config.max_new_tokens = 77
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 77


def test_where_the_code_of_somebodys_own_model_is_stays_in_its_configuration(tmp_path: Path) -> None:
    model = saves_itself(cut_llama(llama(), (20, 20)))
    model.config.auto_map = {"AutoModelForCausalLM": "theirs.Own"}
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {"AutoModelForCausalLM": "theirs.Own"}
    assert config["intermediate_size"] == 20


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    for widths in ((20, 20), (20, 30)):
        saves_itself(cut_llama(llama(), widths)).save_pretrained(  # type: ignore[operator]
            tmp_path, is_main_process=False
        )
    assert not [*tmp_path.iterdir()]


def test_a_ticket_that_took_code_to_load_is_pruned_and_saved_again(tmp_path: Path) -> None:
    saves_itself(cut_llama(llama(), (20, 30))).save_pretrained(tmp_path / "once")  # type: ignore[operator]
    once = pruned_class(tmp_path / "once").from_pretrained(tmp_path / "once")
    ids = torch.randint(31, (16, 9))
    found = tpsprune.extract(once, ids, tpsprune.Macs(0.9), quality="fast")
    found.ticket.save_pretrained(tmp_path / "twice")  # type: ignore[operator]
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert config["architectures"] == ["PrunedLlamaForCausalLM"]
    assert torch.equal(FORMAT.reload(tmp_path / "twice")(ids), predictor_of(found.ticket)(ids))


def test_looking_for_a_configuration_leaves_model_and_dice_alone() -> None:
    model = cut_llama(llama(), (20, 20))
    before, state = model.config.to_dict(), torch.get_rng_state()
    fit = fitting_config(model)
    assert fit is not None
    assert fit.changes == {"intermediate_size": 20}
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
    found = tpsprune.extract(model, batches, target=tpsprune.Macs(0.6), widths="uniform")
    widths = {each.width_after for each in found.changes if "mlp" in each.group}
    assert exported(tmp_path, found.ticket.eval())["intermediate_size"] == widths.pop() < 48
    assert not widths


@pytest.mark.parametrize("widths", ["uniform", "greedy"])
@pytest.mark.filterwarnings("ignore")
def test_experts_leave_with_a_configuration_where_their_widths_are_equal_else_with_code(
    widths: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SMALL, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    )
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    ids = torch.randint(0, 31, (32, 9))
    kept = {
        f"model.layers.{layer}.mlp.experts": 8 if widths == "uniform" else 4 + 4 * layer for layer in (0, 1)
    }
    found = tpsprune.extract(model, [{"input_ids": ids}], tpsprune.Widths(kept), quality="fast")
    found.ticket.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM
    reloaded = auto.from_pretrained(tmp_path, trust_remote_code=widths == "greedy").eval()
    written = json.loads((tmp_path / "config.json").read_text())
    assert ("auto_map" in written) == (widths == "greedy")
    assert widths == "greedy" or written["moe_intermediate_size"] == 8
    with torch.no_grad():
        assert torch.equal(found.ticket(ids).logits, reloaded(ids).logits)
    ours, theirs = (
        each.generate(ids[:1], max_new_tokens=4, do_sample=False) for each in (found.ticket, reloaded)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_a_modules_own_configuration_leave_with_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL)).eval()
    ids = torch.randint(0, 31, (32, 9))
    target = tpsprune.Widths({"model.layers.1.self_attn.qkv_proj": 1})
    ticket: Any = tpsprune.extract(model, [{"input_ids": ids}], target, quality="fast").ticket
    ticket.save_pretrained(tmp_path)
    reloaded: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    heads = [layer.self_attn.config.num_attention_heads for layer in reloaded.model.layers]
    assert heads == [4, 2]
    with torch.no_grad():
        assert torch.equal(ticket(ids).logits, reloaded(ids).logits)


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2, whose layers are transposed"])
def test_layers_of_low_rank_leave_with_the_code_that_splits_them(make: Any, tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                left, singular, right = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(left * (singular * 0.8 ** torch.arange(len(singular))) @ right)
    batches = list(torch.randint(31, (64, 9), generator=torch.Generator().manual_seed(0)).split(32))
    found = tpsprune.extract(model, batches, tpsprune.Macs(0.6), quality="fast", low_rank=True)
    assert found.plan.factored
    config = exported(tmp_path, found.ticket)
    assert config["pruned"]["ranks"] == {each.layer: each.rank for each in found.plan.factored}
    auto = transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path, trust_remote_code=True, local_files_only=True).eval()
    ids = torch.randint(31, (2, 7))
    torch.testing.assert_close(loaded(ids).logits, found.ticket(ids).logits)
    generated = [each.generate(ids, max_new_tokens=4, do_sample=False) for each in (loaded, found.ticket)]
    assert torch.equal(*generated)
