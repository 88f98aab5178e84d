"""The kinds of number a recipe holds, and what all its sections have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Interval, Le, MinLen
from pydantic import AfterValidator

STRICT: Final[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""How each section is read: no unknown key, no silent conversion, no ``inf`` or ``nan``."""

Count = Annotated[int, Ge(1), Le(2**31)]
Natural = Annotated[int, Ge(0), Le(2**63 - 1)]
Width = Annotated[int, Ge(1), Le(2**20)]
Positive = Annotated[float, Gt(0.0)]
AtLeastZero = Annotated[float, Ge(0.0)]
Epochs = Annotated[float, Le(2.0**31), AfterValidator(lambda n: int(n) if n == int(n) else n)]
"""A length of training; whole epochs are an ``int``, so that a recipe is written in one way."""
Share = Annotated[float, Interval(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Interval(gt=0.0, lt=1.0)]
Text = Annotated[str, MinLen(1)]

Section = TypeVar("Section")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def section(kind: type[Section]) -> type[Section]:
    """Make a class a section of a recipe: a frozen dataclass with named fields, read strictly."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(kind)
    made.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return made
