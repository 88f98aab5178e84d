"""``weights``: each weight is an oscillator, its phase is its size over the tensor's root mean square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import triadic_force
from tpsprune.records import TaskFacts
from tpsprune.tps.base import Group, PhaseVariant, trainable_weights, working_precision

__all__ = ["Weights"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


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
        return None if trainable_weights(model, _KINDS) else "this model has none"

    def __init__(self, model: nn.Module) -> None:
        weights = trainable_weights(model, _KINDS)
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
