"""A recipe as frozen dataclasses: one section per room, each in the file of that name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Predicate

from tpsprune.recipe.bounds import STRICT, Natural
from tpsprune.recipe.compare import Compare
from tpsprune.recipe.energy import Energy
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.retrain import Retrain
from tpsprune.recipe.stop import Stop
from tpsprune.recipe.task import Task
from tpsprune.recipe.tps import Tps
from tpsprune.recipe.train import Train
from tpsprune.recipe.watch import Watch

__all__ = ["SCHEMA", "Recipe", "is_name"]

SCHEMA = "tpsprune.recipe/1"


def is_name(word: str) -> bool:
    """Return whether a recipe may be called so: lower-case letters, digits, hyphens; it names files."""
    return re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", word) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run; equal recipes on equal machines give equal runs."""

    name: Annotated[str, Predicate(is_name)]
    shows: str = ""
    schema: Literal["tpsprune.recipe/1"] = "tpsprune.recipe/1"
    seed: Natural = 0
    task: Task
    train: Train
    tps: Tps = field(default_factory=Tps)
    watch: Watch = field(default_factory=Watch)
    stop: Stop = field(default_factory=Stop)
    prune: Prune = field(default_factory=Prune)
    retrain: Retrain = field(default_factory=Retrain)
    energy: Energy = field(default_factory=Energy)
    compare: Compare = field(default_factory=Compare)
    __pydantic_config__: ClassVar[Any] = STRICT
