"""One training of the study ``draw-time``: a ticket drawn at some moment, and how it fares from there."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from torch import nn

from tpsprune import pruning, recipe, training
from tpsprune.data import Dataset
from tpsprune.numerics.forward import count_macs
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs
from tpsprune.recipe.task import split_by
from tpsprune.recipe.tps import Tps
from tpsprune.studies.setup import Setup
from tpsprune.studies.trial import DEVICE, accuracy_of, begin, probe_of, ticks_of

__all__ = [
    "AFTER_STEPS",
    "DIGITS_EPOCHS",
    "MACS",
    "MEMORISED",
    "MOMENTS",
    "TRANSITION",
    "WEIGHT_DECAY",
    "DrawTrial",
    "Drawn",
    "run_draw",
]

MOMENTS: Final = ("dense", "random", "init", "memorising", "transition", "after")
"""When the ticket is drawn; without any (``dense``), and units drawn by lot (``random``), beside them."""
DIGITS_EPOCHS: Final = (0, 1, 3, 10, 30)
MACS: Final = 0.5
MEMORISED: Final = 0.95
"""Accuracy on the training items at which they are known by heart; weight decay keeps their loss up."""
TRANSITION: Final = 0.5
"""Validation accuracy half-way up."""
AFTER_STEPS: Final = 200
"""Steps beyond the level at which the ticket of ``after`` is drawn."""
WEIGHT_DECAY: Final = 4.0
PROBE_ITEMS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawTrial:
    """A training: the moment of the draw (on digits, the epoch), and the seed of all that is random."""

    moment: str
    seed: int

    @property
    def arm(self) -> str:
        """The moment."""
        return self.moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """How a ticket fared: on addition from the initial weights, on digits from those it was drawn with.

    ``drawn_step`` is where it was drawn, none where the moment never came; ``steps`` were taken by the
    ticket up to the level, or to the cap where it was not ``reached``.
    """

    trial: DrawTrial
    drawn_step: int | None
    steps: int
    reached: bool
    accuracy: float
    macs_share: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Drawn:
        """Rebuild a training written by ``to_json``."""
        return cls(**{**raw, "trial": DrawTrial(**raw["trial"])})


def run_draw(setup: Setup, trial: DrawTrial) -> Drawn:
    """Do one training.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    if trial.moment.startswith("digits"):
        return _on_digits(setup, trial)
    started = time.monotonic()
    found = replace(
        setup.recipe,
        seed=trial.seed,
        task=replace(setup.recipe.task, data=split_by(setup.recipe.task.data, trial.seed)),
        train=replace(setup.recipe.train, threads=setup.threads, weight_decay=WEIGHT_DECAY),
        tps=Tps(variant="none"),
    )
    dataset, model = begin(found)
    execution = training.Execution.of(found.train, DEVICE)
    initial = copy.deepcopy(model)
    drawn_step = (
        0
        if trial.moment in {"dense", "random", "init"}
        else _trained_to(trial.moment, setup, found, dataset, model, execution)
    )
    macs_share, steps, accuracy = 1.0, 0, 0.0
    if trial.moment != "dense":
        settings = Prune(target=Macs(MACS))
        if trial.moment == "random":
            settings = replace(settings, units="random", widths="uniform", fold=False)
        probe = probe_of(dataset, trial.seed, PROBE_ITEMS)
        extraction = pruning.extract(model, [probe], settings, seed=trial.seed)
        initial = pruning.replay(initial, extraction.plan)
        # Counted on what is trained from here on.
        macs_share = count_macs(initial, probe[:2]).total / count_macs(model, probe[:2]).total
    for tick in ticks_of(found, dataset, initial, execution, setup.cap_steps):
        if drawn_step is None:  # There is no ticket of a moment that never came.
            break
        if tick.step % setup.reading_steps and tick.step < setup.cap_steps:
            continue
        steps, accuracy = tick.step, accuracy_of(initial, dataset, execution)
        if accuracy >= setup.level:
            break
    return Drawn(
        trial=trial,
        drawn_step=drawn_step,
        steps=steps,
        reached=accuracy >= setup.level,
        accuracy=accuracy,
        macs_share=macs_share,
        seconds=time.monotonic() - started,
    )


def _trained_to(
    moment: str,
    setup: Setup,
    found: Recipe,
    dataset: Dataset,
    model: nn.Module,
    execution: training.Execution,
) -> int | None:
    """Train up to a moment; return its step, or none where it did not come before the cap."""
    levels = {"memorising": MEMORISED, "transition": TRANSITION, "after": setup.level}
    left = None
    for tick in ticks_of(found, dataset, model, execution, setup.cap_steps):
        if left is not None:
            left -= 1
            if not left:
                return tick.step
            continue
        if tick.step % setup.reading_steps:
            continue
        split = dataset.train if moment == "memorising" else dataset.validation
        if accuracy_of(model, dataset, execution, split) < levels[moment]:
            continue
        if moment != "after":
            return tick.step
        left = AFTER_STEPS
    return None


def _on_digits(setup: Setup, trial: DrawTrial) -> Drawn:
    """Train to an epoch, cut, and go on with the ticket to the end of the same schedule."""
    started = time.monotonic()
    found = recipe.read("digits")
    found = replace(
        found,
        seed=trial.seed,
        task=replace(found.task, data=split_by(found.task.data, trial.seed)),
        train=replace(found.train, threads=setup.threads),
        tps=Tps(variant="none"),
    )
    dataset, model = begin(found)
    execution = training.Execution.of(found.train, DEVICE)
    per_epoch = training.steps_per_epoch(len(dataset.train), found.train)
    last = found.train.epochs * per_epoch
    drawn_step = min(last, int(trial.moment.split()[-1]) * per_epoch)
    _fit(found, dataset, model, execution, 0, drawn_step, last)
    probe = probe_of(dataset, trial.seed, PROBE_ITEMS)
    extraction = pruning.extract(model, [probe], Prune(target=Macs(MACS)))
    _fit(found, dataset, extraction.ticket, execution, drawn_step, last, last)
    return Drawn(
        trial=trial,
        drawn_step=drawn_step,
        steps=last,
        reached=True,
        accuracy=accuracy_of(extraction.ticket, dataset, execution),
        macs_share=extraction.macs_share,
        seconds=time.monotonic() - started,
    )


def _fit(
    found: Recipe,
    dataset: Dataset,
    model: nn.Module,
    execution: training.Execution,
    first_step: int,
    last_step: int,
    total_steps: int,
) -> None:
    for _ in training.fit(
        model,
        training.make_optimizer(model, found.train),
        dataset.train.inputs,
        dataset.train.labels,
        prepare=dataset.prepare,
        settings=found.train,
        execution=execution,
        seed=found.seed,
        first_step=first_step,
        last_step=last_step,
        total_steps=total_steps,
    ):
        pass
