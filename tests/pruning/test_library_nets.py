"""Nets of timm, torchvision and transformers whose own code once broke an extraction, small and at random."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.pruning.helpers import reasons
from tpsprune.models.libraries import import_torchvision
from tpsprune.numerics.forward import call_model
from tpsprune.pruning import find_groups
from tpsprune.pruning.trial import randomised_copy

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(3, 32, (12, 6), generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
PYRAMID = {"num_labels": 3, "image_size": 32}
CAIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "SegformerForImageClassification": PYRAMID
    | {"hidden_sizes": (16, 24), "depths": (1, 1), "num_attention_heads": (2, 2), "sr_ratios": (4, 2)}
    | {"num_encoder_blocks": 2, "patch_sizes": (7, 3), "strides": (4, 2), "mlp_ratios": (2, 2)},
    "PoolFormerForImageClassification": PYRAMID
    | {"hidden_sizes": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "mlp_ratio": 2.0},
    "DeepseekV3ForCausalLM": SMALL
    | ENDS
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 2}
    | {"num_experts_per_tok": 2, "topk_group": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
    "Mamba2ForCausalLM": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "state_size": 4}
    | ENDS
    | {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "Gemma2ForCausalLM": SMALL | ENDS | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
}


def library_net(name: str) -> tuple[nn.Module, Any]:
    """Return a net and its calibration data."""
    torch.manual_seed(0)
    vision: Any = import_torchvision()
    if name == "shufflenet":
        return vision.models.ShuffleNetV2([3, 3, 3], [8, 16, 32, 64, 24], num_classes=3), IMAGES
    if name == "cait":
        timm: Any = importlib.import_module("timm.models.cait")
        return timm.Cait(num_classes=3, depth_token_only=1, **CAIT), IMAGES
    transformers: Any = importlib.import_module("transformers")
    architecture = getattr(transformers, name)
    model: nn.Module = architecture(architecture.config_class(**TRANSFORMERS[name]))
    return model, [{"input_ids": TOKENS}] if "Causal" in name else [{"pixel_values": IMAGES}]


@pytest.mark.parametrize(
    "name", ["cait", "shufflenet", *(each for each in TRANSFORMERS if "Gemma" not in each)]
)
@pytest.mark.filterwarnings("ignore")
def test_a_net_that_broke_an_extraction_is_pruned_as_far_as_it_goes(name: str) -> None:
    model, data = library_net(name)
    batch = data[:2] if isinstance(data, Tensor) else data[0]
    found = find_groups(model.eval(), batch)
    assert found.groups
    few = {group.name: max(1, group.width // 2 - rank % 3) for rank, group in enumerate(found.groups)}
    target = tpsprune.Widths(few)
    ticket = tpsprune.extract(model, data, target, compensate=False, embedding_width=True)
    assert ticket.macs_share < 1
    call_model(ticket.ticket, batch)


@pytest.mark.filterwarnings("ignore")
def test_heads_that_are_pruned_are_no_output_of_the_model() -> None:
    model, data = library_net("Gemma2ForCausalLM")
    outputs = [
        name for name, why in reasons(model.eval(), data[0]).items() if why == "it is the model's output"
    ]
    assert outputs == ["lm_head"]


@pytest.mark.parametrize("at_rest", [0, 1])
def test_units_at_rest_in_the_trial_by_chance_are_pruned(at_rest: int) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    rows = randomised_copy(model)[0].weight.detach()  # type: ignore[index, union-attr]
    x_bn = -torch.tensor([[9.0], [10.0]]) * rows[at_rest]
    assert [group.name for group in find_groups(model, x_bn).groups] == ["0"]


@pytest.mark.filterwarnings("ignore")
def test_a_stream_keeps_its_own_reason_beside_heads_that_are_pruned() -> None:
    model, data = library_net("Gemma2ForCausalLM")
    nn.utils.parametrizations.weight_norm(model.get_submodule("model.layers.0.mlp.down_proj"))
    assert "parametrised" in reasons(model.eval(), data[0])["model.embed_tokens"]
