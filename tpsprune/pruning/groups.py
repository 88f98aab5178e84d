"""What is pruned together: units, the tensors that hold them, and the layers that read them.

A unit is whatever is kept or pruned as one: a channel, a neuron, a group of a grouped convolution, an
attention head. Four numbers locate its elements along an axis: unit u owns the elements ``offset + r·stride +
u·block + i`` for r in 0 … repeat − 1 and i in 0 … block − 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tpsprune.records import Natural, Unpruned


@dataclass(frozen=True, slots=True)
class Slice:
    """Where the units of a group lie along one axis of one tensor."""

    tensor: str
    axis: Natural
    offset: Natural
    block: Natural
    repeat: Natural = 1
    stride: Natural = 0

    @property
    def module(self) -> str:
        """The module that holds the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that mixes the units of a group, and where they stand at its input.

    Of the ``repeat · block`` elements of a unit, each run of ``positions`` is one feature seen at several
    places (a channel flattened over its image): its elements share one row of every interpolation. A unit
    thus has ``features`` signals of its own: one for a channel, the head's width for an attention head.

    ``outputs`` confines the consumer to a range of the layer's outputs, as each group of a grouped
    convolution reads inputs of its own; ``None`` is all of them.
    """

    module: str
    offset: int
    block: int
    repeat: int = 1
    stride: int = 0
    positions: int = 1
    outputs: tuple[int, int] | None = None

    @property
    def features(self) -> int:
        """Signals of its own that each unit has at this consumer."""
        return self.repeat * self.block // self.positions


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number that a module stores about its units (heads, width): ``per_unit`` times as many.

    It falls as the units do; one that follows two groups (all heads' dimensions) falls by both. A name with a
    dot is that of a number in a configuration that the module keeps.
    """

    module: str
    name: str
    per_unit: Natural


@dataclass(frozen=True, slots=True)
class Scores:
    """How the queries of an attention meet its keys: qᵀk of each pair of heads, times a scale.

    ``queries`` and ``keys`` count heads, each as wide as the group that holds this; ``value`` is the width of
    a head's values. Where query heads share keys they come one after the other, or, ``tiled``, each after as
    many as there are keys. ``scale_follows`` means that the module reads its scale d^(−1/2) from the tensors,
    so that it grows when d falls (``surgery.hold_scale``).
    """

    query: str
    key: str
    queries: int
    keys: int
    value: int
    tiled: bool = False
    scale_follows: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are pruned only together: unit u of every producer, member and consumer is the same one.

    ``name`` is the first producer's in model order; ``producers`` make the units, ``members`` work on each
    unit by itself (batch norm, depthwise convolution) or norm over those that are there (layer norm),
    ``consumers`` mix them. ``slices`` are all the tensors that lose elements when a unit is pruned. ``cores``
    are modules that multiply units themselves, without weights, in proportion to how many there are
    (attention); ``kind`` is what a unit is.

    A unit of kind "head-width" is one dimension of the queries and keys of all heads of an attention. No
    layer reads it, so there are no consumers: queries and keys meet each other in ``scores``.

    Groups ``tied_to`` one name are of one width, before and after: the experts of a layer. A width is a
    ``multiple`` of some number where kernels take no other.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    members: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...] = ()
    cores: tuple[str, ...] = ()
    kind: Literal["units", "heads", "head-width", "blocks"] = "units"
    scores: Scores | None = None
    tied_to: str = ""
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class PrunedGroup:
    """What becomes of one group: the units kept, in the numbering of the dense model, ascending."""

    name: str
    width: Natural
    kept: tuple[Natural, ...]
    slices: tuple[Slice, ...]
    attributes: tuple[Attribute, ...] = ()

    @classmethod
    def of(cls, group: Group, kept: Iterable[int]) -> PrunedGroup:
        """Prune ``group`` to the units ``kept``, in any order."""
        return cls(group.name, group.width, tuple(sorted(kept)), group.slices, group.attributes)

    @property
    def removed(self) -> tuple[int, ...]:
        """The pruned units, ascending."""
        kept = set(self.kept)
        return tuple(unit for unit in range(self.width) if unit not in kept)


@dataclass(frozen=True, slots=True)
class Prunability:
    """The groups of a model in model order, and what is left alone with the reason.

    ``coupled`` names, by layer, the first layer that makes the same units: a reason found for one holds
    for all. ``opened`` are the modules that were opened to find the groups.
    """

    groups: tuple[Group, ...]
    unpruned: tuple[Unpruned, ...]
    coupled: Mapping[str, str] = field(default_factory=dict)
    opened: tuple[str, ...] = ()


def element_index(layout: Slice | Consumer, width: int, device: torch.device | None = None) -> Tensor:
    """Return the elements of each of ``width`` units along the axis: (units, repeat · block)."""
    units = torch.arange(width, device=device)[:, None, None] * layout.block
    repeats = torch.arange(layout.repeat, device=device)[:, None] * layout.stride
    return (layout.offset + units + repeats + torch.arange(layout.block, device=device)).flatten(1)
