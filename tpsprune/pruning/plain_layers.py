"""Plain layers in the place of those that compute their weight anew on every call.

Weight norm and other parametrisations, and weight-standardised convolutions: in each a unit's weights depend
on numbers that no unit owns, or on all inputs, so that nothing can be pruned. The plain layer has the weight
as it is computed now; what made it is gone.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from tpsprune.numerics.forward import HALF_PRECISION, evaluation_mode, fixed_seed
from tpsprune.pruning.parts import Part, Shape

MULTIPLIES: Final = ("linear", "conv1d", "conv2d", "conv3d")
CLOSE: Final = 1e-4
HALF_CLOSE: Final = 2e-2


def is_computed(module: nn.Module) -> bool:
    """Return whether a layer multiplies by a weight that is not the parameter of that name.

    Cost: a call on a few random numbers where its class has a ``forward`` of its own, else none.
    """
    if not isinstance(module, nn.Linear | _ConvNd):
        return False
    if parametrize.is_parametrized(module):
        return True
    if type(module).forward is _torch_class(module).forward or isinstance(module, _ConvTransposeNd):
        return False
    used = _weight_used(module)
    return used is not None and used is not module.weight


def why_it_stays_computed(module: nn.Module, *, tries: bool = True) -> str:
    """Return why no plain layer can take the place of such a one, or an empty string.

    ``tries``: compare what both give, on other numbers than the weight was computed with.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks are attached to it"
    shapes = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    parts = parts_of_plain("", shapes)
    if not parts:
        return "its weight is computed from nothing that it holds"
    try:
        plain = plain_layer(module)
        for name, tensor in plain.named_parameters():
            if name not in parts or tuple(tensor.shape) != parts[name].shape:
                return f"its {name!r} is computed from numbers of another shape"
        if not tries:
            return ""
        tolerance = HALF_CLOSE if cast(Any, plain).weight.dtype in HALF_PRECISION else CLOSE
        x = _some_input(plain, seed=1)
        with torch.no_grad(), evaluation_mode(module):
            wanted, found = module(x), plain(x)
        alike = wanted.shape == found.shape and torch.allclose(wanted, found, rtol=tolerance, atol=tolerance)
    # Any code may compute a weight, or take and give something else than a tensor.
    except Exception as error:  # noqa: BLE001
        return f"its weight cannot be computed apart from it ({type(error).__name__})"
    return "" if alike else "it computes more than a product with its weight"


def plain_layer(module: nn.Module) -> nn.Module:
    """Return the layer of torch's class with the weight that ``module`` multiplies by now."""
    layer: Any = object.__new__(_plain_class(module))
    layer.__dict__.update({name: copy.copy(value) for name, value in vars(module).items()})
    with torch.no_grad(), evaluation_mode(module):
        made = {name: value for name, value in _made(module).items() if value is not None}
    trains = any(each.requires_grad for each in module.parameters())
    kept = {name: each for name, each in module.named_parameters(recurse=False) if name in ("weight", "bias")}
    layer._parameters = {"weight": None, "bias": None, **kept} | {
        name: nn.Parameter(value.detach().clone(), requires_grad=trains) for name, value in made.items()
    }
    layer._buffers, layer._modules = {}, {}
    return cast(nn.Module, layer)


def _made(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the tensors that a layer computes on every call, by name."""
    if parametrize.is_parametrized(module):
        return {name: getattr(module, name) for name in cast(Any, module).parametrizations}
    return {"weight": _weight_used(module)}


def parts_of_plain(name: str, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """Return weight and bias of the plain layer that takes a module's place, and where they come from."""
    prefix = f"{name}." if name else ""
    found: dict[str, Part] = {}
    for tensor in ("weight", "bias"):
        of_tensor = f"{prefix}parametrizations.{tensor}."
        originals = sorted(each for each in shapes if each.startswith(f"{of_tensor}original"))
        if originals:  # Of weight norm the second is the direction, of the weight's shape.
            found[f"{prefix}{tensor}"] = Part(originals[-1], shapes[originals[-1]])
        elif (same := f"{prefix}{tensor}") in shapes:
            found[same] = Part(same, shapes[same], () if tensor == "bias" else None)
    return found if f"{prefix}weight" in found else {}


def _torch_class(module: nn.Module) -> Any:
    """Return the class of torch's that a layer is of, or is derived from."""
    return next(each for each in type(module).__mro__ if each.__module__.startswith("torch.nn.modules."))


def _plain_class(module: nn.Module) -> Any:
    """Return the class whose ``forward`` multiplies and pads as this does, and no more.

    timm's weight-standardised layers that pad as TensorFlow does have a plain counterpart there.
    """
    of_timm = isinstance(module, nn.Conv2d) and type(module).__module__.startswith("timm.")
    if of_timm and type(module).__name__.endswith("Same"):
        return cast(Any, sys.modules["timm.layers"]).Conv2dSame
    return _torch_class(module)


def _some_input(module: nn.Module, seed: int = 0) -> Tensor:
    """Return a few random numbers that a layer can be called on."""
    layer: Any = module
    like = layer.weight
    with fixed_seed(seed):
        if isinstance(module, nn.Linear):
            return torch.randn(3, module.in_features).to(like)
        sides = [
            max(8, 2 * stride + dilation * (kernel - 1))
            for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        ]
        return torch.randn(1, layer.in_channels, *sides).to(like)


class _Products(TorchFunctionMode):
    """Keeps the weights of linear products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in MULTIPLIES:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return function(*args, **kwargs)


def _weight_used(module: nn.Module) -> Tensor | None:
    """Return the weight of the one product that a layer makes; none where there is not just one."""
    products = _Products()
    try:
        with torch.no_grad(), evaluation_mode(module), products:
            module(_some_input(module))
    # A layer of unknown code that does not run on such input is none of those sought.
    except Exception:  # noqa: BLE001
        return None
    return products.weights[0] if len(products.weights) == 1 else None
