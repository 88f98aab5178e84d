"""Plans raced: each carried out on most of the calibration data and judged on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from torch import nn

from tpsprune.errors import PruneError
from tpsprune.pruning.fitted import Fitted, choose_and_fit
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.opening import close_layers
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.planning import WidthPlan, plan_low_rank, plan_otherwise
from tpsprune.recipe.prune import Allocation, Macs, Params, Prune

RIVALS: Final[tuple[Allocation, ...]] = ("uniform", "equal-residual")
"""What greedy widths are held against where the quality is ``best``."""
TIMED_TURNS: Final = 3
"""How often layers are timed split and whole, by turns."""


def race(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    clock: Callable[[nn.Module], float] | None,
) -> tuple[WidthPlan, tuple[str, ...]]:
    """Return the plan that errs least on calibration data held out, each compensated on the rest.

    The plan as it is, with quality ``best`` other allocations, and where they are allowed layers of low rank;
    a note says what those bring. With one plan alone nothing is run.
    """
    plans = [planned]
    if (
        settings.quality == "best"
        and settings.widths == "greedy"
        and isinstance(settings.target, Macs | Params)
    ):
        plans += [plan_otherwise(planned, settings, rival) for rival in RIVALS]
        plans = list({plan.widths: plan for plan in reversed(plans)}.values())
    if len(plans) == 1 and not settings.low_rank:
        return planned, ()
    fit, held = hold_out(batches)

    def run(plan: WidthPlan) -> tuple[float, Fitted | None, str]:
        try:
            fitted = choose_and_fit(model, fit, settings, plan)
            return output_error(fitted.split(), model, held), fitted, ""
        except PruneError as error:  # It does not run at these widths.
            return math.inf, None, str(error)

    best, error, fitted, _ = min(((plan, *run(plan)) for plan in plans), key=lambda each: each[1])
    if not settings.low_rank or fitted is None:
        return best, ()
    ranked = plan_low_rank(best, model, batches, settings)
    split, split_error, split_fitted, reason = min(
        ((plan, *run(plan)) for plan in ranked), key=lambda each: each[1]
    )
    if split_fitted is None:
        return best, (f"no layer was split: {reason}",)
    count = len(split_fitted.factored)
    layers = f"{count} layer{'' if count == 1 else 's'} of low rank"
    found = f"an error of {split_error:.2g} on calibration data held out, of units alone {error:.2g}"
    if not split_error < error:
        return best, (f"{layers} would leave {found}: none was split",)
    models = split_fitted.split(), split_fitted.ticket, fitted.ticket
    for each in models:
        close_layers(each)
    seconds, whole_seconds, units_seconds = _times_of(models, clock)
    if settings.low_rank == "auto" and not seconds < whole_seconds:
        slower = f"{seconds / whole_seconds:.2f} times as long as whole"
        return best, (f"{layers} would leave {found}, but take {slower}, measured here: none was split",)
    taken = f", and {seconds / units_seconds:.2f} times the time of a pass, measured here" if clock else ""
    return split, (f"{layers} leave {found}{taken}",)


def _times_of(models: Sequence[nn.Module], clock: Callable[[nn.Module], float] | None) -> tuple[float, ...]:
    """Return the medians of some turns of a clock; without one each model is faster than the next."""
    if clock is None:
        return tuple(map(float, range(len(models))))
    turns = [[clock(each) for each in models] for _ in range(TIMED_TURNS)]
    return tuple(map(median, zip(*turns, strict=True)))
