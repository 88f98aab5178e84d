"""Attention whose projections are layers of their own, in the place of ``nn.MultiheadAttention``.

Shape letters: b items, t queries, s keys, e model width, h heads, d width of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.surgery import copy_model

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
        held: dict[str, nn.Parameter] = {}
        for name, parts in split_of("", tensors).items():
            for part, values in zip(parts, tensors[name].detach().chunk(len(parts)), strict=True):
                held[part] = nn.Parameter(values.clone(), requires_grad=tensors[name].requires_grad)
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


def why_not_opened(attention: nn.MultiheadAttention) -> str:
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


def open_attention(model: nn.Module, names: Sequence[str] | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of ``model`` in which attention modules are open, and the names of those.

    Each ``nn.MultiheadAttention`` is replaced by an ``OpenAttention`` of the same weights. An encoder
    around one no longer packs padded batches into nested tensors: its outputs at padded places are then
    those it gives in training, not zeros.

    Args:
        model: not changed.
        names: the modules to open; ``None`` is all that can be. With nothing to open, a copy is
            returned.

    Raises:
        PruneError: one that is named is not there, is no ``nn.MultiheadAttention`` or cannot be opened.
    """
    opened = copy_model(model)
    found = {name: each for name, each in opened.named_modules() if isinstance(each, nn.MultiheadAttention)}
    uses = Counter(id(each) for module in opened.modules() for each in module.parameters(recurse=False))
    faults = {
        name: why_not_opened(module)
        or next(
            (
                f"its {tensor!r} is also that of another module"
                for tensor, parameter in module.named_parameters()
                if uses[id(parameter)] > 1
            ),
            "",
        )
        for name, module in found.items()
    }
    for name in names or ():
        if name not in found:
            raise PruneError(f"no nn.MultiheadAttention is named {name!r}{did_you_mean(name, found)}")
        if faults[name]:
            raise PruneError(f"the attention {name!r} cannot be opened: {faults[name]}")
    # A model that is itself an attention has no name, and no owner in which to replace it.
    chosen = tuple(name for name in found if (name and not faults[name] if names is None else name in names))
    swaps = {found[name]: OpenAttention(found[name]) for name in chosen}
    for owner in list(opened.modules()):
        for child, module in owner._modules.items():
            if isinstance(module, nn.MultiheadAttention) and module in swaps:
                owner._modules[child] = swaps[module]
    for owner in opened.modules():
        if isinstance(owner, nn.TransformerEncoder) and any(
            isinstance(module, OpenAttention) for module in owner.modules()
        ):
            owner.use_nested_tensor = False
    return opened, chosen


def split_of(name: str, held: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return, for the packed tensors of one closed module, the tensors they fall into when it is opened.

    The parts are equal and follow one another along axis 0. ``held`` are the tensors that there are.
    """
    prefix = f"{name}." if name else ""
    packed = {
        f"{prefix}in_proj_weight": tuple(f"{prefix}{each}.weight" for each in PROJECTIONS),
        **{f"{prefix}{each}_weight": (f"{prefix}{each}.weight",) for each in PROJECTIONS},
        f"{prefix}in_proj_bias": tuple(f"{prefix}{each}.bias" for each in PROJECTIONS),
    }
    return {old: parts for old, parts in packed.items() if old in held}


def opened_shapes(shapes: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors once the attention modules ``names`` are open."""
    opened = dict(shapes)
    for name in names:
        for old, parts in split_of(name, shapes).items():
            length, *rest = opened.pop(old)
            opened.update(dict.fromkeys(parts, (length // len(parts), *rest)))
    return opened


def opened_state(state: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return optimizer state by parameter name as that of the opened model.

    What is held for a packed weight falls into three parts as the weight does; a single number (``step``)
    and whatever is no tensor is held by each of them.
    """
    opened = {name: dict(entries) for name, entries in state.items()}
    for name in names:
        for old, parts in split_of(name, state).items():
            entries = opened.pop(old)
            for rank, part in enumerate(parts):
                opened[part] = {key: _part(value, rank, len(parts)) for key, value in entries.items()}
    return opened


def _part(value: Any, rank: int, parts: int) -> Any:
    if isinstance(value, Tensor) and value.numel() > 1:
        return value.chunk(parts)[rank].clone()
    return value.clone() if isinstance(value, Tensor) else value


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as what is added to the scores: true elements are not attended to."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
