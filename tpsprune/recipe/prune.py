"""``[prune]``: how much is cut, which units go, and what is mended at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from tpsprune.recipe.bounds import STRICT, Count, OpenShare

__all__ = ["Prune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """The cut: a target in multiply-accumulates, reached by widths, unit choice and fold."""

    macs_share: OpenShare = 0.5
    """Multiply-accumulates of the ticket as a share of the dense model's."""
    widths: Literal["effective-rank", "uniform"] = "effective-rank"
    round_to: Count = 1
    min_width: Count = 2
    max_cut_share: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.95
    """No group loses more than this share of its units."""
    leave_alone: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of module names not to cut; one that matches nothing is an error."""
    fold: bool = True
    """Least squares: what the removed units said is folded into the consumers of those that stay."""
    new_biases: bool = True
    """Allow the fold to give a consumer a bias that had none."""
    recalibrate: bool = True
    """Take batch-norm statistics anew on the probe data where that lowers the output error there."""
    __pydantic_config__: ClassVar[Any] = STRICT
