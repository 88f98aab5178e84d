"""Study ``draw-time``: whether only a ticket drawn after generalisation learns without delay.

Nets learn modular addition; at one moment or another a ticket is drawn, its plan replayed on the initial
weights, and trained alone. On digits, for comparison, the ticket keeps the weights it was drawn with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import tpsprune
from tpsprune import recipe
from tpsprune.numerics.macs import count_macs
from tpsprune.numerics.small_samples import Interval, mean_interval, ratio_interval
from tpsprune.recipe import Recipe
from tpsprune.training import count_steps
from tpsprune_studies.catalogue import STUDIES, write_protocol
from tpsprune_studies.finding import (
    Bound,
    Finding,
    Plan,
    Quantity,
    Ruling,
    Table,
    format_interval,
    format_ratio,
)
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize
from tpsprune_studies.tuned_comparison import format_steps

PREDICTION: Final = STUDIES["draw-time"]
MOMENTS: Final = ("dense", "random", "init", "memorising", "transition", "after")
"""When the ticket is drawn; for comparison no ticket (``dense``), and random units (``random``)."""
DIGITS_EPOCHS: Final = (0, 1, 3, 10, 30)
MACS: Final = 0.5
MEMORISED: Final = 0.95
"""Accuracy on the training items at which they count as memorised; weight decay keeps their loss up."""
TRANSITION: Final = 0.5
"""Validation accuracy half-way up."""
AFTER_STEPS: Final = 200
"""Steps beyond the level at which the ticket of ``after`` is drawn."""
WEIGHT_DECAY: Final = 4.0
CALIBRATION_ITEMS: Final = 512
LAST: Final = "after"
OTHERS: Final = tuple(moment for moment in MOMENTS if moment != LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketTrial:
    """A training: the moment of the draw (on digits, the epoch), and the seed of all that is random."""

    moment: str
    seed: int

    @property
    def arm(self) -> str:
        """The moment."""
        return self.moment

    @property
    def is_on_digits(self) -> bool:
        """Whether the net learns digits, and not addition."""
        return self.moment.startswith("digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketTraining:
    """How a ticket trained: on addition from the initial weights, on digits from those it was drawn with.

    ``drawn_step`` is where it was drawn, none where the moment never came; ``steps`` were taken by the
    ticket up to the level, or to the cap where it was not ``reached``.
    """

    trial: TicketTrial
    drawn_step: int | None
    steps: int
    reached: bool
    accuracy: float
    macs_share: float
    seconds: float


TRAINING: Final = TicketTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=4), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[TicketTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every moment on every seed, those of a seed one after the other."""
    moments = (*MOMENTS, *(f"digits, epoch {epoch}" for epoch in DIGITS_EPOCHS))
    return Plan(tuple(TicketTrial(moment=each, seed=seed) for seed in setup.pair_seeds for each in moments))


def run(setup: Setup, trial: TicketTrial) -> TicketTraining:
    """Draw a ticket and train it.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    if trial.is_on_digits:
        return _run_on_digits(setup, trial)
    started = time.monotonic()
    prepared = prepare(at_seed(setup.recipe, trial.seed, threads=setup.threads, weight_decay=WEIGHT_DECAY))
    ticket = copy.deepcopy(prepared.model)
    drawn_step: int | None = 0
    if trial.moment not in {"dense", "random", "init"}:
        drawn_step = _train_to(trial.moment, setup, prepared)
    macs_share, steps, accuracy = 1.0, 0, 0.0
    if trial.moment != "dense":
        inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
        at_random: dict[str, Any] = {"units": "random", "widths": "uniform", "compensate": False}
        extraction = tpsprune.extract(
            prepared.model,
            [inputs],
            tpsprune.Macs(MACS),
            seed=trial.seed,
            round_to=1,
            **(at_random if trial.moment == "random" else {}),
        )
        ticket = tpsprune.replay(ticket, extraction.plan)
        # Counted on what is trained from here on.
        macs_share = count_macs(ticket, inputs[:2]).total / count_macs(prepared.model, inputs[:2]).total
    for tick in prepared.fit(setup.cap_steps, model=ticket):
        if drawn_step is None:  # There is no ticket of a moment that never came.
            break
        if tick.step % setup.reading_steps and tick.step < setup.cap_steps:
            continue
        steps, accuracy = tick.step, prepared.evaluate(model=ticket).accuracy
        if accuracy >= setup.level:
            break
    return TicketTraining(
        trial=trial,
        drawn_step=drawn_step,
        steps=steps,
        reached=accuracy >= setup.level,
        accuracy=accuracy,
        macs_share=macs_share,
        seconds=time.monotonic() - started,
    )


def _train_to(moment: str, setup: Setup, prepared: Prepared) -> int | None:
    """Train up to a moment; return its step, or none where it did not come before the cap."""
    levels = {"memorising": MEMORISED, "transition": TRANSITION, LAST: setup.level}
    split = prepared.dataset.train if moment == "memorising" else prepared.dataset.validation
    last_step = None
    for tick in prepared.fit(setup.cap_steps):
        if last_step is None and not tick.step % setup.reading_steps:
            reached = prepared.evaluate(split).accuracy >= levels[moment]
            last_step = tick.step + (AFTER_STEPS if moment == LAST else 0) if reached else None
        if tick.step == last_step:
            return last_step
    return None


def _run_on_digits(setup: Setup, trial: TicketTrial) -> TicketTraining:
    """Train to an epoch, prune, and train the ticket to the end of the same schedule."""
    started = time.monotonic()
    prepared = prepare(at_seed(recipe.read("digits"), trial.seed, threads=setup.threads))
    last_step = count_steps(prepared.recipe.train.epochs, prepared.steps_per_epoch)
    drawn_step = min(last_step, int(trial.moment.split()[-1]) * prepared.steps_per_epoch)
    for _ in prepared.fit(drawn_step, total_steps=last_step):
        pass
    inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
    extraction = tpsprune.extract(prepared.model, [inputs], tpsprune.Macs(MACS), round_to=1)
    for _ in prepared.fit(last_step, model=extraction.ticket, first_step=drawn_step):
        pass
    return TicketTraining(
        trial=trial,
        drawn_step=drawn_step,
        steps=last_step,
        reached=True,
        accuracy=prepared.evaluate(model=extraction.ticket).accuracy,
        macs_share=extraction.macs_share,
        seconds=time.monotonic() - started,
    )


def describe(setup: Setup, last: TicketTraining) -> str:
    """Return which training ended, and how."""
    drawn = "never drawn" if last.drawn_step is None else f"drawn at step {last.drawn_step:,}"
    if last.trial.is_on_digits:
        end = f"accuracy {last.accuracy:.3f} at the end"
    elif last.reached:
        end = f"{setup.level:g} at step {last.steps:,}"
    else:
        end = f"{last.accuracy:.3f} at the cap"
    return f"seed {last.trial.seed} {last.trial.moment}: {drawn}, then {end}"


def conclude(setup: Setup, done: Sequence[TicketTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how much sooner the ticket of ``after`` learns than each other, paired by seed.

    A training that never reached the level counts with its allowed steps, which makes its pair's
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
    ratios = {moment: _compare(by_moment[moment], by_moment[LAST]) for moment in OTHERS}
    measured = {moment: each for moment, each in ratios.items() if each is not None}
    return Finding(
        prediction=PREDICTION,
        ruling=_rule(ratios),
        sentence=_write_sentence(measured),
        quantities=tuple(
            Quantity(name=f"{moment} / {LAST}", predicted="above 1", measured=interval, bound=bound)
            for moment, (interval, bound) in measured.items()
        ),
        measure="ratio of the steps to the level",
        counted="pairs",
        predicted_range=(1.0, None),
        protocol=write_protocol(
            PREDICTION.name,
            setup=setup,
            weight_decay=WEIGHT_DECAY,
            macs=MACS,
            memorised=MEMORISED,
            transition=TRANSITION,
            after_steps=AFTER_STEPS,
        ),
        tables=(_step_table(by_moment, setup.pair_seeds), _digits_table(done)),
        command=setup.command(PREDICTION.name),
        settings={"seeds": list(setup.pair_seeds), **setup.decisive()},
        machine=machine,
        trainings=tuple(done),
    )


def _compare(
    others: Mapping[int, TicketTraining], last: Mapping[int, TicketTraining]
) -> tuple[Interval, Bound] | None:
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


def _rule(ratios: Mapping[str, tuple[Interval, Bound] | None]) -> Ruling:
    if any(each is not None and each[0].high < 1.0 and not each[1].may_be_larger for each in ratios.values()):
        return Ruling.REFUTED
    sure = all(
        each is not None and each[0].low > 1.0 and not each[1].may_be_smaller for each in ratios.values()
    )
    return Ruling.CONFIRMED if sure else Ruling.UNDECIDED


def _write_sentence(ratios: Mapping[str, tuple[Interval, Bound]]) -> str:
    parts = ", ".join(
        f"{moment} {bound.qualify(format_ratio(interval.mean))} ({format_interval(interval)})"
        for moment, (interval, bound) in ratios.items()
    )
    return f"times the steps of the ticket drawn after generalisation, 95 % intervals: {parts}."


def _step_table(by_moment: Mapping[str, Mapping[int, TicketTraining]], seeds: Sequence[int]) -> Table:
    rows = []
    for moment, trainings in by_moment.items():
        steps = {seed: format_steps(each.steps, reached=each.reached) for seed, each in trainings.items()}
        drawn = [float(each.drawn_step) for each in trainings.values() if each.drawn_step is not None]
        mean = f"{fmean(drawn):.0f}" if drawn else ""
        rows.append((moment, mean, *(steps.get(seed, "never drawn") for seed in seeds)))
    header = " | ".join(["ticket", "drawn at, mean", *(f"seed {seed}" for seed in seeds)])
    return Table("Steps to the level, by moment of the draw", header, rows)


def _digits_table(done: Sequence[TicketTraining]) -> Table:
    rows = []
    for epoch in DIGITS_EPOCHS:
        accuracies = [each.accuracy for each in done if each.trial.moment == f"digits, epoch {epoch}"]
        if len(accuracies) > 1:
            found = mean_interval(accuracies)
            rows.append((str(epoch), f"{found.mean:.4f}", f"{found.low:.4f} to {found.high:.4f}"))
    return Table(
        f"Digits at {MACS:g} of the multiply-accumulates: accuracy at the end, by epoch of the draw",
        "epoch | validation accuracy | 95 % interval",
        rows,
    )
