"""Plans raced: each carried out on most of the calibration data and judged on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from torch import nn

from tpsprune.errors import PruneError
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.pruning.fitted import Fitted, choose_and_fit
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.opening import close_layers
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.planning import WidthPlan, plan_low_rank, plan_otherwise
from tpsprune.pruning.verification import verify_split
from tpsprune.recipe.prune import Allocation, Macs, Params, Prune

RIVALS: Final[tuple[Allocation, ...]] = ("uniform", "equal-residual")
"""What greedy widths are held against where the quality is ``best``."""
TIMED_TURNS: Final = 3
"""How often tickets are timed with layers split and without, by turns."""

Clock = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A plan carried out: its ticket, split, and the error there; or why there is none."""

    plan: WidthPlan
    error: float = math.inf
    fitted: Fitted | None = None
    ticket: nn.Module | None = None
    reason: str = ""


def race(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    planned: WidthPlan,
    clock: Clock | None,
    peers: AbstractPeers = ALONE,
) -> tuple[tuple[WidthPlan, ...], tuple[str, ...]]:
    """Return the plans to be carried out, the best first, the next for when that fails; and notes.

    The plan as it is, with quality ``best`` other allocations, and where they are allowed layers of low rank;
    a note says what those bring. With one plan alone nothing is run.

    Raises:
        PruneError: ``low_rank = "auto"`` without a clock.
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
        return (planned,), ()
    if settings.low_rank == "auto" and clock is None:
        raise PruneError('low_rank = "auto" needs a clock: the seconds of a pass of a model')
    fit, held = hold_out(batches)

    def run(plan: WidthPlan) -> Outcome:
        try:
            fitted = choose_and_fit(model, fit, settings, plan, peers)
            ticket = fitted.split() if fitted.factored else fitted.ticket
            if fitted.factored:
                verify_split(ticket, fitted.ticket, held)
            return Outcome(plan, output_error(ticket, model, held), fitted, ticket)
        except PruneError as error:  # It does not run at these widths, or with these layers split.
            return Outcome(plan, reason=str(error))

    units = min(map(run, plans), key=lambda each: each.error)
    if not settings.low_rank:
        return (units.plan,), ()
    try:
        split = min(
            map(run, plan_low_rank(units.plan, model, batches, settings)), key=lambda each: each.error
        )
    except PruneError as error:
        split = Outcome(units.plan, reason=str(error))
    takes, note = peers.first(lambda: _judge(split, units, settings, clock))
    return ((split.plan, units.plan) if takes else (units.plan,)), (note,)


def _judge(split: Outcome, units: Outcome, settings: Prune, clock: Clock | None) -> tuple[bool, str]:
    """Return whether layers are split, and what that brings or why not, in a sentence."""
    if split.fitted is None or split.ticket is None:
        return False, f"no layer was split: {split.reason}"
    count = len(split.fitted.factored)
    layers = f"with {count} layer{'' if count == 1 else 's'} of low rank the error"
    found = f"on calibration data held out {{}} {split.error:.2g}, with units alone {units.error:.2g}"
    if not split.error < units.error:
        return False, f"{layers} {found.format('would be')}: none was split"
    if clock is None or units.ticket is None:
        return True, f"{layers} {found.format('is')}"
    for each in (split.ticket, units.ticket):
        close_layers(each)
    turns = [(clock(split.ticket), clock(units.ticket)) for _ in range(TIMED_TURNS)]
    ratio = median(mine for mine, _ in turns) / median(theirs for _, theirs in turns)
    taken = f"{ratio:.2f} times as long as one of units alone, measured here"
    if settings.low_rank == "auto" and ratio > 1.0:
        return False, f"{layers} {found.format('would be')}, but a pass takes {taken}: none was split"
    return True, f"{layers} {found.format('is')}; a pass takes {taken}"
