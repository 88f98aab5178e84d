"""``[stop]``: when to draw the ticket and when training is over; a hard budget always ends the run."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Final, Literal, TypeAlias, get_args

from annotated_types import Gt, Interval, MinLen
from pydantic import Field

from tpsprune.recipe.bounds import AtLeastZero, Count, Positive, Share, Text, section


@section
class NoRule:
    """Never acts: the budget alone decides."""

    rule: Literal["none"] = "none"


@section
class EpochRule:
    """Acts at a fixed epoch: the cheapest rule, and the one that others must beat."""

    rule: Literal["epoch"] = "epoch"
    epoch: Positive


@section
class PlateauRule:
    """Acts once ``monitor`` has kept within ``tolerance`` of itself over ``patience`` readings.

    Holds still while nothing is learned (``min_adjusted_accuracy``): a memorising plateau is calm too.
    """

    rule: Literal["plateau"] = "plateau"
    monitor: Text = "d_eff"
    tolerance: Positive = 0.05
    """Largest relative spread (max − min) / |mean| over the window that still counts as calm."""
    patience: Annotated[int, Interval(ge=2, le=1000)] = 3
    min_adjusted_accuracy: Share = 0.5
    """Part of the way from chance to 1 that validation accuracy must have covered."""


@section
class PatienceRule:
    """Acts once ``monitor`` has not bettered its best by ``min_delta`` for ``patience`` readings."""

    rule: Literal["patience"] = "patience"
    monitor: Text = "validation_loss"
    mode: Literal["min", "max"] = "min"
    min_delta: AtLeastZero = 0.0
    patience: Count = 10


@section
class ThresholdRule:
    """Acts once ``monitor`` has been above ``threshold`` for ``patience`` readings in a row.

    With ``mode = "min"``: below it.
    """

    rule: Literal["threshold"] = "threshold"
    monitor: Text
    mode: Literal["min", "max"] = "max"
    threshold: float
    patience: Count = 1
    min_adjusted_accuracy: Share = 0.0


@section
class MaskRule:
    """Acts once ``mask_distance`` has been below ``threshold``: the kept units no longer change (Early-Bird).

    Published with one mask an epoch, threshold 0.1, and whatever is learned (``min_adjusted_accuracy = 0``).
    """

    rule: Literal["mask"] = "mask"
    monitor: Literal["mask_distance"] = "mask_distance"
    threshold: Positive = 0.1
    patience: Count = 1
    min_adjusted_accuracy: Share = 0.5


@section
class ChangeRule:
    """Acts once ``monitor``, a positive one, has fallen ``factor`` times from the most it ever was.

    With ``mode = "max"``: risen ``factor`` times from the least. for ``patience`` readings in a row.
    """

    rule: Literal["change"] = "change"
    monitor: Text
    mode: Literal["min", "max"] = "min"
    factor: Annotated[float, Gt(1.0)] = 2.0
    patience: Count = 1
    min_adjusted_accuracy: Share = 0.5


@section
class ReopenRule:
    """Acts once ``monitor``, a positive one, has collapsed and opened again, as an edge does at a transition.

    Collapsed: at most 1 / ``collapse`` of the most it ever was; open again: at least ``reopen`` times the
    least it has been since. The published decline is found afterwards and has no alarm; factors are ours.
    """

    rule: Literal["reopen"] = "reopen"
    monitor: Text = "spectral_edge"
    collapse: Annotated[float, Gt(1.0)] = 4.0
    reopen: Annotated[float, Gt(1.0)] = 1.5
    min_adjusted_accuracy: Share = 0.5


_Single: TypeAlias = (
    NoRule | EpochRule | PlateauRule | PatienceRule | ThresholdRule | MaskRule | ChangeRule | ReopenRule
)


@section
class ConsensusRule:
    """Acts once ``at_least`` of its rules have acted, now or within the last ``within`` readings."""

    rule: Literal["consensus"] = "consensus"
    rules: Annotated[tuple[Annotated[_Single, Field(discriminator="rule")], ...], MinLen(2)]
    at_least: Count = 2
    within: Count = 1


Rule = Annotated[_Single | ConsensusRule, Field(discriminator="rule")]
RULES: Final = (*get_args(_Single), ConsensusRule)


@section
class Stop:
    """``[stop.draw]`` decides when the ticket is drawn, ``[stop.end]`` when its retraining is over."""

    draw: Rule = field(default_factory=PlateauRule)
    end: Rule = field(default_factory=NoRule)
    draw_by_share: Annotated[float, Interval(gt=0.0, le=1.0)] = 1.0
    """Part of the epochs after which the ticket is drawn whatever the rule decides; the reason names it."""
    budget_seconds: Annotated[float, Gt(0.0)] | None = None
    budget_joules: Annotated[float, Gt(0.0)] | None = None
