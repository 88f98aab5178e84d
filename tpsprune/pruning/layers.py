"""The layers that can be cut: which tensors hold their units, and along which axis."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = [
    "MIXERS",
    "Mixer",
    "Side",
    "fault_of",
    "input_axis",
    "mixer",
    "refit",
    "tensor_axes",
    "units_first",
    "units_out",
]

Side: TypeAlias = Literal["in", "out", "both"]

Mixer: TypeAlias = nn.Linear | _ConvNd

MIXERS = (nn.Linear, _ConvNd)
NORMS = (_BatchNorm, _InstanceNorm)
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
CUTTABLE = (*MIXERS, *NORMS, nn.PReLU, nn.Embedding)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each unit of a convolution is made from the unit of the same number alone."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def fault_of(module: nn.Module) -> str:
    """Return why ``module`` cannot lose units, or an empty string."""
    kind = ("nn." if type(module).__module__.startswith("torch.nn") else "") + type(module).__name__
    if not isinstance(module, CUTTABLE):
        return f"{kind} cannot be cut"
    if hasattr(module, "parametrizations"):
        return f"the weight of this {kind} is parametrised"
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    strange = sorted(tensors - TENSORS)
    if strange:
        return f"this {kind} holds a tensor of its own, {strange[0]!r}"
    if isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module):
        return "grouped convolutions are left whole"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm is scaled over all its units"
    return ""


def tensor_axes(module: nn.Module, side: Side) -> dict[str, int]:
    """Return the axis of the units on one side of a layer, by tensor name.

    ``both`` is for layers that work on each unit by itself, and for embeddings. A tensor that the layer
    does not have may be named: the fold can give a layer a bias.
    """
    if isinstance(module, NORMS):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    if isinstance(module, nn.PReLU):
        return {"weight": 0} if module.num_parameters > 1 else {}
    if isinstance(module, nn.Embedding):
        return {"weight": 1}
    if side == "in":
        return {"weight": input_axis(module)}
    transposed = isinstance(module, _ConvNd) and module.transposed
    return {"weight": 1 if transposed and not is_depthwise(module) else 0, "bias": 0}


def mixer(model: nn.Module, name: str) -> Mixer:
    """Return a layer that is known to mix units: linear, or a convolution."""
    return cast(Mixer, model.get_submodule(name))


def input_axis(module: nn.Module) -> int:
    """Return the axis of a mixing layer's weight that runs over its input."""
    return 0 if isinstance(module, _ConvNd) and module.transposed else 1


def units_first(weight: Tensor, axis: int, offset: int, width: int, block: int) -> Tensor:
    """Return a view of the weights that read ``width`` units: (units, block, everything else)."""
    moved = weight.movedim(axis, 0)[offset : offset + width * block]
    return moved.reshape(width, block, *moved.shape[1:])


def units_out(module: nn.Module) -> int:
    """Return how many units a producer says it puts out."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.out_features if isinstance(module, nn.Linear) else cast(_ConvNd, module).out_channels


def refit(module: nn.Module) -> None:
    """Set the sizes a layer remembers about itself to those of its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd):
        if module.groups > 1:
            module.groups = module.in_channels = module.out_channels = len(module.weight)
        elif module.transposed:
            module.in_channels, module.out_channels = module.weight.shape[:2]
        else:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
