"""Oscillators with phases of their own: single weights (``weights``) or units of a layer (``neurons``).

Shape letters: ``n`` oscillators of a group (weights of a tensor, units of a layer), ``d`` fan-in, ``2`` the
two axes of the plane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import order_parameters, triadic_energy, triadic_force
from tpsprune.records import TaskFacts
from tpsprune.tps.variant import Group, Variant, full_precision, trainable_weights, working_precision

_WEIGHT_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_UNIT_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LEAST_UNITS = 3
_LEAST_FAN_IN = 2


class PhaseVariant(Variant, ABC):
    """A variant whose oscillators have phases of their own, which can be moved without the loss."""

    _weights: tuple[nn.Parameter, ...]

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The parameters that hold the phases, one a group, in the order of ``groups``."""
        return self._weights

    @abstractmethod
    def phases(self) -> Iterator[Tensor]:
        """Yield the phases of each group, flat, in the order of ``groups``; differentiable."""

    @abstractmethod
    def move(self, step_sizes: Sequence[float]) -> None:
        """Move each phase by its group's step size times its force F, in place and without gradients."""

    def energies(self, label_i: Tensor | None = None) -> Tensor:  # noqa: ARG002 -- weights have no labels
        """Return the triadic energy of each group."""
        return torch.stack([triadic_energy(phases_n) for phases_n in self.phases()])

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return energy and the moduli of both order parameters by group."""
        pairs = [order_parameters(phases_n) for phases_n in self.phases()]
        first_g = torch.stack([first for first, _ in pairs])
        second_g = torch.stack([second for _, second in pairs])
        energy_g = 1.0 - (first_g.square() * second_g.conj()).real
        return {"tps_energy": energy_g, "tps_z1": first_g.abs(), "tps_z2": second_g.abs()}


@final
class Weights(PhaseVariant):
    """The literal reading of "weight triplets", our instantiation: θ = w / rms(w), with rms detached.

    A group is the weight tensor of one linear, convolution or embedding layer (an embedding is a linear
    layer on one-hot tokens); biases and norms are left alone. The phase of a Gaussian tensor has |z₁| ≈
    0.61, so that the force acts at once, much like a shrinkage that is periodic in w. Invariant under
    scaling a tensor; does not see where in the tensor a weight sits. Cost: one sine and one cosine of every
    weight.
    """

    name: ClassVar[str] = "weights"
    needs: ClassVar[str] = "a trainable linear, convolution or embedding layer"

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:  # noqa: ARG004 -- any task will do
        """Return what is not here, or ``None``."""
        return None if trainable_weights(model, _WEIGHT_KINDS) else "this model has none"

    def __init__(self, model: nn.Module) -> None:
        weights = trainable_weights(model, _WEIGHT_KINDS)
        self.groups = tuple(Group(name, weight.numel()) for name, weight in weights.items())
        self._weights = tuple(weights.values())

    def phases(self) -> Iterator[Tensor]:
        """Yield w / rms(w) of each tensor, flat."""
        for weight in self._weights:
            flat_n = working_precision(weight).flatten()
            yield flat_n / _root_mean_square(flat_n)

    @torch.no_grad()
    def move(self, step_sizes: Sequence[float]) -> None:
        """Add step size · F · rms(w) to each tensor: a phase of w / rms moves by step size · F."""
        for weight, step_size in zip(self._weights, step_sizes, strict=True):
            flat_n = working_precision(weight).flatten()
            rms = _root_mean_square(flat_n)
            force_n = triadic_force(flat_n / rms)
            weight.add_((force_n * (step_size * rms)).view_as(weight))


def _root_mean_square(flat_n: Tensor) -> Tensor:
    """Return the detached root mean square, kept off zero so that an all-zero tensor has phases zero."""
    values_n = flat_n.detach()
    return values_n.square().mean().sqrt().clamp_min(torch.finfo(values_n.dtype).tiny)


def leading_plane(weight_nd: Tensor) -> Tensor:
    """Return the two leading right singular vectors of the rows, as orthonormal columns ``plane_d2``.

    Signs are fixed: the entry largest in size of each column is positive. Energy, force and motion do not
    depend on signs or on the order of the two (a reflection of all phases); only equal runs do.
    Where the rank is below two the rest of the plane is arbitrary, but orthonormal. Cost: an
    eigendecomposition of the smaller Gram matrix, min(n, d)³.

    Source: our instantiation.
    """
    units, fan_in = weight_nd.shape
    if fan_in <= units:
        plane_d2: Tensor = torch.linalg.eigh(weight_nd.T @ weight_nd).eigenvectors[:, -2:].flip(1)
    else:
        left_n2 = torch.linalg.eigh(weight_nd @ weight_nd.T).eigenvectors[:, -2:].flip(1)
        # The QR decomposition is orthonormal where dividing by the singular values would not be.
        plane_d2 = torch.linalg.qr(weight_nd.T @ left_n2).Q
    largest_12 = plane_d2.gather(0, plane_d2.abs().argmax(0, keepdim=True))
    return (plane_d2 * torch.where(largest_12 < 0, -1.0, 1.0)).contiguous()


@final
class Neurons(PhaseVariant):
    """Units as oscillators, our instantiation: θ = angle of a unit's incoming weights in the leading plane.

    A group is the units of one linear or convolution layer with at least three units and a fan-in of at
    least two, the classifier's included: its classes are units too. The plane is spanned by the layer's two
    leading right singular vectors, detached, and fitted again every ``refresh_steps`` steps. Invariant under
    scaling a unit; sees nothing of what a unit does outside the plane. A unit without any component in the
    plane has phase 0 and does not move. Cost: two dot products per unit, and one eigendecomposition per layer
    and refresh.
    """

    name: ClassVar[str] = "neurons"
    needs: ClassVar[str] = (
        f"a trainable linear or convolution layer of {_LEAST_UNITS} units and {_LEAST_FAN_IN} inputs or more"
    )

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:  # noqa: ARG004 -- any task will do
        """Return what is not here, or ``None``."""
        return None if _layers(model) else "this model has none"

    def __init__(self, model: nn.Module, *, refresh_steps: int) -> None:
        weights = _layers(model)
        self.groups = tuple(Group(name, len(weight)) for name, weight in weights.items())
        self._weights = tuple(weights.values())
        self._refresh_steps = refresh_steps
        self._planes = self._fitted()

    def refresh(self, step: int) -> None:
        """Fit the planes again at every multiple of ``refresh_steps``."""
        if step % self._refresh_steps == 0:
            self._planes = self._fitted()

    def phases(self) -> Iterator[Tensor]:
        """Yield the angles of each layer's units in its plane."""
        for weight, plane_d2 in zip(self._weights, self._planes, strict=True):
            yield _angles(_inside(weight, plane_d2))

    @torch.no_grad()
    def move(self, step_sizes: Sequence[float]) -> None:
        """Rotate each unit's component in the plane by step size · F, at constant length."""
        for weight, plane_d2, step_size in zip(self._weights, self._planes, step_sizes, strict=True):
            inside_n2 = _inside(weight, plane_d2)
            turn_n = triadic_force(_angles(inside_n2)) * step_size
            cosine_n, sine_n = turn_n.cos(), turn_n.sin()
            x_n, y_n = inside_n2.unbind(1)
            turned_n2 = torch.stack([x_n * cosine_n - y_n * sine_n, x_n * sine_n + y_n * cosine_n], 1)
            weight.add_(((turned_n2 - inside_n2) @ plane_d2.T).view_as(weight))

    def state(self) -> dict[str, Tensor]:
        """Return each layer's plane under ``plane.<layer>``."""
        return {
            f"plane.{group.name}": plane_d2 for group, plane_d2 in zip(self.groups, self._planes, strict=True)
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the planes that ``state`` returned, on each layer's device."""
        self._planes = tuple(
            tensors[f"plane.{group.name}"].to(plane_d2)
            for group, plane_d2 in zip(self.groups, self._planes, strict=True)
        )

    @torch.no_grad()
    def _fitted(self) -> tuple[Tensor, ...]:
        return tuple(leading_plane(_rows(weight)) for weight in self._weights)


def _layers(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: weight
        for name, weight in trainable_weights(model, _UNIT_KINDS).items()
        if len(weight) >= _LEAST_UNITS and weight[0].numel() >= _LEAST_FAN_IN
    }


def _rows(weight: Tensor) -> Tensor:
    return working_precision(weight).flatten(1)


def _inside(weight: Tensor, plane_d2: Tensor) -> Tensor:
    with full_precision(weight):
        return _rows(weight) @ plane_d2


def _angles(inside_n2: Tensor) -> Tensor:
    return torch.atan2(inside_n2[:, 1], inside_n2[:, 0])
