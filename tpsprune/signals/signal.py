"""The base classes of signals: fixed settings, and a memory that is passed in and returned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from tpsprune.numerics.moments import Elements
from tpsprune.numerics.objective import are_classes
from tpsprune.records.readings import Reading, Status

Memory = TypeVar("Memory")
Readings: TypeAlias = tuple[Reading, ...]
Packed: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a signal can see at one step of training.

    ``calibration_batches`` are fixed and ready for the model, ``labels`` are theirs. ``consumers`` names, for
    each prunable group (by its producer module), the modules that read its units, and how many units each
    reads; ``blocks``, of modules that are fed them several times over, the columns of a unit each time.
    ``producers`` are the weights and biases that produce a group's units, ``norm_scales`` the scales of the
    batch norms after them.
    """

    model: nn.Module
    calibration_batches: tuple[Any, ...]
    step: int
    epoch: float
    consumers: Mapping[str, Mapping[str, int]]
    producers: Mapping[str, tuple[Elements, ...]] = field(default_factory=dict)
    norm_scales: Mapping[str, tuple[Elements, ...]] = field(default_factory=dict)
    labels: tuple[Tensor, ...] = ()
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def why_no_loss(self) -> str:
        """Why the calibration data give no cross-entropy to differentiate; empty where they do."""
        if not self.labels:
            return "the calibration data have no labels"
        if not all(map(are_classes, self.labels)):
            return "the labels are not classes, one for each item"
        if not any(each.requires_grad for each in self.model.parameters()):
            return "no parameter is trained"
        return ""

    def reading(self, signal: str, value: float, unit: str, group: str = "") -> Reading:
        """Return the reading of a number at this step; its status marks one that is not finite."""
        return Reading.of(signal, value, step=self.step, epoch=self.epoch, group=group, unit=unit)

    def without(self, signal: str, unit: str, status: Status, reason: str, group: str = "") -> Reading:
        """Return a reading that has no value at this step, and why."""
        return Reading(
            signal=signal,
            step=self.step,
            epoch=self.epoch,
            value=None,
            group=group,
            unit=unit,
            status=status,
            reason=reason,
        )


class AbstractSignal(ABC, Generic[Memory]):
    """One thing read while training.

    A signal holds settings only. What it must remember between readings is its memory, a value: ``step``
    takes the old one and returns the new one, so that a checkpoint is ``pack(memory)`` and a resumed run
    gives the same readings as an uninterrupted one. No signal raises because of the values of numbers:
    weights that are not finite give readings with that status.
    """

    name: str

    @abstractmethod
    def start(self) -> Memory:
        """Return the memory before the first reading."""

    @abstractmethod
    def step(self, memory: Memory, view: View) -> tuple[Memory, Readings]:
        """Read once; the model is left as it was."""

    def looks(self, memory: Memory) -> bool:  # noqa: ARG002
        """Return whether the next reading looks at the model."""
        return True

    def attend(self, view: View) -> None:
        """Take part in what the first process reads of a model that is spread: passes, and whole weights."""
        self.step(self.start(), view)

    def finish(self, memory: Memory) -> tuple[Memory, Readings]:
        """Return the readings still to come: none, unless a signal is read a round late."""
        return memory, ()

    @abstractmethod
    def pack(self, memory: Memory) -> Packed:
        """Return the memory as named tensors and plain JSON values."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Memory:
        """Rebuild a memory from what ``pack`` made of it."""


class AbstractMemoryless(AbstractSignal[None]):
    """A signal that remembers nothing between readings: a name, and ``read``."""

    def start(self) -> None:
        """Return nothing."""

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read once."""
        return memory, self.read(view)

    @abstractmethod
    def read(self, view: View) -> Readings:
        """Read once; the model is left as it was."""

    def pack(self, memory: None) -> Packed:  # noqa: ARG002
        """Return nothing."""
        return {}, {}

    def unpack(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Return nothing."""
