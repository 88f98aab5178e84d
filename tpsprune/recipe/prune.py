"""``[prune]``: how much is cut, which units go, and what is mended at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from tpsprune.recipe.bounds import STRICT, Count, Natural, Positive
from tpsprune.recipe.target import Macs, Target

__all__ = ["Prune"]

CutShare = Annotated[float, Interval(gt=0.0, lt=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """The cut: a target, reached by widths, unit choice and fold."""

    target: Target = field(default_factory=lambda: Macs(0.5))
    """One of ``macs``, ``params``, ``latency``, ``tolerance``, ``widths``: see ``target.py``."""
    widths: Literal["effective-rank", "equal-residual", "greedy", "uniform", "global-magnitude"] = "greedy"
    """How the target is shared out among the groups; ``reports/one_shot.md`` chose the default.

    With ``uniform`` groups of one width stay of one width, as a library's config asks of equal layers.
    """
    units: Literal[
        "interpolation",
        "pivoted-cholesky",
        "magnitude",
        "taylor",
        "bn-scale",
        "lamp",
        "fpgm",
        "group-norm",
        "random",
    ] = "interpolation"
    """Which units of a group stay: those from which the others follow best, by the error at the consumers
    or by pivoted Cholesky of what they hear; the others are torch-pruning's importances."""
    probe_items: Annotated[int, Interval(ge=8, le=2**20)] = 1024
    """Items of the training split, without labels, on which the cut is chosen and fitted."""
    round_to: Count = 1
    min_width: Count = 2
    max_cut_share: CutShare = 0.95
    """No group loses more than this share of its units."""
    max_cut_shares: Mapping[str, CutShare] = field(default_factory=dict)
    """The same for groups whose name matches a pattern (``fnmatch``); the last that matches counts."""
    leave_alone: tuple[str, ...] = ()
    """Patterns (``fnmatch``) of module names not to cut; one that matches nothing is an error."""
    head_width: bool = False
    """Also cut the width of attention heads: the dimensions of queries and keys, by their singular values."""
    fold: bool = True
    """Least squares: what the removed units said is folded into the consumers of those that stay."""
    refit: bool = True
    """With the fold: solve every layer that hears a cut, or what a cut has moved, for each of its weights."""
    activation_gib: Positive = 1.5
    """How much of both models' activations the fold may hold; of a probe that needs more, a part is used."""
    new_biases: bool = True
    """Allow the fold to give a consumer a bias that had none."""
    recalibrate: bool = True
    """Take batch-norm statistics anew on the probe data where that lowers the output error there."""
    heal_steps: Natural = 0
    """Label-free repair after the cut: optimiser steps that match the dense model on the probe data."""
    heal_learning_rate: Positive = 1e-3
    rounds: Count = 1
    """Cuts in which the target is reached, each the same share of what is left."""
    round_epochs: Count = 1
    """Epochs of training between two rounds."""
    __pydantic_config__: ClassVar[Any] = STRICT
