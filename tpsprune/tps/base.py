"""What carries a phase: the interface that the four variants share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from tpsprune.numerics.coherence import order_parameters, triadic_energy
from tpsprune.records import TaskFacts

__all__ = [
    "Group",
    "PhaseVariant",
    "UnitTriplets",
    "Variant",
    "full_precision",
    "no_classes",
    "trainable_weights",
    "working_precision",
]


@dataclass(frozen=True, slots=True)
class Group:
    """Oscillators coupled to one another: a name (empty where there is only one group) and how many."""

    name: str
    oscillators: int


class UnitTriplets(Protocol):
    """A model whose hidden units sit between two categorical inputs and the classes."""

    has_unit_triplets: bool
    triplets_from_weights: bool

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (u_am, v_bm, o_mc): what each token adds to a unit, and what a unit adds to each class."""
        ...


class Variant(ABC):
    """One reading of "weight triplets": it says how far the triads are from agreeing.

    All are our own instantiations; no formula has been published.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    rides: ClassVar[bool] = False
    """Whether the energy is of what a forward pass brought forth, and its gradient joins that pass's own."""
    eases: ClassVar[bool] = False
    """Whether it lets go as the task is learned."""
    groups: tuple[Group, ...]

    @staticmethod
    @abstractmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what of ``needs`` is not here, as half a sentence, or ``None`` where the variant fits."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Return a context for the model's forward pass, for a variant that ``rides`` on it."""
        yield

    def attach(self) -> None:  # noqa: B027 -- only what rides on a pass hangs on a model
        """Hang on the model until ``detach``, so that a compiled model has it in from its first call."""

    def detach(self) -> None:  # noqa: B027 -- see attach
        """Leave the model as it was before ``attach``."""

    @abstractmethod
    def energies(self, label_i: Tensor | None = None) -> Tensor:
        """Return the energy of each group, in the order of ``groups``; differentiable.

        ``label_i`` are the labels of the batch last listened to; what reads weights alone ignores them.
        """

    def energy(self) -> Tensor:
        """Return the mean energy over groups."""
        return self.energies().mean()

    @abstractmethod
    def readings(self) -> dict[str, Tensor]:
        """Return, without gradients, each signal's values by group, in the order of ``groups``."""

    def refresh(self, step: int) -> None:  # noqa: B027 -- a variant without memory has nothing to refresh
        """Bring what is held fixed between steps up to date, where it is due at ``step``."""

    def harm_note(self, coherences: Sequence[float], losses: Sequence[float]) -> str | None:  # noqa: ARG002
        """Return a sentence where the readings so far say that this variant works against the task."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold for a resumed run to go on bit for bit."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 -- see refresh
        """Put back what ``state`` returned."""


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


def no_classes(facts: TaskFacts) -> str | None:
    """Return why labels of a task are not the classes that a triplet ends in, or ``None`` where they are.

    What eases off with the loss needs cross-entropy besides: of that alone the loss of guessing is known, ln
    of the number of classes.
    """
    return None if facts.loss == "cross-entropy" else f"this task has loss '{facts.loss}', not cross-entropy"


def working_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32: half precision cannot hold a sum over a large group."""
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context on the tensor's device without autocast, which would halve precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def trainable_weights(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Parameter]:
    """Return the trainable weights of modules of these kinds by module name, a shared weight once.

    Frozen weights are left out, and so are weights that a parametrisation computes anew at each access.
    """
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None) if isinstance(module, kinds) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad and id(weight) not in seen:
            seen.add(id(weight))
            weights[name or "model"] = weight
    return weights
