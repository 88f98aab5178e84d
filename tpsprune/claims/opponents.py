"""The ticket beside its honest opponents: a shorter schedule, and a smaller net from scratch, at equal cost.

And the answer to what a user asks: for these joules, what gives the best model?
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tpsprune.claims.change import saving
from tpsprune.claims.ladder import in_points
from tpsprune.claims.pairs import CountedPairs
from tpsprune.numerics.small_samples import mean_interval
from tpsprune.recipe.compare import (
    EQUAL_COST,
    FROZEN,
    OPPOSED,
    SHORTER_EACH,
    SHORTER_SCHEDULE,
    SHORTER_TUNING,
    SIZED,
    SMALLER_NET,
)
from tpsprune.records import Answer, ArmPoint, Reason, classes_of, joules_of, seconds_of

EQUAL_COST_SHARE: Final = 0.05
"""How far an opponent's cost may lie from the ticket's: its schedule is fitted to it, and machines drift."""


def opponents_not_run(counted: CountedPairs, arm: str) -> Iterator[Reason]:
    """Yield a reason for each kind of opponent that no arm of the comparison is, where the arm needs them."""
    if arm not in OPPOSED:
        return
    kinds = {"shorter schedule": SHORTER_SCHEDULE, "smaller net from scratch": SMALLER_NET}
    if arm == "family":
        kinds = {"shorter training of each size": SHORTER_EACH}
    elif arm in FROZEN:
        kinds = {"shorter fine-tuning": SHORTER_TUNING}
    for what, kind in kinds.items():
        if not set(kind) & set(counted.design.arms):
            arms = " or ".join(f"'{each}'" for each in kind)
            yield Reason("OPPONENT_NOT_RUN", f"no {what} was run beside it, and one may do as well: {arms}")


def does_as_well(counted: CountedPairs, arm: str, opponents: Sequence[str]) -> Iterator[Reason]:
    """Yield why the arm is not shown to beat an opponent, for each opponent of which that is so.

    Beaten: the one-sided 95 % lower bound of the paired difference in accuracy, arm minus opponent, is above
    zero, in every pair that counts, for an opponent that cost no less than 0.95 of what the arm did. One
    whose cost was not fitted counts where it cost at most 1.05 times as much. Every opponent must be beaten,
    so no correction for several tests is due.
    """
    if arm not in OPPOSED:
        return
    for opponent in (each for each in opponents if each in counted.design.arms):
        accuracy, is_fitted = counted.accuracy_of(arm, opponent), opponent in EQUAL_COST
        if accuracy is None or accuracy.pairs < len(counted.pairs):
            if is_fitted:
                lost = f"'{opponent}' left no model in a pair: nothing shows it beaten"
                yield Reason("OPPONENT_FAILED", lost)
            continue
        cost_share = _cost_share(counted, opponent, arm)
        seen = (
            f"'{opponent}' ended at {accuracy.baseline_mean:.4f} beside {accuracy.mean:.4f} "
            f"for {cost_share:.2f} of the cost"
        )
        if accuracy.lower_share is None or accuracy.lower_share <= 0.0:
            if not is_fitted and cost_share > 1.0 + EQUAL_COST_SHARE:
                continue
            bound = "unknown" if accuracy.lower_share is None else in_points(accuracy.lower_share)
            difference = in_points(accuracy.difference_share)
            yield Reason(
                "NOT_BETTER", f"{seen}: {difference}, with a one-sided 95 % bound of {bound}, not above 0"
            )
        elif is_fitted and cost_share < 1.0 - EQUAL_COST_SHARE:
            yield Reason("NOT_AT_EQUAL_COST", f"{seen}, and an opponent must be given as much")


def answer_of(counted: CountedPairs) -> Answer:
    """Return what gives the best model for the joules of the primary arm, and every arm's mean and interval.

    Compared are the arms that cost at most 1.05 times as much. The best is the highest mean accuracy; an arm
    does as well where the one-sided 95 % lower bound of best minus arm, over pairs, is not above zero. Joules
    where all are metered, else seconds.
    """
    primary, quality = counted.design.primary, counted.design.quality
    points = [point for arm in counted.design.arms if (point := _point(counted, arm))]
    front: list[str] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.accuracy)):
        if all(point.accuracy > each.accuracy for each in points if each.arm in front):
            front.append(point.arm)
    found = {point.arm: point for point in points}
    if primary not in found or len(counted.pairs) < 2:
        return Answer("Fewer than two pairs are done: nothing is known yet.", tuple(points), tuple(front))
    mine = found[primary]
    near = [each for each in points if each.cost <= (1.0 + EQUAL_COST_SHARE) * mine.cost]
    best = max(near, key=lambda each: each.accuracy)
    equals = [each for each in near if each is not best and not _is_beaten(counted, best.arm, each.arm)]
    what = "energy" if mine.joules is not None else "time"
    gave = f"the best models (mean test {quality}" if primary in SIZED else f"the best model (test {quality}"
    told = f"For the {what} of '{primary}', '{best.arm}' gave {gave} {best.accuracy:.4f}, {best.pairs} pairs)"
    others = [each for each in near if each is not best]
    if equals:
        arms = _listed(f"'{each.arm}' ({each.accuracy:.4f})" for each in equals)
        told += f"; {arms} {'is' if len(equals) == 1 else 'are'} not shown to be worse."
    elif others:
        told += ", beyond the noise."
    else:
        told += "; no other arm was run at that cost."
    if costlier := [each for each in points if each not in near]:
        told += " More: " + _listed(
            f"'{each.arm}' {each.accuracy:.4f} for {each.cost / mine.cost:.2f} times as much"
            for each in costlier
        )
        told += "."
    return Answer(told, tuple(points), tuple(front))


def _point(counted: CountedPairs, arm: str) -> ArmPoint | None:
    runs = [run for pair in counted.pairs if not (run := counted.run(arm, pair)).failure]
    found = [run.accuracy for run in runs if run.accuracy is not None]
    if not found:
        return None
    metered = [joules_of(run.windows) for run in counted.runs if not run.failure]
    joules = None if None in metered else [joules_of(run.windows) or 0.0 for run in runs]
    costs = joules or [seconds_of(run.windows) for run in runs]
    interval = mean_interval(found) if len(found) > 1 else None
    spread = mean_interval(costs) if len(costs) > 1 else None
    return ArmPoint(
        arm=arm,
        pairs=len(found),
        accuracy=statistics.fmean(found),
        accuracy_low=None if interval is None else interval.low,
        accuracy_high=None if interval is None else interval.high,
        joules=None if joules is None else statistics.fmean(joules),
        cost=statistics.fmean(costs),
        cost_low=None if spread is None else max(spread.low, 0.0),
        cost_high=None if spread is None else spread.high,
        energy_class=classes_of(window for run in runs for window in run.windows),
    )


def _is_beaten(counted: CountedPairs, best: str, arm: str) -> bool:
    accuracy = counted.accuracy_of(best, arm)
    return accuracy is not None and accuracy.lower_share is not None and accuracy.lower_share > 0.0


def _cost_share(counted: CountedPairs, arm: str, baseline: str) -> float:
    """Return the geometric mean of what an arm cost over what another did: joules, or seconds without."""
    couples = counted.couples(arm, baseline)
    joules = [(joules_of(mine.windows), joules_of(other.windows)) for mine, other in couples]
    pairs = [(mine, other) for mine, other in joules if mine and other]
    if len(pairs) < len(couples):
        pairs = [(seconds_of(mine.windows), seconds_of(other.windows)) for mine, other in couples]
    return 1.0 - saving(pairs)


def _listed(names: Iterable[str]) -> str:
    """Return names as a sentence has them.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
