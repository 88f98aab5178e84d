"""The layers that can be cut: which tensors hold their units, and along which axis: known only here."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeGuard, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from tpsprune.pruning.groups import Consumer
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.norms import MaskedNorm, is_vector_norm, norms_over_units

__all__ = [
    "MIXERS",
    "Mixer",
    "Side",
    "channels_first",
    "deafen",
    "fault_of",
    "heard",
    "input_axis",
    "is_depthwise",
    "is_grouped",
    "is_mixer",
    "is_transposed_linear",
    "length",
    "mixer",
    "refit",
    "set_heard",
    "tensor_axes",
    "tensor_named",
    "units_out",
]

Side: TypeAlias = Literal["in", "out", "both"]

Mixer: TypeAlias = nn.Linear | _ConvNd
"""Stands for Hugging Face's Conv1D too, which has the same tensors under the same names."""

MIXERS = (nn.Linear, _ConvNd)
NORMS = (_BatchNorm, _InstanceNorm)
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
CUTTABLE = (*MIXERS, *NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether this is the linear layer with a weight of (in, out) that Hugging Face calls Conv1D."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(getattr(module, "nf", None), int)
        and isinstance(weight, Tensor)
        and weight.ndim == 2
    )


def is_mixer(module: nn.Module) -> TypeGuard[Mixer]:
    """Return whether every unit a layer puts out is made from many that it reads."""
    return isinstance(module, MIXERS) or is_transposed_linear(module)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each unit of a convolution is made from the unit of the same number alone."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def is_grouped(module: nn.Module) -> TypeGuard[_ConvNd]:
    """Return whether a convolution is made of several that see nothing of each other, each of its own."""
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def channels_first(module: nn.Module) -> bool:
    """Return whether a mixing layer has its units on axis 1 of what it reads, else on the last."""
    return isinstance(module, _ConvNd)


def fault_of(module: nn.Module) -> str:
    """Return why ``module`` cannot lose units, or an empty string."""
    kind = ("nn." if type(module).__module__.startswith("torch.nn") else "") + type(module).__name__
    known = isinstance(module, CUTTABLE) or is_transposed_linear(module)
    if not known and not is_vector_norm(module):
        return f"{kind} cannot be cut"
    if hasattr(module, "parametrizations"):
        return f"the weight of this {kind} is parametrised"
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    strange = sorted(tensors - TENSORS) if known else []
    if strange:
        return f"this {kind} holds a tensor of its own, {strange[0]!r}"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"this {kind} norms over more than units"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm is scaled over all its units"
    return ""


def tensor_axes(module: nn.Module, side: Side) -> dict[str, int]:
    """Return the axis of the units on one side of a layer, by tensor name.

    ``both`` is for layers that work on each unit by itself or norm over them, and for embeddings. A
    tensor that the layer does not have may be named: the fold can give a layer a bias.
    """
    if isinstance(module, NORMS):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    if norms_over_units(module) or isinstance(module, nn.GroupNorm):
        return dict.fromkeys(dict(module.named_parameters()) or ("weight",), 0)
    if isinstance(module, nn.PReLU):
        return {"weight": 0} if module.num_parameters > 1 else {}
    if isinstance(module, nn.Embedding):
        return {"weight": 1}
    if side == "in":
        return {"weight": input_axis(module)}
    turned = is_transposed_linear(module) or (isinstance(module, _ConvNd) and module.transposed)
    return {"weight": 1 if turned and not is_depthwise(module) else 0, "bias": 0}


def mixer(model: nn.Module, name: str) -> Mixer:
    """Return a layer that is known to mix units: linear, or a convolution."""
    return cast(Mixer, model.get_submodule(name))


def tensor_named(model: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer by its full name; none where its module does without (a bias)."""
    owner, _, tensor = name.rpartition(".")
    return cast(Tensor | None, getattr(model.get_submodule(owner), tensor, None))


def input_axis(module: nn.Module) -> int:
    """Return the axis of a mixing layer's weight that runs over its input."""
    turned = is_transposed_linear(module) or (isinstance(module, _ConvNd) and module.transposed)
    return 0 if turned else 1


def heard(module: Mixer, consumer: Consumer, width: int) -> Tensor:
    """Return a copy of the weights by which ``consumer`` hears ``width`` units.

    The axes are (units · features, positions, outputs, everything else the weight runs over); of a
    consumer confined to some outputs, only these. Cost: a copy of the weight.
    """
    index, rows = _rows(module, consumer, width)
    taken = rows[index.flatten()]
    return taken.reshape(width * consumer.features, consumer.positions, *taken.shape[1:])


def set_heard(module: Mixer, consumer: Consumer, width: int, values: Tensor) -> None:
    """Write back, in place, weights laid out as ``heard`` gives them."""
    index, rows = _rows(module, consumer, width)
    rows[index.flatten()] = values.reshape(index.numel(), *rows.shape[1:]).to(rows.dtype)


def deafen(module: Mixer, consumer: Consumer, width: int, removed: list[int]) -> None:
    """Set to zero, in place, the weights by which ``consumer`` hears the units ``removed``."""
    index, rows = _rows(module, consumer, width)
    rows[index[removed].flatten()] = 0.0


def _rows(module: Mixer, consumer: Consumer, width: int) -> tuple[Tensor, Tensor]:
    """Return the elements of each unit, and a view of the weight with its input first and outputs second.

    A convolution in groups has, for each of its outputs, weights for the inputs of one group only.
    """
    rows = module.weight.detach().movedim(input_axis(module), 0)
    index = element_index(consumer, width, rows.device) % len(rows)
    if consumer.outputs is not None:
        low, high = consumer.outputs
        rows = rows.narrow(1, low, high - low)
    return index, rows


def units_out(module: nn.Module) -> int:
    """Return how many elements a producer says it puts out."""
    return length(module, "out")


def length(module: nn.Module, side: Side) -> int:
    """Return how many elements a layer says it has on one side: 0 where it does not say."""
    if isinstance(module, MaskedNorm):
        return len(module.stays)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if is_transposed_linear(module):
        return len(cast(Tensor, module.weight)) if side == "in" else cast(int, module.nf)
    if isinstance(module, _ConvNd):
        return module.in_channels if side == "in" else module.out_channels
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return int(getattr(module, "num_features", 0) or len(next(module.parameters(), ())))


def refit(module: nn.Module) -> None:
    """Set the sizes a layer remembers about itself to those of its tensors.

    The number of groups of a grouped convolution or norm is an attribute of the cut, set before.
    """
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd):
        _refit_convolution(module)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif is_transposed_linear(module):
        sizes: Any = module
        inputs, sizes.nf = sizes.weight.shape
        if hasattr(module, "nx"):
            sizes.nx = inputs
    elif isinstance(module, NORMS):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = (len(module.weight),)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)


def _refit_convolution(module: _ConvNd) -> None:
    if is_depthwise(module):
        module.groups = module.in_channels = module.out_channels = len(module.weight)
        return
    before, after = (0, 1) if module.transposed else (1, 0)
    sizes = list(module.weight.shape[:2])
    sizes[1] *= module.groups
    module.in_channels, module.out_channels = sizes[before], sizes[after]
