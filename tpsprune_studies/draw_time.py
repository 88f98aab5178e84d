"""Study ``draw-time``: whether only a ticket drawn after generalisation learns without delay.

Nets learn modular addition; at one moment or another a ticket is drawn, its plan replayed on the initial
weights, and trained alone. On digits, for comparison, the ticket keeps the weights it was drawn with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import tpsprune
from tpsprune import recipe
from tpsprune.numerics.macs import count_macs
from tpsprune.numerics.small_samples import Interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Bound, Finding, Plan, Quantity, Ruling, compare_steps
from tpsprune_studies.setup import Climb, Prepared, Setup, at_seed, prepare, resize

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
    seconds: float = 0.0


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
    prepared = prepare(at_seed(setup.recipe, trial.seed, threads=setup.threads, weight_decay=WEIGHT_DECAY))
    ticket = copy.deepcopy(prepared.model)
    drawn_step: int | None = 0
    if trial.moment not in {"dense", "random", "init"}:
        drawn_step = _train_to(trial.moment, setup, prepared)
    macs_share, climb = 1.0, Climb()
    if trial.moment != "dense":
        inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
        at_random: dict[str, Any] = {"units": "random", "widths": "uniform", "compensate": False}
        extraction = tpsprune.extract(
            prepared.model,
            [inputs],
            tpsprune.Macs(MACS),
            seed=trial.seed,
            repair=False,  # it trains on, or gives its plan alone
            **(at_random if trial.moment == "random" else {}),
        )
        ticket = tpsprune.replay(ticket, extraction.plan)
        # Counted on what is trained from here on.
        macs_share = count_macs(ticket, inputs[:2]).total / count_macs(prepared.model, inputs[:2]).total
    if drawn_step is not None:  # There is no ticket of a moment that never came.
        climb = prepared.climb(setup.level, setup.cap_steps, setup.reading_steps, model=ticket)
    return TicketTraining(
        trial=trial,
        drawn_step=drawn_step,
        steps=climb.steps,
        reached=climb.reached,
        accuracy=climb.accuracy,
        macs_share=macs_share,
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
    prepared = prepare(at_seed(recipe.read("digits"), trial.seed, threads=setup.threads))
    last_step = prepared.total_steps
    drawn_step = min(last_step, int(trial.moment.split()[-1]) * prepared.steps_per_epoch)
    for _ in prepared.fit(drawn_step, total_steps=last_step):
        pass
    inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
    extraction = tpsprune.extract(prepared.model, [inputs], tpsprune.Macs(MACS), repair=False)
    for _ in prepared.fit(last_step, model=extraction.ticket, first_step=drawn_step):
        pass
    return TicketTraining(
        trial=trial,
        drawn_step=drawn_step,
        steps=last_step,
        reached=True,
        accuracy=prepared.evaluate(model=extraction.ticket).accuracy,
        macs_share=extraction.macs_share,
    )


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
    last = by_moment[LAST]
    ratios = {
        moment: compare_steps([(others[seed], last[seed]) for seed in sorted(others.keys() & last.keys())])
        for moment, others in by_moment.items()
        if moment != LAST and len(others.keys() & last.keys()) > 1
    }
    on_digits = {
        epoch: [each.accuracy for each in done if each.trial.moment == f"digits, epoch {epoch}"]
        for epoch in DIGITS_EPOCHS
    }
    return Finding(
        name="draw-time",
        setup=setup,
        machine=machine,
        ruling=_rule(ratios),
        quantities=tuple(
            Quantity(name=f"{moment} / {LAST}", predicted="above 1", measured=measured, bound=bound)
            for moment, (measured, bound) in ratios.items()
        ),
        predicted_range=(1.0, None),
        figures={"ratios": ratios, "by_moment": by_moment, "on_digits": on_digits},
        trainings=tuple(done),
    )


def _rule(ratios: Mapping[str, tuple[Interval, Bound]]) -> Ruling:
    """Return refuted where one ticket was sooner, confirmed where all there should be were later."""
    if any(measured.high < 1.0 and not bound.may_be_larger for measured, bound in ratios.values()):
        return Ruling.REFUTED
    later = [measured.low > 1.0 and not bound.may_be_smaller for measured, bound in ratios.values()]
    return Ruling.CONFIRMED if all(later) and len(later) == len(MOMENTS) - 1 else Ruling.UNDECIDED
