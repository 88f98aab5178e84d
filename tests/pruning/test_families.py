"""Attentions and blocks whose units are shared, fused or counted elsewhere: what each family lets go."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import tpsprune
from tests.pruning.helpers import groups_of
from tpsprune.models.libraries import help_torchvision, import_torchvision
from tpsprune.numerics.forward import call_model
from tpsprune.pruning import check_ticket, find_groups, replay
from tpsprune.pruning.output_error import output_error

TOKENS = torch.randint(3, 32, (16, 8), generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
FOUR = {"num_attention_heads": 4}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    # One table of relative positions, in the first block or around all of them, has a number for each head.
    "T5ForConditionalGeneration": (
        {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 32}
        | {"decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False},
        {
            "encoder.block.0.layer.0.SelfAttention.q": 4,
            "decoder.block.0.layer.0.SelfAttention.q": 4,
            "decoder.block.0.layer.1.EncDecAttention.q": 4,
        },
    ),
    "MPNetForMaskedLM": (
        {**SMALL, **FOUR, "max_position_embeddings": 16},
        {"mpnet.encoder.layer.0.attention.attn.q": 4},
    ),
    # Keys and queries of relative positions have projections of their own.
    "DebertaV2ForSequenceClassification": (
        {**SMALL, **FOUR, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pad_token_id": 0},
        {f"deberta.encoder.layer.{layer}.attention.self.query_proj": 4 for layer in range(2)},
    ),
    # Queries, keys and values are one layer, split by numbers of the shared configuration.
    "Phi3ForCausalLM": (
        {**SMALL, **ENDS, **FOUR, "num_key_value_heads": 2},
        {f"model.layers.{layer}.self_attn.qkv_proj": 2 for layer in range(2)},
    ),
    # A part of the keys is rotated and shared by all heads; keys and values are one layer, head by head.
    "DeepseekV3ForCausalLM": (
        {**SMALL, **ENDS, **FOUR, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2}
        | {"num_experts_per_tok": 2, "topk_group": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
        | {
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 6,
        },
        {f"model.layers.{layer}.self_attn.q_b_proj": 4 for layer in range(2)},
    ),
    # The weights of the inner layers are used outside them.
    "MambaForCausalLM": (
        {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "state_size": 4, "expand": 2, **ENDS},
        {f"backbone.layers.{layer}.mixer.in_proj": 32 for layer in range(2)},
    ),
}


def family(name: str) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    help_torchvision()
    library: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    architecture = getattr(library, name)
    model: nn.Module = architecture(architecture.config_class(**FAMILIES[name][0])).eval()
    batch = {"input_ids": TOKENS}
    return model, [batch | {"decoder_input_ids": TOKENS.flip(0)} if "T5" in name else batch]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_heads_and_channels_of_a_family_are_found_pruned_and_replayed(name: str) -> None:
    model, batches = family(name)
    expected = FAMILIES[name][1]
    groups = groups_of(model, {key: value[:2] for key, value in batches[0].items()})
    assert {key: group.width for key, group in groups.items() if key in expected} == expected
    target = tpsprune.Widths({key: max(1, width // 2) for key, width in expected.items()})
    found = tpsprune.extract(model, batches, target, quality="fast")
    assert found.macs_share < 1
    for ticket in (found.ticket, replay(model, found.plan)):
        check_ticket(ticket, found.plan)
        call_model(ticket, batches[0])
    assert output_error(found.ticket, model, batches) < 1


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_that_all_modules_share_is_left_as_it_was() -> None:
    model, batches = family("Phi3ForCausalLM")
    target = tpsprune.Widths({"model.layers.0.self_attn.qkv_proj": 1})
    ticket: Any = tpsprune.extract(model, batches, target, quality="fast").ticket
    heads = [layer.self_attn.config.num_attention_heads for layer in ticket.model.layers]
    assert heads == [2, 4]
    assert ticket.config.num_attention_heads == 4
    assert model.get_submodule("model.layers.0.self_attn").config.num_attention_heads == 4  # type: ignore[union-attr]


def test_a_selective_kernel_splits_by_a_number_that_follows_and_weighs_path_by_path() -> None:
    import_torchvision()
    timm: Any = importlib.import_module("timm")
    torch.manual_seed(0)
    model = timm.create_model("skresnet18", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), num_classes=3)
    images = torch.randn(16, 3, 32, 32)
    found = find_groups(model.eval(), images[:2])
    assert {each.name: each.reason for each in found.unpruned} == {"fc": "it is the model's output"}
    by_name = {group.name: group for group in found.groups}
    numbers = [(each.module, each.name) for each in by_name["conv1"].attributes]
    assert ("layer1.0.conv1", "in_channels") in numbers
    path = by_name["layer1.0.conv1.paths.0.conv"]
    [chosen] = [
        each
        for each in path.slices
        if each.tensor == "layer1.0.conv1.attn.fc_select.weight" and not each.axis
    ]
    assert (chosen.block, chosen.repeat, chosen.stride) == (1, 2, path.width)
    ticket = tpsprune.extract(model, [images], tpsprune.Macs(0.5), quality="fast")
    check_ticket(ticket.ticket, ticket.plan)


@pytest.mark.filterwarnings("ignore")
def test_a_layout_is_tried_again_when_the_one_in_its_way_has_failed() -> None:
    # The guess that pairs q_a with kv_a comes first, fails, and must not cost q_b and kv_b theirs.
    model, batches = family("DeepseekV3ForCausalLM")
    group = groups_of(model, {"input_ids": batches[0]["input_ids"][:2]})["model.layers.0.self_attn.q_b_proj"]
    assert group.width == 4
    assert {each.module.rpartition(".")[2] for each in group.slices} == {"q_b_proj", "kv_b_proj", "o_proj"}
