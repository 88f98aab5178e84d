"""What ``check`` found: the task, the model's size, what can be pruned and what cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tpsprune.records.sizes import LeftAlone
from tpsprune.records.task import TaskFacts

__all__ = ["Checked", "CheckedGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGroup:
    """Units that only go together: ``layers`` put them out, ``members`` work on each, ``readers`` mix them.

    ``kind`` is what a unit is: ``units`` (channels, neurons), ``heads``, ``head-width`` or ``blocks``.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    members: tuple[str, ...] = ()
    kind: str = "units"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A recipe that would run, and with what."""

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

    def to_json(self) -> dict[str, Any]:
        """Return what was found as plain JSON values."""
        return {"schema": self.SCHEMA, **asdict(self)}
