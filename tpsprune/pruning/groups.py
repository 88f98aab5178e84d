"""What can be cut together: units, the tensors that hold them, and the layers that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tpsprune.records import LeftAlone

__all__ = ["Consumer", "Group", "GroupCut", "Slice", "Survey"]


@dataclass(frozen=True, slots=True)
class Slice:
    """Where the units of a group lie in one tensor: unit u owns ``block`` elements of ``axis``.

    They are the elements ``offset + u·block … offset + (u + 1)·block − 1``.
    """

    tensor: str
    axis: int
    offset: int
    block: int


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that mixes the units of a group: they stand at ``offset`` of its input, in blocks."""

    module: str
    offset: int
    block: int


@dataclass(frozen=True, slots=True)
class Group:
    """Units that only go together: unit u of every producer, member and consumer is one and the same.

    ``name`` is the first producer's in model order; ``producers`` put the units out, ``members`` work
    on each unit by itself (batch norm, depthwise convolution), ``consumers`` mix them. ``slices`` are
    all the tensors that lose elements when a unit goes.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    members: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class GroupCut:
    """What becomes of one group: the units that stay, in the numbering of the dense model, ascending."""

    name: str
    width: int
    kept: tuple[int, ...]
    slices: tuple[Slice, ...]

    @classmethod
    def of(cls, group: Group, kept: Iterable[int]) -> GroupCut:
        """Cut ``group`` to the units ``kept``, given in any order."""
        return cls(group.name, group.width, tuple(sorted(kept)), group.slices)

    @property
    def removed(self) -> tuple[int, ...]:
        """The units that go, ascending."""
        kept = set(self.kept)
        return tuple(unit for unit in range(self.width) if unit not in kept)


@dataclass(frozen=True, slots=True)
class Survey:
    """The groups of a model in model order, and what is left alone with the reason."""

    groups: tuple[Group, ...]
    left_alone: tuple[LeftAlone, ...]

    def consumer_widths(self) -> dict[str, dict[str, int]]:
        """Return, by group, the layers that read its units and nothing else, with their unit count.

        A layer that reads a concatenation of several groups is not among them.
        """
        readings = Counter(consumer.module for group in self.groups for consumer in group.consumers)
        return {
            group.name: {
                consumer.module: group.width for consumer in group.consumers if readings[consumer.module] == 1
            }
            for group in self.groups
        }
