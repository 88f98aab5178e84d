"""What every signal is: settings that stay, and a memory that is handed in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from tpsprune.numerics.moments import Elements
from tpsprune.records.readings import Reading, Status

__all__ = ["AbstractMemoryless", "AbstractSignal", "Packed", "Readings", "View"]

Memory = TypeVar("Memory")
Readings: TypeAlias = tuple[Reading, ...]
Packed: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What there is to see at one moment of training.

    ``probe`` holds the fixed probe batches, ready for the model, ``labels`` their labels. ``consumers``
    names, for each prunable group (by its producer module), the modules that its units feed, and how many
    units each is fed. ``written`` are the weights and biases that put a group's units out, ``scaled`` the
    scales of the batch norms over them.
    """

    model: nn.Module
    probe: tuple[Any, ...]
    step: int
    epoch: float
    consumers: Mapping[str, Mapping[str, int]]
    written: Mapping[str, tuple[Elements, ...]] = field(default_factory=dict)
    scaled: Mapping[str, tuple[Elements, ...]] = field(default_factory=dict)
    labels: tuple[Tensor, ...] = ()

    def reading(self, signal: str, value: float, unit: str, group: str = "") -> Reading:
        """Return the reading of a number at this moment; one that is not finite says so."""
        return Reading.of(signal, value, step=self.step, epoch=self.epoch, group=group, unit=unit)

    def without(self, signal: str, unit: str, status: Status, reason: str, group: str = "") -> Reading:
        """Return a reading that has no value at this moment, and why."""
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
    reads on as if nothing had happened. No signal raises for what the numbers are: weights that are
    not finite give readings that say so.
    """

    name: str

    @abstractmethod
    def start(self) -> Memory:
        """Return the memory before the first reading."""

    @abstractmethod
    def step(self, memory: Memory, view: View) -> tuple[Memory, Readings]:
        """Read once; the model is left as it was."""

    def finish(self, memory: Memory) -> tuple[Memory, Readings]:
        """Return the readings still on their way: none, unless a signal is read behind the scenes."""
        return memory, ()

    @abstractmethod
    def pack(self, memory: Memory) -> Packed:
        """Return the memory as named tensors and plain JSON values."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Memory:
        """Rebuild a memory from what ``pack`` made of it."""


class AbstractMemoryless(AbstractSignal[None]):
    """A signal that remembers nothing between readings."""

    def start(self) -> None:
        """Return nothing."""

    def pack(self, memory: None) -> Packed:  # noqa: ARG002
        """Return nothing."""
        return {}, {}

    def unpack(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Return nothing."""
