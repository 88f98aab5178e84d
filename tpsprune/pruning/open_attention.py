"""Attention whose projections are layers of their own, in the place of ``nn.MultiheadAttention``.

Shape letters: b items, t queries, s keys, e model width, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.pruning.parts import Part, Shape

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@final
class OpenAttention(nn.Module):
    """softmax(q kᵀ · scale + masks) v per head, then ``out_proj``: what ``nn.MultiheadAttention`` computes.

    It is called like that module and gives what it gives, in every mode but two: ``add_bias_kv`` and
    ``add_zero_attn``. q, k, v and the output are linear layers, so that heads can be pruned and statistics
    read; ``num_heads`` may fall, and the widths of a head (that of q and k, that of v) are whatever the
    layers give. ``scale`` remains d^(−1/2) of the head as it was built, however narrow it becomes.

    torch's fused inference path is never taken: it would read a packed weight that is no longer there.
    """

    # Encoder and decoder layers read these to decide whether to bypass ``forward``.
    in_proj_weight = None
    in_proj_bias = None
    bias_k = None
    bias_v = None
    add_zero_attn = False
    _qkv_same_embed_dim = False

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over the weights of ``attention``: the same values, flags, number types and devices."""
        super().__init__()
        self.embed_dim = attention.embed_dim
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.scale = attention.head_dim**-0.5
        tensors = dict(attention.named_parameters(recurse=False))
        shapes = {name: tuple(each.shape) for name, each in tensors.items()}
        held = {
            name: nn.Parameter(part.of(source.detach()).clone(), requires_grad=source.requires_grad)
            for name, part in parts_of_attention("", shapes).items()
            for source in [tensors[part.source]]
        }
        for name in PROJECTIONS:
            weight = held[f"{name}.weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = weight
            layer.bias = held.get(f"{name}.bias")  # type: ignore[assignment]
            self.add_module(name, layer)
        self.out_proj = attention.out_proj
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mixed values and, where wanted, the weights; see ``nn.MultiheadAttention.forward``.

        Raises:
            RuntimeError: ``is_causal`` without ``attn_mask``, as there.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which must be given too")
        batched = query.dim() == 3
        time_axis = 1 if self.batch_first and batched else 0
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q_bhtd, k_bhsd, v_bhsd = (
            self._heads(layer(each), time_axis, batched)
            for layer, each in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if not need_weights and is_causal and key_padding_mask is None:
            mixed_bhtd = functional.scaled_dot_product_attention(
                q_bhtd, k_bhsd, v_bhsd, None, dropout, True, scale=self.scale
            )
        else:
            mask = self._mask(attn_mask, key_padding_mask, q_bhtd)
            if need_weights:
                scores_bhts = (q_bhtd * self.scale) @ k_bhsd.transpose(-2, -1)
                scores_bhts = scores_bhts if mask is None else scores_bhts + mask
                weights = functional.dropout(scores_bhts.softmax(-1), dropout)
                mixed_bhtd = weights @ v_bhsd
            else:
                mixed_bhtd = functional.scaled_dot_product_attention(
                    q_bhtd, k_bhsd, v_bhsd, mask, dropout, scale=self.scale
                )
        output_bte = self.out_proj(mixed_bhtd.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output_bte[0], None if weights is None else weights[0]
        return (output_bte if self.batch_first else output_bte.transpose(0, 1)), weights

    def extra_repr(self) -> str:
        """Return what ``print`` shows after the layers."""
        return f"num_heads={self.num_heads}, scale={self.scale:.4g}, batch_first={self.batch_first}"

    def _heads(self, projected: Tensor, time_axis: int, batched: bool) -> Tensor:
        if not batched:
            projected = projected[:, None]
        split = projected.reshape(*projected.shape[:-1], self.num_heads, -1)
        return split.transpose(1, 2) if time_axis == 1 else split.permute(1, 2, 0, 3)

    def _mask(self, mask: Tensor | None, padding_bs: Tensor | None, q_bhtd: Tensor) -> Tensor | None:
        if mask is not None:
            mask = _additive(mask, q_bhtd)
            if mask.dim() == 3:
                mask = mask.reshape(-1, self.num_heads if len(mask) > 1 else 1, *mask.shape[1:])
        if padding_bs is None:
            return mask
        padding = _additive(padding_bs, q_bhtd)[:, None, None]
        return padding if mask is None else mask + padding


def why_attention_stays_closed(attention: nn.MultiheadAttention) -> str:
    """Return why ``attention`` is not opened, or an empty string."""
    if type(attention) is not nn.MultiheadAttention:
        return f"{type(attention).__name__} may compute something of its own"
    if attention.bias_k is not None:
        return "it adds a key and a value of its own (add_bias_kv)"
    if attention.add_zero_attn:
        return "it attends to a zero of its own (add_zero_attn)"
    if hasattr(attention, "parametrizations"):
        return "its weights are parametrised"
    if attention._forward_hooks or attention._forward_pre_hooks:
        return "hooks are attached to it"
    return ""


def parts_of_attention(name: str, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """Return the tensors that an attention's packed ones fall into: equal parts, one after the other."""
    prefix = f"{name}." if name else ""
    packed = {
        f"{prefix}in_proj_weight": tuple(f"{prefix}{each}.weight" for each in PROJECTIONS),
        **{f"{prefix}{each}_weight": (f"{prefix}{each}.weight",) for each in PROJECTIONS},
        f"{prefix}in_proj_bias": tuple(f"{prefix}{each}.bias" for each in PROJECTIONS),
    }
    found: dict[str, Part] = {}
    for old, names in packed.items():
        if old in shapes:
            length, *rest = shapes[old]
            each = length // len(names)
            for rank, part in enumerate(names):
                found[part] = Part(old, (each, *rest), (slice(rank * each, (rank + 1) * each),))
    return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as what is added to the scores: true elements are not attended to."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
