"""``[retrain]``: what the ticket does with the rest of the budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Predicate

from tpsprune.recipe.bounds import STRICT, Natural

__all__ = ["Retrain", "rewind_epoch"]


def _is_rewind(word: str) -> bool:
    return word in {"none", "init"} or re.fullmatch(r"epoch:[1-9][0-9]*", word) is not None


def rewind_epoch(rewind: str) -> int | None:
    """Return the epoch that ``rewind`` goes back to: 0 for ``init``, ``None`` for ``none``.

    >>> rewind_epoch("init"), rewind_epoch("epoch:3"), rewind_epoch("none")
    (0, 3, None)
    """
    if rewind == "none":
        return None
    return 0 if rewind == "init" else int(rewind.removeprefix("epoch:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Retraining of the cut model."""

    epochs: Natural | Literal["rest"] = "rest"
    """``rest``: what the draw left of ``train.epochs``; with a rewind, what is left counted from there."""
    rewind: Annotated[str, Predicate(_is_rewind)] = "none"
    """``init`` or ``epoch:K``: the plan is replayed on those weights (a structured lottery ticket)."""
    optimizer: Literal["carry", "new"] = "carry"
    """``carry``: the optimiser's moments of the units that stay go along; a rewind always makes it anew."""
    __pydantic_config__: ClassVar[Any] = STRICT
