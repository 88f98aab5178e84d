"""The kinds of number a recipe holds, and what all its sections have in common."""

from __future__ import annotations

from typing import Annotated, Any, Final

from annotated_types import Ge, Gt, Interval, Le, MinLen

__all__ = ["STRICT", "AtLeastZero", "Count", "Natural", "OpenShare", "Positive", "Share", "Text", "Width"]

STRICT: Final[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""How each section is read: no unknown key, no silent conversion, no ``inf`` or ``nan``."""

Count = Annotated[int, Ge(1), Le(2**31)]
Natural = Annotated[int, Ge(0), Le(2**63 - 1)]
Width = Annotated[int, Ge(1), Le(2**20)]
Positive = Annotated[float, Gt(0.0)]
AtLeastZero = Annotated[float, Ge(0.0)]
Share = Annotated[float, Interval(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Interval(gt=0.0, lt=1.0)]
Text = Annotated[str, MinLen(1)]
