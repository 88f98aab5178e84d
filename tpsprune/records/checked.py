"""What ``check`` found: the task, the model's size, what becomes of each layer, what would be left of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from tpsprune.records.sizes import LeftAlone
from tpsprune.records.task import TaskFacts

__all__ = ["Checked", "CheckedGroup", "CheckedLayer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGroup:
    """Units that only go together: ``layers`` put them out, ``members`` work on each, ``readers`` mix them.

    ``kind`` is what a unit is: ``units`` (channels, neurons), ``heads``, ``head-width`` or ``blocks``.
    ``width_after`` is how many the recipe's target would leave, where that was asked for.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    members: tuple[str, ...] = ()
    kind: str = "units"
    width_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLayer:
    """A layer, what it costs, and what a cut does to it.

    ``fate``: ``cut`` puts out the units of ``groups``, ``follows`` works on units of theirs, ``stays`` keeps
    all that it puts out, for ``reason``. It ``reads`` the units of these groups, and loses as many inputs.
    ``macs`` are its own multiply-accumulates for one item, without those of layers inside it; ``macs_share``
    is of the model's.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    macs_share: float
    fate: Literal["cut", "follows", "stays"]
    groups: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A recipe that would run, and with what.

    ``weights`` says whose the widths are, ``from_data`` what a library's model was given because the data are
    as they are. ``cost_share`` is what the model would cost at the widths foreseen, over what it costs, in
    the unit of the target; ``None`` where widths were not asked for.
    """

    SCHEMA: ClassVar[str] = "tpsprune.check/1"

    name: str
    device: str
    task: TaskFacts
    items: dict[str, int]
    steps_per_epoch: int
    parameters: int
    macs: int
    target: str
    groups: tuple[CheckedGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    layers: tuple[CheckedLayer, ...] = ()
    weights: str = ""
    trained: bool = False
    cost_share: float | None = None
    rounds: int = 1
    from_data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what was found as plain JSON values."""
        return {"schema": self.SCHEMA, **asdict(self)}
