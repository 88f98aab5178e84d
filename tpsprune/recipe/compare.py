"""``[compare]``: what a comparison fixes before its first run, and the arms there are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Final

from annotated_types import Interval, MinLen, Predicate

from tpsprune.errors import Fault, RecipeError, did_you_mean
from tpsprune.recipe.bounds import AtLeastZero, Count, OpenShare, Positive, section

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
    "family": "one training of the dense model, cut to every size (compare.sizes)",
    "dense-each": "the family's shapes, new weights, the whole schedule for each of them",
    "each-joules": "the same shapes, each on a shorter schedule: together they cost what the family did",
    "fine-tune": "the encoder of --from under a new last layer, all of it trained, the whole schedule",
    "frozen": "that encoder as it is: its features computed once, a new last layer trained on them",
    "frozen-ticket": "the same, then cut for this task, and the layer trained once more",
    "fine-tune-joules": "fine-tune, its whole schedule compressed to what the frozen ticket's run cost",
}
"""Every arm, and what it is."""
DEFAULT_ARMS: Final = ("dense", "ticket", "dense-joules", "scratch-joules", "uniform-joules")
SHORTER_SCHEDULE: Final[tuple[str, ...]] = ("dense-joules",)
STOPPED_EARLY: Final = ("dense-stopped", "dense-patience")
"""Dense models that a rule ends: opponents too, where they cost no more than the ticket."""
SMALLER_NET: Final[tuple[str, ...]] = ("scratch-joules", "uniform-joules")
SHORTER_EACH: Final[tuple[str, ...]] = ("each-joules",)
"""The family's opponent: shorter trainings, and smaller nets."""
SHORTER_TUNING: Final[tuple[str, ...]] = ("fine-tune-joules",)
"""The opponent of a frozen encoder."""
EQUAL_COST: Final = (*SHORTER_SCHEDULE, *SMALLER_NET, *SHORTER_EACH, *SHORTER_TUNING)
"""Opponents: each trains for what the run of the same seed that it depends on cost."""
LEADERS: Final = {
    **dict.fromkeys(("shape-scratch", "random-ticket", *SHORTER_SCHEDULE, *SMALLER_NET), "ticket"),
    **dict.fromkeys(("dense-each", *SHORTER_EACH), "family"),
    **dict.fromkeys(SHORTER_TUNING, "frozen-ticket"),
}
"""Arms that depend on the run of another arm on the same seed, and on which."""
SIZED: Final = ("family", "dense-each", "each-joules")
"""Arms whose run leaves a model of each size: they are compared with each other alone."""
FROZEN: Final = ("frozen", "frozen-ticket")
TRANSFERRED: Final = ("fine-tune", *FROZEN, *SHORTER_TUNING)
"""Arms whose encoder was trained elsewhere, which is charged to none: beside them there may be ``dense``."""
PRUNED: Final = ("ticket", "ticket-without-tps", "random-ticket", "early-bird", "family")
"""Arms that train and prune."""
OPPOSED: Final = (*PRUNED, *FROZEN)
"""Arms of which a saving is claimed beside their opponents only."""
FEWEST_ARMS: Final = 2
DEFAULT_SIZES: Final = (0.75, 0.5, 0.25)


def are_apart(values: Sequence[object]) -> bool:
    """Return whether no value is there twice."""
    return len(set(values)) == len(values)


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
    sizes: Annotated[tuple[OpenShare, ...], MinLen(1), Predicate(are_apart)] | None = None
    """Of ``family`` and the arms beside it: shares of the dense model's multiply-accumulates. Without them
    0.75, 0.5 and 0.25."""
    head_learning_rate: Positive | None = None
    """Of a last layer alone, in ``frozen`` and ``frozen-ticket``; without it that of ``[train]``."""


def arms_of(text: str, source: str = "--arms") -> tuple[str, ...]:
    """Return the arms that a comma-separated list names; the first is the baseline.

    Raises:
        RecipeError: every fault of the list: an unknown arm, one named twice, fewer than two, one that needs
            the run of another where that is not among them, arms of several sizes beside arms of one, or
            arms with a trained encoder beside others than ``dense``.

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
    faults += [
        Fault("", f"'{name}' depends on '{LEADERS[name]}': name that too")
        for name in names
        if name in LEADERS and LEADERS[name] not in names
    ]
    sized = [name for name in names if name in SIZED]
    if others := [name for name in names if name in ARMS and sized and name not in SIZED]:
        message = f"'{sized[0]}' leaves a model of each size, and '{others[0]}' one model"
        faults.append(Fault("", f"{message}; beside it there may be {', '.join(SIZED)}"))
    moved, beside = [name for name in names if name in TRANSFERRED], ("dense", *TRANSFERRED)
    if others := [name for name in names if name in ARMS and moved and name not in beside]:
        message = f"'{moved[0]}' begins with an encoder trained elsewhere, and '{others[0]}' does not"
        faults.append(Fault("", f"{message}; beside it there may be {', '.join(beside)}"))
    if faults:
        raise RecipeError(source, faults)
    return names


def order_of(arms: tuple[str, ...], order_seed: int, pair: int) -> tuple[str, ...]:
    """Return the order of a pair's runs: random for one pair, the same reversed for the next.

    So that a machine that drifts does not favour the arm that always comes first. Arms that depend on
    another come after it.
    """
    drawn = list(arms)
    random.Random(f"{order_seed}/{pair // 2}").shuffle(drawn)
    if pair % 2:
        drawn.reverse()
    order: list[str] = []
    for arm in drawn:
        if LEADERS.get(arm) in set(arms) - set(order):
            continue
        order += [arm, *(each for each in drawn[: drawn.index(arm)] if LEADERS.get(each) == arm)]
    return tuple(order)
