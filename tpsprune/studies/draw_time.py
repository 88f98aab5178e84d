"""Study ``draw-time``: whether only a ticket drawn after generalisation learns without delay.

Nets learn modular addition; at one moment or another a ticket is drawn, its units replayed on the initial
weights, and trained alone. Beside it digits, where the ticket goes on with the weights it was drawn with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from tpsprune.numerics.small_samples import Interval, mean_interval, ratio_interval
from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.draw_time_run import (
    AFTER_STEPS,
    DIGITS_EPOCHS,
    MACS,
    MEMORISED,
    MOMENTS,
    TRANSITION,
    WEIGHT_DECAY,
    Drawn,
    DrawTrial,
    run_draw,
)
from tpsprune.studies.figures import count, ratio
from tpsprune.studies.finding import Finding, Plan, Quantity, Table
from tpsprune.studies.setup import Setup, sized
from tpsprune.studies.verdict import Bound, Ruling

__all__ = ["finding", "plan", "record", "run", "setup", "words"]

PREDICTION: Final = STUDIES["draw-time"]
LAST: Final = "after"
OTHERS: Final = tuple(moment for moment in MOMENTS if moment != LAST)
LIMITS: Final = (
    "The published work prunes single weights, without regard to layers; here whole units go, chosen by "
    "interpolation. A failure speaks against tickets of units, not of weights.",
    "One architecture (a token MLP with one hidden layer), half of the multiply-accumulates, and the weight "
    "decay that was best without TPS.",
    "Five comparisons are made on a few seeds, each at 95 %: one of five a little off would be no wonder.",
    "Steps before the draw are not counted: the question is what the ticket is worth, not whether it pays.",
)


run = run_draw
record = Drawn.from_json


def setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the study's settings at that size."""
    return sized(Setup(recipe=recipe, seeds=4), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[Drawn]) -> Plan:  # noqa: ARG001 -- nothing depends on what is done
    """Return every moment on every seed, those of a seed one after the other."""
    moments = (*MOMENTS, *(f"digits, epoch {epoch}" for epoch in DIGITS_EPOCHS))
    return Plan(tuple(DrawTrial(moment=each, seed=seed) for seed in setup.pair_seeds for each in moments))


def words(setup: Setup, last: Drawn) -> str:
    """Return which training ended, and how."""
    drawn = "never drawn" if last.drawn_step is None else f"drawn at step {count(last.drawn_step)}"
    if last.trial.moment.startswith("digits"):
        reached = f"accuracy {last.accuracy:.3f} at the end"
    elif last.reached:
        reached = f"{setup.level:g} at step {count(last.steps)}"
    else:
        reached = f"{last.accuracy:.3f} at the cap"
    return f"seed {last.trial.seed} {last.trial.moment}: {drawn}, then {reached}"


def finding(setup: Setup, done: Sequence[Drawn], machine: Mapping[str, Any]) -> Finding:
    """Return how much sooner the ticket of ``after`` learns than each other, paired by seed.

    A training that never reached the level counts with the steps it was given, which makes its pair's
    ratio a bound.
    """
    by_moment = {
        moment: {
            each.trial.seed: each
            for each in done
            if each.trial.moment == moment and each.drawn_step is not None
        }
        for moment in MOMENTS
    }
    found = {moment: _beside(by_moment[moment], by_moment[LAST]) for moment in OTHERS}
    told = {moment: each for moment, each in found.items() if each is not None}
    return Finding(
        prediction=PREDICTION,
        ruling=_ruling(found),
        sentence=_sentence(told),
        quantities=tuple(
            Quantity(name=f"{moment} / {LAST}", predicted="above 1", measured=interval, bound=bound)
            for moment, (interval, bound) in told.items()
        ),
        measure="ratio of the steps to the level",
        counted="pairs",
        predicted_range=(1.0, None),
        protocol=_protocol(setup),
        tables=(_step_table(by_moment, setup.pair_seeds), _digits_table(done)),
        limits=LIMITS,
        command=f"tpsprune study {PREDICTION.name} --seeds {setup.seeds} --cap {setup.cap_steps}",
        settings={"seeds": list(setup.pair_seeds), **setup.decisive()},
        machine=machine,
        trainings=tuple(done),
    )


def _beside(others: Mapping[int, Drawn], last: Mapping[int, Drawn]) -> tuple[Interval, Bound] | None:
    """Return the ratio of steps over the seeds that both have; none of fewer than two."""
    seeds = sorted(others.keys() & last.keys())
    if len(seeds) < 2:
        return None
    interval = ratio_interval((others[seed].steps, last[seed].steps) for seed in seeds)
    bound = Bound(
        may_be_larger=any(not others[seed].reached for seed in seeds),
        may_be_smaller=any(not last[seed].reached for seed in seeds),
    )
    return interval, bound


def _ruling(found: Mapping[str, tuple[Interval, Bound] | None]) -> Ruling:
    if any(each is not None and each[0].high < 1.0 and not each[1].may_be_larger for each in found.values()):
        return Ruling.REFUTED
    sure = all(
        each is not None and each[0].low > 1.0 and not each[1].may_be_smaller for each in found.values()
    )
    return Ruling.CONFIRMED if sure else Ruling.UNDECIDED


def _sentence(told: Mapping[str, tuple[Interval, Bound]]) -> str:
    parts = [
        f"{moment} {bound.words} {ratio(interval.mean)} ({ratio(interval.low)} to {ratio(interval.high)})"
        for moment, (interval, bound) in told.items()
    ]
    said = ", ".join(" ".join(part.split()) for part in parts)
    return f"times the steps of the ticket drawn after generalisation, 95 % intervals: {said}."


def _protocol(setup: Setup) -> tuple[str, ...]:
    return (
        f"Recipe `{setup.recipe.name}` without TPS, weight decay {WEIGHT_DECAY:g}. Half of the "
        f"multiply-accumulates ({MACS:g}) go; the plan is replayed on the initial weights, nothing folded, "
        "and trained from step 0; data, order and initial weights are those of the seed.",
        f"Moments: never (`dense`); at step 0 (`init`); accuracy {MEMORISED:g} on the training items "
        f"(`memorising`); validation accuracy {TRANSITION:g} (`transition`); {AFTER_STEPS} steps after "
        f"{setup.level:g} (`after`). `random`: units drawn by lot, every layer alike.",
        f"Measured: steps to validation accuracy {setup.level:g}, read every {setup.reading_steps}, at most "
        f"{count(setup.cap_steps)}; geometric mean of the ratios to `after` over seeds, Student's t on "
        "logarithms.",
        "Verdict: confirmed where every other ticket's interval, and the dense net's, lies above 1; refuted "
        "where one lies below it; undecided else.",
        "Digits: trained to an epoch, cut, trained on to the end of the schedule with the weights at hand.",
    )


def _step_table(by_moment: Mapping[str, Mapping[int, Drawn]], seeds: Sequence[int]) -> Table:
    rows = []
    for moment, trained in by_moment.items():
        steps = [_steps(trained[seed]) if seed in trained else "never drawn" for seed in seeds]
        drawn = [float(each.drawn_step) for each in trained.values() if each.drawn_step is not None]
        rows.append((moment, f"{fmean(drawn):.0f}" if drawn else "", *steps))
    return Table(
        title="Steps to the level, by moment of the draw",
        columns=("ticket", "drawn at, mean", *(f"seed {seed}" for seed in seeds)),
        rows=tuple(rows),
    )


def _steps(trained: Drawn) -> str:
    return count(trained.steps) if trained.reached else f"> {count(trained.steps)}"


def _digits_table(done: Sequence[Drawn]) -> Table:
    rows = []
    for epoch in DIGITS_EPOCHS:
        accuracies = [each.accuracy for each in done if each.trial.moment == f"digits, epoch {epoch}"]
        if len(accuracies) > 1:
            found = mean_interval(accuracies)
            rows.append((str(epoch), f"{found.mean:.4f}", f"{found.low:.4f} to {found.high:.4f}"))
    return Table(
        title=f"Digits at {MACS:g} of the multiply-accumulates: accuracy at the end, by epoch of the draw",
        columns=("epoch", "validation accuracy", "95 % interval"),
        rows=tuple(rows),
    )
