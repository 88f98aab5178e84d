"""What every room needs to know of a task, without its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tpsprune.records.serial import Positive

QUALITIES: Final[Mapping[str, str]] = {
    "cross-entropy": "accuracy",
    "bce": "label accuracy",
    "next-token": "next-token accuracy",
    "mse": "R²",
    "reconstruction": "R²",
}
"""What the one figure of a model's quality is called under each loss: shares of labels or tokens right."""
SQUARED: Final = ("mse", "reconstruction")
"""Losses that are a mean of squares."""
OWN_QUALITY: Final = "quality"
IN_NATS: Final = ("cross-entropy", "bce", "next-token")


def quality_of(loss: str) -> str:
    """Return what quality is called under a loss: one of ``QUALITIES``, else the user's own.

    >>> quality_of("mse"), quality_of("theirs:loss")
    ('R²', 'quality')
    """
    return QUALITIES.get(loss, OWN_QUALITY)


def unit_of(loss: str) -> str:
    """Return the unit of a loss: ``nats``, or none of squares and of unknown losses."""
    return "nats" if loss in IN_NATS else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPart:
    """One tensor of inputs that are several: its shape without the batch axis, and what it holds.

    ``name`` is the keyword it goes in by, empty where parts go in by position. Of whole numbers ``lowest``
    and ``highest`` are those found in the data.
    """

    name: str
    shape: tuple[Positive, ...]
    dtype: Literal["float32", "int64", "bool"]
    lowest: int = 0
    highest: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """The shape of one input (without the batch axis), the width of an output, what the inputs are.

    ``input_kind``: ``image`` (channels, height, width), ``tokens`` (length,) of ids below
    ``vocabulary``, ``vector`` (features,), or ``parts``: several tensors, described by ``parts``. ``classes``
    are the outputs of a model for each item (or, with ``next-token``, each place): one per class, label or
    target. ``cyclic`` holds where neighbouring token ids are neighbours on a circle, which
    the ``fourier`` variant needs. ``loss`` is ``task.loss`` of the recipe; ``quality``, always made from
    it, is what the figure is called that records hold as ``accuracy``. A file of a version that knew one
    tensor and classes only lacks the last three.
    """

    input_kind: Literal["image", "tokens", "vector", "parts"]
    input_shape: tuple[Positive, ...]
    classes: Positive
    vocabulary: Positive | None = None
    cyclic: bool = False
    parts: tuple[InputPart, ...] = ()
    loss: str = "cross-entropy"
    quality: str = ""

    def __post_init__(self) -> None:
        """Name the quality by the loss; readers of the JSON find it there."""
        object.__setattr__(self, "quality", quality_of(self.loss))

    @property
    def loss_unit(self) -> str:
        """The unit of the loss."""
        return unit_of(self.loss)
