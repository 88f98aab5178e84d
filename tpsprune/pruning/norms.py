"""Norms over units: which modules are, and how one norms over the units that stay, at the old shape.

A unit that goes also leaves the mean and the variance: a norm that hears fewer units is another function of
those that stay. The cut is what it is compared to, so the silenced model norms over the units that stay.

Shape letters: u units.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MaskedNorm", "is_vector_norm", "masked", "norms_over_units", "unmasked"]

TOLERANCE = 1e-2


def norms_over_units(module: nn.Module) -> bool:
    """Return whether a module's answer at one unit depends on all the others through a mean or variance."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, nn.LayerNorm | nn.RMSNorm | MaskedNorm) or is_vector_norm(module)


def is_vector_norm(module: nn.Module) -> bool:
    """Return whether somebody's own module is an RMS or layer norm over its last axis.

    It is known by what it does: without children and buffers, with one or two vectors of one length as
    parameters, it answers random input as the norm does, with the weight as it is or added to one.

    Cost: two calls on 6 rows, of a copy.
    """
    parameters = dict(module.named_parameters(recurse=False))
    vectors = list(parameters.values())
    if (
        not 1 <= len(vectors) <= 2
        or any(vector.ndim != 1 or not len(vector) or len(vector) != len(vectors[0]) for vector in vectors)
        or any(True for _ in module.children())
        or any(True for _ in module.buffers())
        or type(module).forward is nn.Module.forward
        or type(module).__module__.startswith("torch.nn.")
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    x_ru = 1.0 + torch.randn(6, len(vectors[0]), generator=generator)
    drawn = [0.5 + torch.rand(len(vectors[0]), generator=generator) for _ in vectors]
    own = copy.copy(module)
    own._parameters = dict(zip(parameters, cast(list[nn.Parameter], drawn), strict=True))
    try:
        with torch.no_grad():
            answer = own(x_ru)
    # Whatever a module that is no norm raises on such input, it is no norm.
    except Exception:  # noqa: BLE001
        return False
    if not isinstance(answer, Tensor) or answer.shape != x_ru.shape:
        return False
    rms = functional.rms_norm(x_ru, x_ru.shape[-1:])
    layer = functional.layer_norm(x_ru, x_ru.shape[-1:])
    weight, *bias = drawn
    shift = bias[0] if bias else torch.zeros(())
    return any(
        torch.allclose(answer.float(), normed * scale + shift, rtol=TOLERANCE, atol=TOLERANCE)
        for normed in (rms, layer)
        for scale in (weight, 1.0 + weight)
    )


class MaskedNorm(nn.Module):
    """A norm over the units that stay: theirs as if there were no others, zero for those that go.

    It holds the parameters of the norm it stands for under the same names, and ``unmasked`` gives that
    norm back. Whatever else the model's code asks the norm for, it is asked for.
    """

    stays: Tensor

    def __init__(self, norm: nn.Module, units: int) -> None:
        super().__init__()
        for name, parameter in norm._parameters.items():
            self.register_parameter(name, parameter)
        device = next((parameter.device for parameter in norm.parameters()), None)
        self.register_buffer("stays", torch.ones(units, dtype=torch.bool, device=device), persistent=False)
        # In a list, or its parameters would have two names; last, or it would answer for names not yet taken.
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
        """Norm the units that stay; ``x`` has them on the last axis, or on axis 1 where the norm has."""
        index = self.stays.nonzero().squeeze(1).to(x.device)
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
        units = len(self.stays)
        last = x.ndim - 1
        if isinstance(self._norm[0], nn.GroupNorm):
            return 1
        if x.shape[-1] != units or (x.ndim == 4 and x.shape[1] == units and self._takes_images):
            return 1
        return last

    @property
    def _takes_images(self) -> bool:
        """Whether somebody's own norm wants the units of an image on axis 1: one of other sizes says so."""
        units = len(self.stays)
        image = self.stays.new_zeros((1, units, units + 1, units + 2)).to(next(self.parameters(), self.stays))
        try:
            self._norm[0](image.float() if image.dtype == torch.bool else image)
        except Exception:  # noqa: BLE001
            return False
        return True


def masked(norm: nn.Module, units: int, gone: Tensor) -> MaskedNorm:
    """Return ``norm`` over ``units`` elements without those of index ``gone``; an earlier mask stays on."""
    answer = norm if isinstance(norm, MaskedNorm) else MaskedNorm(norm, units)
    answer.stays[gone.to(answer.stays.device)] = False
    return answer


def unmasked(module: MaskedNorm) -> nn.Module:
    """Return the norm a masked one stands for, with its present parameters."""
    norm = module._norm[0]
    norm._parameters.update(module._parameters)
    norm.train(module.training)
    return norm
