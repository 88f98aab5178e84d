"""What the trainings of the study ``coupling`` say by width and seed: edges of λ, and loops of the order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log, log10
from typing import Final

from tpsprune.numerics.small_samples import Interval, slope_interval
from tpsprune.studies import coupling_edges
from tpsprune.studies.coupling_edges import Outcome
from tpsprune.studies.coupling_loop import Loop, loop_of
from tpsprune.studies.coupling_run import Answers, Coupled

__all__ = ["Cell", "Ramp", "cell_of", "exponent", "ramps_of", "without_tps"]

LEAST_SIZES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One width and seed under one variant: steps without TPS, and what each rank of λ came to."""

    variant: str
    width: int
    seed: int
    without: int
    outcomes: Mapping[int, Outcome]

    @property
    def lower(self) -> float | None:
        """The smallest λ that speeds up."""
        return coupling_edges.lower(self.without, self.outcomes)

    @property
    def doubles(self) -> float | None:
        """The smallest λ that is twice as fast: the same edge, drawn higher."""
        return coupling_edges.lower(self.without, self.outcomes, factor=2.0)

    @property
    def upper(self) -> float | None:
        """The largest λ that still learns."""
        return coupling_edges.upper(self.outcomes)

    @property
    def best(self) -> float:
        """By how much the fastest λ is faster than without TPS; 0 where none learns."""
        reached = [outcome.steps for outcome in self.outcomes.values() if outcome.reached]
        return self.without / min(reached) if reached else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """One ramp, and its loop where the order rose at all."""

    variant: str
    answers: Answers
    width: int
    steps_each: int
    done: Coupled
    loop: Loop | None


def without_tps(done: Iterable[Coupled], width: int, seed: int) -> Coupled | None:
    """Return the training without TPS of a width and seed, none where it is not done yet."""
    return next(
        (
            each
            for each in done
            if (each.trial.variant, each.trial.width, each.trial.seed) == ("none", width, seed)
        ),
        None,
    )


def cell_of(done: Sequence[Coupled], variant: str, width: int, seed: int) -> Cell | None:
    """Return what is done of a cell; none where training without TPS is not done or never got there."""
    plain = without_tps(done, width, seed)
    if plain is None or not plain.reached:
        return None
    mine = (
        each
        for each in done
        if (each.trial.variant, each.trial.width, each.trial.seed) == (variant, width, seed)
        and not each.trial.is_ramp
        and each.trial.scaling == "none"
    )
    return Cell(
        variant=variant,
        width=width,
        seed=seed,
        without=plain.steps,
        outcomes={
            round(2 * log10(each.trial.couplings[0])): Outcome(each.steps, each.reached) for each in mine
        },
    )


def ramps_of(done: Iterable[Coupled]) -> list[Ramp]:
    """Return every ramp with its loop."""
    return [
        Ramp(
            variant=each.trial.variant,
            answers=each.trial.answers,
            width=each.trial.width,
            steps_each=each.trial.steps_each,
            done=each,
            loop=loop_of(each.trial.couplings, each.orders),
        )
        for each in done
        if each.trial.is_ramp
    ]


def exponent(points: Iterable[tuple[int, float | None]]) -> Interval | None:
    """Return the power of N that a figure goes with, over those (N, figure) that there are.

    None of fewer than three sizes.
    """
    found = [(log(size), log(value)) for size, value in points if value is not None]
    return slope_interval(found) if len({size for size, _ in found}) >= LEAST_SIZES else None
