"""The layers that can be pruned: which tensors hold their units, and along which axis.

A norm over units is a special case: a unit that is pruned also leaves the mean and the variance, so the norm
is another function of those kept. The masked model, which a pruned one is compared to, therefore norms over
the units kept (``MaskedNorm``).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from tpsprune.pruning.groups import Consumer, element_index

Side: TypeAlias = Literal["in", "out", "both"]

Mixer: TypeAlias = nn.Linear | _ConvNd
"""Stands for Hugging Face's Conv1D too, which has the same tensors under the same names."""

MIXERS = (nn.Linear, _ConvNd)
NORMS = (_BatchNorm, _InstanceNorm)
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
PRUNABLE = (*MIXERS, *NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
NORM_TOLERANCE = 1e-2


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
    """Return whether every unit of a layer's output is made from many units of its input."""
    return isinstance(module, MIXERS) or is_transposed_linear(module)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each unit of a convolution is made from the unit of the same number alone."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def is_grouped(module: nn.Module) -> TypeGuard[_ConvNd]:
    """Return whether a convolution consists of several, each with inputs and outputs of its own."""
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def channels_first(module: nn.Module) -> bool:
    """Return whether a mixing layer has its units on axis 1 of its input, else on the last."""
    return isinstance(module, _ConvNd)


def norms_over_units(module: nn.Module) -> bool:
    """Return whether a module's output at one unit depends on all the others through a mean or variance."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, nn.LayerNorm | nn.RMSNorm | MaskedNorm) or is_vector_norm(module)


def is_vector_norm(module: nn.Module) -> bool:
    """Return whether a module of unknown class is an RMS or layer norm over its last axis.

    It is recognised by its outputs: without children and buffers, with one or two vectors of one length as
    parameters, its output on random input is that of the norm, with the weight as it is or added to one.

    Cost: two calls on 6 rows, of a copy.
    """
    parameters = dict(module.named_parameters(recurse=False))
    lengths = {len(vector) if vector.ndim == 1 else 0 for vector in parameters.values()}
    if (
        not 1 <= len(parameters) <= 2
        or len(lengths) > 1
        or 0 in lengths
        or any(True for _ in module.children())
        or any(True for _ in module.buffers())
        or isinstance(module, nn.GroupNorm)  # On rows without places one of a single group looks like it.
        or type(module).forward is nn.Module.forward
        or type(module).__module__.startswith("torch.nn.")
    ):
        return False
    (units,) = lengths
    generator = torch.Generator().manual_seed(0)
    x_ru = 1.0 + torch.randn(6, units, generator=generator)
    random = [0.5 + torch.rand(units, generator=generator) for _ in parameters]
    own = copy.copy(module)
    own._parameters = dict(zip(parameters, cast(list[nn.Parameter], random), strict=True))
    try:
        with torch.no_grad():
            output = own(x_ru)
    # Whatever a module that is no norm raises on such input, it is no norm.
    except Exception:  # noqa: BLE001
        return False
    if not isinstance(output, Tensor) or output.shape != x_ru.shape:
        return False
    weight, *bias = random
    shift = bias[0] if bias else torch.zeros(())
    return any(
        torch.allclose(
            output.float(),
            norm(x_ru, x_ru.shape[-1:]) * scale + shift,
            rtol=NORM_TOLERANCE,
            atol=NORM_TOLERANCE,
        )
        for norm in (functional.rms_norm, functional.layer_norm)
        for scale in (weight, 1.0 + weight)
    )


def fault_of(module: nn.Module) -> str:
    """Return why ``module`` cannot lose units, or an empty string."""
    kind = ("nn." if type(module).__module__.startswith("torch.nn") else "") + type(module).__name__
    standard = isinstance(module, PRUNABLE) or is_transposed_linear(module)
    if not standard and not is_vector_norm(module):
        return f"{kind} cannot be pruned"
    if hasattr(module, "parametrizations"):
        return f"the weight of this {kind} is parametrised"
    # A single number (a scale of the whole) has no unit's element.
    held = (*module.named_parameters(), *module.named_buffers())
    tensors = {name for name, tensor in held if tensor.numel() > 1}
    if standard and (strange := sorted(tensors - TENSORS)):
        return f"this {kind} holds a tensor of its own, {strange[0]!r}"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"this {kind} norms over more than units"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm is scaled over all its units"
    return ""


def tensor_axes(module: nn.Module, side: Side) -> dict[str, int]:
    """Return the axis of the units on one side of a layer, by tensor name.

    ``both`` is for layers that work on each unit by itself or norm over them, and for embeddings. A
    tensor that the layer does not have may be named: compensation can give a layer a bias.
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
        return {"weight": _input_axis(module)}
    return {"weight": 0 if is_depthwise(module) else 1 - _input_axis(module), "bias": 0}


def _input_axis(module: nn.Module) -> int:
    """Return the axis of a mixing layer's weight that runs over its input."""
    turned = is_transposed_linear(module) or (isinstance(module, _ConvNd) and module.transposed)
    return 0 if turned else 1


def mixer(model: nn.Module, name: str) -> Mixer:
    """Return a layer that mixes units, typed as such: linear, or a convolution."""
    return cast(Mixer, model.get_submodule(name))


def tensor_named(model: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer by its full name; none where its module does without (a bias)."""
    owner, _, tensor = name.rpartition(".")
    return cast(Tensor | None, getattr(model.get_submodule(owner), tensor, None))


def consumer_weights(module: Mixer, consumer: Consumer, width: int) -> Tensor:
    """Return a copy of the weights by which ``consumer`` reads ``width`` units.

    The axes are (units · features, positions, outputs, everything else the weight runs over); of a
    consumer confined to some outputs, only these. Cost: a copy of the weight.
    """
    index, rows = _consumer_rows(module, consumer, width)
    taken = rows[index.flatten()]
    return taken.reshape(width * consumer.features, consumer.positions, *taken.shape[1:])


def set_consumer_weights(module: Mixer, consumer: Consumer, width: int, values: Tensor) -> None:
    """Write back, in place, weights laid out as ``consumer_weights`` gives them."""
    index, rows = _consumer_rows(module, consumer, width)
    rows[index.flatten()] = values.reshape(index.numel(), *rows.shape[1:]).to(rows.dtype)


def mask_consumer(module: Mixer, consumer: Consumer, width: int, removed: list[int]) -> None:
    """Set to zero, in place, the weights by which ``consumer`` reads the units ``removed``."""
    index, rows = _consumer_rows(module, consumer, width)
    rows[index[removed].flatten()] = 0.0


def _consumer_rows(module: Mixer, consumer: Consumer, width: int) -> tuple[Tensor, Tensor]:
    """Return the elements of each unit, and a view of the weight with its input first and outputs second.

    A convolution in groups has, for each of its outputs, weights for the inputs of one group only.
    """
    rows = module.weight.detach().movedim(_input_axis(module), 0)
    index = element_index(consumer, width, rows.device) % len(rows)
    if consumer.outputs is not None:
        low, high = consumer.outputs
        rows = rows.narrow(1, low, high - low)
    return index, rows


def length(module: nn.Module, side: Side) -> int:
    """Return how many elements a layer has on one side by the sizes it stores: 0 where it stores none."""
    if isinstance(module, MaskedNorm):
        return len(module.kept)
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


def update_sizes(module: nn.Module) -> None:
    """Set the sizes that a layer stores about itself to those of its tensors.

    The number of groups of a grouped convolution or norm is an attribute of the group, set before.
    """
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_depthwise(module):
        convolution = cast(_ConvNd, module)
        convolution.groups = convolution.in_channels = convolution.out_channels = len(convolution.weight)
    elif isinstance(module, _ConvNd):
        sizes = [module.weight.shape[0], module.weight.shape[1] * module.groups]
        module.in_channels, module.out_channels = sizes if module.transposed else reversed(sizes)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif is_transposed_linear(module):
        conv1d: Any = module
        inputs, conv1d.nf = conv1d.weight.shape
        if hasattr(module, "nx"):
            conv1d.nx = inputs
    elif isinstance(module, NORMS):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = (len(module.weight),)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)


class MaskedNorm(nn.Module):
    """A norm over the units kept: theirs as if there were no others, zero for the pruned ones.

    It holds the parameters of the norm it replaces under the same names, and ``unmask_norm`` gives that
    norm back. Every other attribute is that of the norm.
    """

    kept: Tensor

    def __init__(self, norm: nn.Module, units: int) -> None:
        super().__init__()
        for name, parameter in norm._parameters.items():
            self.register_parameter(name, parameter)
        device = next((parameter.device for parameter in norm.parameters()), None)
        self.register_buffer("kept", torch.ones(units, dtype=torch.bool, device=device), persistent=False)
        # In a list, or its parameters would have two names; last, because ``__getattr__`` needs it.
        self._norm = [norm]
        self.train(norm.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_norm":
                raise
            return getattr(self._norm[0], name)

    def forward(self, x: Tensor) -> Tensor:
        """Norm the units kept; ``x`` has them on the last axis, or on axis 1 where the norm has."""
        index = self.kept.nonzero().squeeze(1).to(x.device)
        axis = self._axis(x)
        own = copy.copy(self._norm[0])
        own._parameters = {
            name: None if parameter is None else cast(nn.Parameter, parameter.index_select(0, index))
            for name, parameter in self._parameters.items()
        }
        sizes: Any = own
        if isinstance(own, nn.GroupNorm):
            own.num_channels = len(index)
        elif hasattr(own, "normalized_shape"):
            sizes.normalized_shape = (len(index),)
        normed = own(x.index_select(axis, index))
        return x.new_zeros(x.shape, dtype=normed.dtype).index_copy(axis, index, normed)

    def _axis(self, x: Tensor) -> int:
        units = len(self.kept)
        image = x.ndim == 4 and x.shape[1] == units
        if isinstance(self._norm[0], nn.GroupNorm) or x.shape[-1] != units or (image and self._takes_images):
            return 1
        return x.ndim - 1

    @property
    def _takes_images(self) -> bool:
        """Whether a norm of unknown class takes the units of an image on axis 1, tried on an image."""
        units = len(self.kept)
        image = self.kept.new_zeros((1, units, units + 1, units + 2)).to(next(self.parameters(), self.kept))
        try:
            self._norm[0](image.float() if image.dtype == torch.bool else image)
        except Exception:  # noqa: BLE001
            return False
        return True


def mask_norm(norm: nn.Module, units: int, removed: Tensor) -> MaskedNorm:
    """Return ``norm`` over ``units`` elements but those of index ``removed`` and those masked before."""
    masked = norm if isinstance(norm, MaskedNorm) else MaskedNorm(norm, units)
    masked.kept[removed.to(masked.kept.device)] = False
    return masked


def unmask_norm(module: MaskedNorm) -> nn.Module:
    """Return the norm that a masked one replaces, with its present parameters."""
    norm = module._norm[0]
    norm._parameters.update(module._parameters)
    norm.train(module.training)
    return norm
