"""Layers of low rank: a linear layer or a convolution as two, into fewer channels and out of them.

Shape letters: p features of a layer (inputs times kernel places), q outputs, r the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import widened
from tpsprune.numerics.low_rank_layer import LowRank, low_rank_like
from tpsprune.pruning.layers import Mixer, is_transposed_linear, mixer
from tpsprune.records import Positive

SPLIT: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The classes whose layers are split, derived ones not, and Hugging Face's Conv1D."""
DOWN: Final = "down"
UP: Final = "up"
Entries = TypeVar("Entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Factored:
    """A layer that a plan splits in two, and the rank; ``turned`` where its weight is (in, out)."""

    layer: str
    rank: Positive
    turned: bool = False


def why_it_is_not_split(module: nn.Module) -> str:
    """Return why a layer is not one that can be split, or an empty string."""
    if type(module) not in SPLIT and not is_transposed_linear(module):
        return f"{type(module).__name__} is not split"
    if getattr(module, "groups", 1) > 1:
        return "a convolution in groups is not split"
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks are attached to it"
    return ""


def factor_layers(model: nn.Module, factored: Sequence[Factored]) -> None:
    """Split layers in place, each into the two of its rank that come nearest to its weight.

    Exact where the weight has that rank. Flags, number type, device and layout are the layer's; the bias is
    the same parameter. A weight without values (``meta``, or not finite as of a shell) gives one of zeros.

    Raises:
        PruneError: there is no such layer, it cannot be split, or its rank is no less than the one given.

    Cost: an eigendecomposition of q × q numbers for each layer.
    """
    for each in factored:
        try:
            module = model.get_submodule(each.layer)
        except AttributeError:
            raise PruneError(f"the plan splits {each.layer!r}, and the model has no such layer") from None
        if reason := why_it_is_not_split(module):
            raise PruneError(f"the plan splits {each.layer!r}: {reason}")
        layer = mixer(model, each.layer)
        if is_transposed_linear(layer) != each.turned or each.rank > min(_matrix(layer).shape):
            raise PruneError(f"the plan splits {each.layer!r}, which has another layout or a smaller rank")
        model.set_submodule(each.layer, _split(layer, each.rank))


def _matrix(layer: Mixer) -> Tensor:
    weight = layer.weight.detach()
    return weight.T if is_transposed_linear(layer) else weight.flatten(1)


def _split(layer: Mixer, rank: int) -> LowRank:
    pair = low_rank_like(layer, rank)
    weight = layer.weight
    for part, values in zip((pair.down, pair.up), _factors(_matrix(layer), rank), strict=True):
        shaped = values.to(weight.dtype).reshape(part.weight.shape)
        if weight.ndim == 4 and not weight.is_contiguous():
            shaped = shaped.contiguous(memory_format=torch.channels_last)
        part.weight = nn.Parameter(shaped, requires_grad=weight.requires_grad)
    return pair


def _factors(weight_qp: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (r, p) and (q, r) nearest to a weight, of equal size."""
    q, p = weight_qp.shape
    if weight_qp.is_meta or not bool(weight_qp.isfinite().all()):
        return weight_qp.new_zeros(rank, p), weight_qp.new_zeros(q, rank)
    wide_qp = widened(weight_qp)
    squares_q, directions_qq = torch.linalg.eigh(wide_qp @ wide_qp.mT)
    up_qr = directions_qq[:, q - rank :]
    size_r = squares_q[q - rank :].clamp_min(0.0) ** 0.25
    size_r = torch.where(size_r > 0.0, size_r, torch.ones_like(size_r))
    return (up_qr.mT @ wide_qp) / size_r[:, None], up_qr * size_r


def factored_shapes(
    shapes: Mapping[str, tuple[int, ...]], factored: Sequence[Factored]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors once layers are split."""
    found = dict(shapes)
    for each in factored:
        size = found.pop(f"{each.layer}.weight")
        outputs, inputs = (size[1], (size[0],)) if each.turned else (size[0], size[1:])
        found[f"{each.layer}.{DOWN}.weight"] = (each.rank, *inputs)
        found[f"{each.layer}.{UP}.weight"] = (outputs, each.rank, *(1 for _ in inputs[1:]))
        if (bias := found.pop(f"{each.layer}.bias", None)) is not None:
            found[f"{each.layer}.{UP}.bias"] = bias
    return found


def factored_entries(entries: Mapping[str, Entries], factored: Sequence[Factored]) -> dict[str, Entries]:
    """Return what is held by tensor name as of the split layers: of their biases alone."""
    found = dict(entries)
    for each in factored:
        found.pop(f"{each.layer}.weight", None)
        if (bias := found.pop(f"{each.layer}.bias", None)) is not None:
            found[f"{each.layer}.{UP}.bias"] = bias
    return found
