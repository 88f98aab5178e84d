"""Where the tensors of an opened module lie in those of the closed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Shape: TypeAlias = tuple[int, ...]
Index: TypeAlias = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an opened module: some elements of a closed one, turned or not.

    Without an ``index`` its values are computed from the closed module's tensors: it has a shape and a number
    type, but what an optimizer holds for the closed one says nothing about it.
    """

    source: str
    shape: Shape
    index: Index | None = None
    turned: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """Return the elements of a closed tensor, or of what is held for each of its elements."""
        taken = tensor if self.index is None else tensor[self.index]
        return taken.T if self.turned else taken
