"""The base class of TPS variants, what they share, and the simplest: ``bn-l1``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.records import TaskFacts


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
    """One reading of "weight triplets": an energy that is zero where all triads agree.

    All are our own instantiations; no formula has been published.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    shares_forward_pass: ClassVar[bool] = False
    """Whether the energy is of the outputs of a forward pass, and its gradient joins that pass's own."""
    fades: ClassVar[bool] = False
    """Whether it fades as the task is learned."""
    groups: tuple[Group, ...]

    @staticmethod
    @abstractmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what of ``needs`` is not here, as half a sentence, or ``None`` where the variant fits."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Return a context for the model's forward pass, for a variant that shares it."""
        yield

    def attach(self) -> None:  # noqa: B027 -- only what shares a forward pass needs hooks
        """Put hooks on the model until ``detach``, so that a compiled model has them from its first call."""

    def detach(self) -> None:  # noqa: B027 -- see attach
        """Leave the model as it was before ``attach``."""

    @abstractmethod
    def energies(self, label_i: Tensor | None = None) -> Tensor:
        """Return the energy of each group, in the order of ``groups``; differentiable.

        ``label_i`` are the labels of the batch in ``listening``; what reads weights alone ignores them.
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
        """Return a warning where the readings so far indicate that this variant works against the task."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold for a resumed run to go on bit for bit."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 -- see refresh
        """Restore what ``state`` returned."""


def no_classes(facts: TaskFacts) -> str | None:
    """Return why labels of a task are not the classes that a triplet ends in, or ``None`` where they are.

    A variant that fades with the loss needs cross-entropy too: there the loss of guessing is ln classes.
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

    Frozen weights are left out, and so are weights that a parametrisation recomputes at each access.
    """
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None) if isinstance(module, kinds) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad and id(weight) not in seen:
            seen.add(id(weight))
            weights[name or "model"] = weight
    return weights


@final
class BatchNormL1(Variant):
    """The penalty that published Early-Bird tickets were trained with: λ · Σ |γ| over all batch-norm scales.

    Not triadic phase synchronisation, but what it has to beat where a model is trained to be pruned: scales
    of units that the task can spare go to zero. λ is the published coefficient on the sum, 1e-4
    there. A group is one batch norm, and E_g = G · Σ |γ| over its scales, G the number of groups, so that
    the mean over groups is the sum over the model; each scale is pulled to zero by λ · sign(γ), and not at
    all where it is zero. Published code adds the same to the gradients after the backward pass; in the
    loss, gradient clipping sees it too, and so does the optimiser's preconditioner.

    Does not see weights: a layer without batch norm is left alone, and what scales lose the next layer's
    weights can gain. With ``sqrt-n`` it is no longer the published penalty. Cost: one sum over the scales.
    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming" (arXiv
    1708.06519), equation 1; You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957).
    """

    name: ClassVar[str] = "bn-l1"
    needs: ClassVar[str] = "a batch norm with trainable scales"

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:  # noqa: ARG004 -- any task will do
        """Return what is not here, or ``None``."""
        return None if trainable_weights(model, (_BatchNorm,)) else "this model has none"

    def __init__(self, model: nn.Module) -> None:
        scales = trainable_weights(model, (_BatchNorm,))
        self.groups = tuple(Group(name, scale.numel()) for name, scale in scales.items())
        self._scales = tuple(scales.values())

    def energies(self, label_i: Tensor | None = None) -> Tensor:  # noqa: ARG002 -- scales have no labels
        """Return G · Σ |γ| of each batch norm."""
        sums = [working_precision(scale).abs().sum() for scale in self._scales]
        return torch.stack(sums) * len(sums)

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return the energy by group: as a mean over groups, the sum of all |γ|."""
        return {"tps_energy": self.energies()}
