"""What every room needs to know of a task, without its data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["TaskFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """The shape of one input (without the batch axis), the number of classes, what the inputs are.

    ``input_kind``: ``image`` (channels, height, width), ``tokens`` (length,) of ids below
    ``vocabulary``, or ``vector`` (features,). ``cyclic`` holds where neighbouring token ids are
    neighbours on a circle, which the ``fourier`` variant needs.
    """

    input_kind: Literal["image", "tokens", "vector"]
    input_shape: tuple[int, ...]
    classes: int
    vocabulary: int | None = None
    cyclic: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return {**asdict(self), "input_shape": list(self.input_shape)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TaskFacts:
        """Rebuild facts written by ``to_json``."""
        return cls(**{**raw, "input_shape": tuple(raw["input_shape"])})
