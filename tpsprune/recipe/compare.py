"""``[compare]``: what a comparison fixes before its first run, and the arms there are."""

from __future__ import annotations

import random
from typing import Annotated, Final

from annotated_types import Interval, MinLen

from tpsprune.errors import Fault, RecipeError, did_you_mean
from tpsprune.recipe.bounds import AtLeastZero, Count, OpenShare, section

ARMS: Final = {
    "dense": "the dense model through its whole schedule: no TPS, no watching, validated once at the end",
    "dense-stopped": "the ticket's run without pruning: the same TPS, signals and rules",
    "dense-patience": "the dense model with ordinary early stopping on validation loss (compare.patience)",
    "ticket": "the recipe as it is: train, watch, draw, prune, retrain",
    "ticket-without-tps": "the same with TPS off",
    "shape-scratch": "the ticket's shape, new weights, as many epochs as the ticket's run trained",
    "dense-joules": "the dense model, its whole schedule compressed to what the ticket's run cost",
    "scratch-joules": "the ticket's shape, new weights, its schedule fitted to the same cost",
    "uniform-joules": "uniform widths of the ticket's MACs, new weights, at the same cost",
    "random-ticket": "the ticket's widths with random units, in one round, all else as the recipe has it",
    "early-bird": "after Early-Bird: L1 on batch-norm scales, mask rule, pruned by scale, no compensation",
}
"""Every arm, and what it is."""
DEFAULT_ARMS: Final = ("dense", "ticket", "dense-joules", "scratch-joules", "uniform-joules")
SHORTER_SCHEDULE: Final = ("dense-joules",)
STOPPED_EARLY: Final = ("dense-stopped", "dense-patience")
"""Dense models that a rule ends: opponents too, where they cost no more than the ticket."""
SMALLER_NET: Final = ("scratch-joules", "uniform-joules")
EQUAL_COST: Final = (*SHORTER_SCHEDULE, *SMALLER_NET)
"""The ticket's opponents: each trains for what the ticket's run of the same seed cost."""
AFTER_TICKET: Final = ("shape-scratch", "random-ticket", *EQUAL_COST)
"""Arms that depend on the ticket's run of the same seed."""
PRUNED: Final = ("ticket", "ticket-without-tps", "random-ticket", "early-bird")
"""Arms that train, prune and train on: a saving of theirs is claimed beside the opponents' only."""
FEWEST_ARMS: Final = 2


@section
class Compare:
    """The rules of a comparison; they are written down before its first run and not changed thereafter."""

    tolerance: OpenShare = 0.01
    """How much test accuracy an arm may lose and still count as equally good: 0.01 is one point."""
    patience: Count = 5
    """Readings without a fall of validation loss after which ``dense-patience`` stops."""
    inference_seconds: AtLeastZero = 10.0
    """Length of each window in which inference runs; below 10 nothing is claimed of inference, 0 is none."""
    inference_batches: Annotated[tuple[Count, ...], MinLen(1)] = (1, 64)
    idle_seconds: AtLeastZero = 10.0
    """How long the machine is watched doing nothing before each pair; 0 is not at all."""
    foreign_load: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.2
    """Share of the machine's processors that others may take; above it the measurement is invalid."""


def arms_of(text: str, source: str = "--arms") -> tuple[str, ...]:
    """Return the arms that a comma-separated list names; the first is the baseline.

    Raises:
        RecipeError: every fault of the list: an unknown arm, one named twice, fewer than two, or one that
            needs the ticket's run where that is not among them.

    >>> arms_of("dense, ticket")
    ('dense', 'ticket')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    choices = f" (there are: {', '.join(ARMS)})"
    faults = [
        Fault("", f"no arm '{name}'{did_you_mean(name, ARMS) or choices}")
        for name in names
        if name not in ARMS
    ]
    faults += [
        Fault("", f"names '{name}' more than once") for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if len(names) < FEWEST_ARMS:
        faults.append(Fault("", "at least two arms are needed, the first of them the baseline"))
    if "ticket" not in names:
        faults += [
            Fault("", f"'{name}' depends on 'ticket': name that too")
            for name in names
            if name in AFTER_TICKET
        ]
    if faults:
        raise RecipeError(source, faults)
    return names


def order_of(arms: tuple[str, ...], order_seed: int, pair: int) -> tuple[str, ...]:
    """Return the order of a pair's runs: random for one pair, the same reversed for the next.

    So that a machine that drifts does not favour the arm that always comes first. Arms that depend on
    the ticket come after it.
    """
    drawn = list(arms)
    random.Random(f"{order_seed}/{pair // 2}").shuffle(drawn)
    if pair % 2:
        drawn.reverse()
    order: list[str] = []
    waiting: list[str] = []
    for arm in drawn:
        if arm in AFTER_TICKET and "ticket" in arms and "ticket" not in order:
            waiting.append(arm)
        else:
            order += [arm, *(waiting if arm == "ticket" else [])]
    return tuple(order)
