"""Architectures of timm, torchvision and transformers, small, at random: what ``coverage`` prunes.

Nothing is downloaded: a model is built from its library's own class with fewer blocks, narrower layers or
smaller images than the published one, but with every operation that it has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from tpsprune.models.libraries import import_torchvision

ITEMS: Final = 24
TOKENS: Final = 12
VOCABULARY: Final = 96
CLASSES: Final = 10

Batches = Any
"""A tensor of all items, or a list of batches as models of transformers take them."""


@dataclass(frozen=True, slots=True)
class Case:
    """An architecture: what people call it, and how a small one and its calibration data are made."""

    name: str
    library: str
    build: Callable[[], tuple[nn.Module, Batches]]


def cases() -> Iterator[Case]:
    """Yield every architecture of the table, convolutional nets first."""
    yield Case("vgg11_bn", "torchvision", _vgg)
    for name, (side, settings) in TIMM.items():
        yield Case(name, "timm", partial(_timm, name, side, settings))
    for name, (side, settings) in TORCHVISION.items():
        yield Case(name, "torchvision", partial(_torchvision, name, side, settings))
    for name, (kind, settings) in TRANSFORMERS.items():
        yield Case(name, "transformers", partial(_transformers, name, kind, settings))


def _images(side: int, channels: int = 3, items: int = ITEMS) -> torch.Tensor:
    return torch.randn(items, channels, side, side)


def _timm(name: str, side: int, settings: dict[str, Any]) -> tuple[nn.Module, Batches]:
    import_torchvision()
    timm: Any = importlib.import_module("timm")
    chosen = {"num_classes": CLASSES, **settings}
    blocks = chosen.pop("blocks", None)
    model = timm.create_model(name, pretrained=False, **chosen)
    if blocks is not None:  # Where its name fixes how many there are.
        model.blocks = nn.Sequential(*list(model.blocks)[:blocks])
    return model, _images(side)


def _torchvision(name: str, side: int, settings: dict[str, Any]) -> tuple[nn.Module, Batches]:
    models: Any = import_torchvision().models
    if "segmentation" in name or "deeplab" in name or "fcn" in name or "lraspp" in name:
        settings = {"weights_backbone": None, **settings}
    return models.get_model(name, weights=None, num_classes=CLASSES, **settings), _images(side)


def _vgg() -> tuple[nn.Module, Batches]:
    """Build a VGG of narrow layers: its class fixes those of 4,096 units."""
    vgg: Any = import_torchvision().models.vgg
    features = vgg.make_layers([16, "M", 24, "M", 32, 32, "M", 48, 48, "M", 48, 48, "M"], batch_norm=True)
    model = vgg.VGG(features, num_classes=CLASSES)
    for place, (inputs, outputs) in {0: (48 * 49, 64), 3: (64, 64), 6: (64, CLASSES)}.items():
        model.classifier[place] = nn.Linear(inputs, outputs)
    return model, _images(32)


def _transformers(name: str, kind: str, settings: dict[str, Any]) -> tuple[nn.Module, Batches]:
    import_torchvision()
    library: Any = importlib.import_module("transformers")
    architecture = getattr(library, name)
    config = architecture.config_class(**settings)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = architecture(config)
    halves = range(2)
    items = ITEMS // 2
    match kind:
        case "image":
            side = settings["image_size"]
            batches: Any = [{"pixel_values": _images(side, items=items)} for _ in halves]
        case "two sequences":
            batches = [{"input_ids": _ids(items), "decoder_input_ids": _ids(items)} for _ in halves]
        case "mel":
            frames = torch.randn(ITEMS, settings["num_mel_bins"], 2 * settings["max_source_positions"])
            batches = [
                {"input_features": part, "decoder_input_ids": _ids(items)} for part in frames.split(items)
            ]
        case "wave":
            batches = [{"input_values": torch.randn(items, 1600)} for _ in halves]
        case "image and text":
            side = settings["vision_config"]["image_size"]
            batches = [{"input_ids": _ids(items), "pixel_values": _images(side, items=items)} for _ in halves]
        case _:
            batches = [{"input_ids": _ids(items)} for _ in halves]
    return model, batches


def _ids(items: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (items, TOKENS))


_VIT: Final = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}

TIMM: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "resnet18": (32, {"channels": (16, 32, 48, 64)}),
    "resnet50": (32, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "resnext50_32x4d": (32, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "skresnet18": (32, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "ecaresnet26t": (32, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "res2net50_26w_4s": (32, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "densenet121": (32, {"block_config": (2, 2, 2, 2)}),
    "test_efficientnet": (32, {}),
    "mobilenetv2_035": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "regnety_002": (32, {}),
    "convnext_atto": (32, {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)}),
    "repvgg_a0": (32, {}),
    "ghostnet_050": (32, {}),
    "inception_v3": (96, {}),
    "hrnet_w18_small": (64, {}),
    "dla34": (32, {"channels": (16, 16, 24, 32, 48, 64)}),
    "nfnet_f0": (32, {"depths": (1, 1, 1, 1), "channels": (16, 32, 48, 48), "group_size": 8}),
    "dm_nfnet_f0": (32, {"depths": (1, 1, 1, 1), "channels": (16, 32, 48, 48), "group_size": 8}),
    "nf_resnet26": (32, {}),
    "resnetv2_50x1_bit": (32, {}),
    "poolformer_s12": (32, {}),
    "mambaout_femto": (32, {"depths": (1, 1, 1, 1), "dims": (16, 32, 40, 64)}),
    "starnet_s1": (32, {}),
    "vit_tiny_patch16_224": (32, _VIT),
    "deit_tiny_distilled_patch16_224": (32, _VIT),
    "beit_base_patch16_224": (32, _VIT),
    "eva02_tiny_patch14_224": (32, {"img_size": 32, "patch_size": 8, "depth": 2}),
    "cait_xxs24_224": (32, {**_VIT, "num_heads": 4, "depth_token_only": 1}),
    "xcit_nano_12_p8_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "swin_tiny_patch4_window7_224": (
        32,
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)},
    ),
    "swinv2_tiny_window8_256": (
        32,
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)},
    ),
    "maxvit_pico_rw_256": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64)}),
    "coatnet_nano_rw_224": (64, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64)}),
    "mobilevit_xxs": (64, {}),
    "mixer_s16_224": (64, {"img_size": 64, "blocks": 2}),
    "gmlp_ti16_224": (64, {"img_size": 64, "blocks": 2}),
    "resmlp_12_224": (64, {"img_size": 64, "blocks": 2}),
    "convmixer_768_32": (32, {"blocks": 2}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
    "edgenext_xx_small": (64, {}),
}
"""By name: the side of an image, and what makes the model small."""

TORCHVISION: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "squeezenet1_1": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "deeplabv3_mobilenet_v3_large": (64, {}),
    "lraspp_mobilenet_v3_large": (64, {}),
}
"""By name, as those of timm."""

_SIZES: Final = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
_BERT: Final = {**_SIZES, "max_position_embeddings": 32}
_GROUPED: Final = {**_SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_WIDE: Final = {**_GROUPED, "head_dim": 12}
_EXPERTS: Final = {"num_experts_per_tok": 2}
_MIXED: Final = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "pad_token_id": 0}
_UNTIED: Final = {"tie_word_embeddings": False}
_ENDS: Final = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BOTH: Final = {
    **{"d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "decoder_start_token_id": 1, **_ENDS},
}
_TOWER: Final = {
    **{"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
_PYRAMID: Final = {
    **{"hidden_sizes": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 2, 4)},
    **{"decoder_hidden_size": 32, "num_labels": CLASSES, "image_size": 64},
}

TRANSFORMERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "BertForSequenceClassification": ("text", _BERT),
    "RobertaForMaskedLM": ("text", _BERT),
    "DistilBertForSequenceClassification": (
        "text",
        {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY},
    ),
    "AlbertForMaskedLM": ("text", {**_BERT, "embedding_size": 24}),
    "ElectraForMaskedLM": ("text", {**_BERT, "embedding_size": 24}),
    "DebertaV2ForSequenceClassification": (
        "text",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "MPNetForMaskedLM": ("text", _BERT),
    "ModernBertForMaskedLM": ("text", {**_BERT, **_ENDS, "cls_token_id": 1, "sep_token_id": 2}),
    "T5ForConditionalGeneration": (
        "two sequences",
        {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 1, "num_heads": 4, "vocab_size": VOCABULARY}
        | {"decoder_start_token_id": 0, "pad_token_id": 0},
    ),
    "BartForConditionalGeneration": ("two sequences", _BOTH),
    "GPT2LMHeadModel": (
        "text",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 32, **_ENDS},
    ),
    "GPTNeoForCausalLM": (
        "text",
        {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY, **_ENDS}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32},
    ),
    "GPTNeoXForCausalLM": ("text", {**_BERT, **_ENDS}),
    "GPTJForCausalLM": (
        "text",
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "rotary_dim": 4, **_ENDS},
    ),
    "OPTForCausalLM": (
        "text",
        {**_SIZES, **_ENDS, "ffn_dim": 96, "max_position_embeddings": 32, "word_embed_proj_dim": 48},
    ),
    "BloomForCausalLM": ("text", {**_MIXED, **_ENDS, "n_layer": 2, "n_head": 4}),
    "FalconForCausalLM": ("text", {**_SIZES, **_ENDS, "multi_query": True}),
    "LlamaForCausalLM": ("text", _GROUPED),
    "MistralForCausalLM": ("text", _GROUPED),
    "Qwen2ForCausalLM": ("text", _GROUPED),
    "Qwen3ForCausalLM": ("text", _WIDE),
    "GemmaForCausalLM": ("text", _WIDE),
    "Gemma2ForCausalLM": ("text", _WIDE),
    "Gemma3ForCausalLM": ("text", _WIDE),
    "Phi3ForCausalLM": ("text", _GROUPED),
    "PhiForCausalLM": ("text", _GROUPED),
    "CohereForCausalLM": ("text", _GROUPED),
    "StableLmForCausalLM": ("text", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "Olmo2ForCausalLM": ("text", _GROUPED),
    "MixtralForCausalLM": ("text", {**_GROUPED, **_EXPERTS, "num_local_experts": 4}),
    "Qwen3MoeForCausalLM": (
        "text",
        {**_WIDE, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24},
    ),
    "OlmoeForCausalLM": ("text", {**_GROUPED, **_EXPERTS, "num_experts": 4}),
    "GptOssForCausalLM": (
        "text",
        {**_WIDE, **_EXPERTS, "num_local_experts": 4, "layer_types": ["full_attention"] * 2},
    ),
    "DeepseekV3ForCausalLM": (
        "text",
        {**_SIZES, **_ENDS, **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2}
        | {"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "q_lora_rank": 16}
        | {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
    ),
    "MambaForCausalLM": ("text", {**_MIXED, **_UNTIED, "state_size": 8, "expand": 2}),
    "Mamba2ForCausalLM": (
        "text",
        {**_MIXED, **_ENDS, "state_size": 8, "num_heads": 8, "head_dim": 12, "n_groups": 2, "chunk_size": 8},
    ),
    "RwkvForCausalLM": ("text", {**_MIXED, "attention_hidden_size": 48, "context_length": 32}),
    "WhisperForConditionalGeneration": (
        "mel",
        {**_BOTH, "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 32},
    ),
    "Wav2Vec2ForSequenceClassification": (
        "wave",
        {**_SIZES, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 24},
    ),
    "CLIPModel": (
        "image and text",
        {
            "text_config": {**_TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 32, **_ENDS},
            "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
            "projection_dim": 24,
        },
    ),
    "ViTForImageClassification": ("image", {**_TOWER, "image_size": 32, "patch_size": 8}),
    "Dinov2ForImageClassification": (
        "image",
        {**_TOWER, "image_size": 32, "patch_size": 8, "mlp_ratio": 2},
    ),
    "SegformerForSemanticSegmentation": ("image", _PYRAMID),
    "SegformerForImageClassification": ("image", _PYRAMID),
    "PoolFormerForImageClassification": (
        "image",
        {"hidden_sizes": (16, 32, 40, 64), "depths": (1, 1, 1, 1), "image_size": 64},
    ),
    "MobileViTForImageClassification": (
        "image",
        {"image_size": 64, "hidden_sizes": (24, 32, 40), "neck_hidden_sizes": (8, 16, 24, 32, 40, 48, 96)},
    ),
}
"""By class: what it reads, and its configuration."""
