"""Study ``pullback``: what a frozen encoder keeps of fine-tuning's accuracy, and in what share of its time.

A net learns five of the ten digits; the others are the new task. There it is trained from scratch,
fine-tuned, frozen under a new last layer, and cut and frozen: on items of the new task, and of the old.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

import tpsprune
from tpsprune import data, models, training
from tpsprune.data import Split
from tpsprune.numerics.small_samples import Interval, ratio_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import DEVICE, Prepared, Setup, at_seed, resize

ACCURACY: Final = 0.978
"""Of the fine-tuned accuracy, as published: 76.8 % against 78.5 %."""
TIME: Final = 0.25
"""Of the time of fine-tuning, as published: 1.5 hours against 6."""
CLASSES: Final = 5
OLD, NEW = range(CLASSES), range(CLASSES, 2 * CLASSES)
HEAD_RATE: Final = 1.0
"""Learning rate of a last layer alone: of ``HEAD_RATES`` the one of the highest validation accuracy on the
pilot seed, of two alike the one of the lower loss. All weights train at the recipe's."""
HEAD_RATES: Final = (5e-3, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0)
SHARE: Final = 0.5
CALIBRATION_ITEMS: Final = 256
SCRATCH: Final = "from scratch"
TUNED: Final = "fine-tuned"
FROZEN: Final = "frozen"
CUT_ON_NEW: Final = "frozen ticket, cut on new items"
CUT_ON_OLD: Final = "frozen ticket, cut on old items"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullbackTrial:
    """All arms of a seed."""

    seed: int

    @property
    def arm(self) -> str:
        """All are one arm."""
        return "transfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullbackTraining:
    """The arms of a seed: test accuracy on the new task, processor seconds there, those of cuts among them.

    ``old`` is the test accuracy of the first training, on its own task.
    """

    trial: PullbackTrial
    old: float
    accuracies: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    cut_seconds: Mapping[str, float]
    seconds: float = 0.0


TRAINING: Final = PullbackTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=5), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[PullbackTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every seed."""
    return Plan(tuple(PullbackTrial(seed=seed) for seed in setup.pair_seeds))


def run(setup: Setup, trial: PullbackTrial) -> PullbackTraining:
    """Train on the old digits, then every arm on the new ones.

    Raises:
        DivergedError: a loss is no longer finite.
    """
    old, new = (_prepare(setup, trial.seed, classes) for classes in (OLD, NEW))
    _cut(old.model, old)  # Thrown away: what it imports is charged to no arm.
    _train_all(setup, old, old.model)
    tuned, frozen = (_with_head(old.model, trial.seed) for _ in range(2))
    spent = {
        SCRATCH: _train_all(setup, new, new.model),
        TUNED: _train_all(setup, new, tuned),
        FROZEN: _train_head(setup, new, frozen),
    }
    found = {SCRATCH: new.model, TUNED: tuned, FROZEN: frozen}
    cuts = {}
    for arm, model, task in ((CUT_ON_NEW, frozen, new), (CUT_ON_OLD, old.model, old)):
        ticket, cuts[arm] = _cut(model, task)
        found[arm] = _with_head(ticket, trial.seed)
        before = spent[FROZEN] if arm == CUT_ON_NEW else 0.0
        spent[arm] = before + cuts[arm] + _train_head(setup, new, found[arm])
    return PullbackTraining(
        trial=trial,
        old=old.evaluate(old.dataset.test).accuracy,
        accuracies={arm: new.evaluate(new.dataset.test, model).accuracy for arm, model in found.items()},
        cpu_seconds=spent,
        cut_seconds=cuts,
    )


def _prepare(setup: Setup, seed: int, classes: range) -> Prepared:
    """Return the digits of those classes, counted from 0, and a net for them; all is drawn from the seed."""
    from tpsprune import recipe

    chosen = at_seed(recipe.read("digits"), seed, threads=setup.threads)
    training.prepare_process(chosen.train, seed, DEVICE)
    whole = data.load(chosen.task.data, chosen.task.loss)
    dataset = replace(
        whole,
        facts=replace(whole.facts, classes=len(classes)),
        train=_of_classes(whole.train, classes),
        validation=_of_classes(whole.validation, classes),
        test=_of_classes(whole.test, classes),
    )
    model = models.build(chosen.task.model, dataset.facts)
    return Prepared(chosen, dataset, model, training.Execution.of(chosen.train, DEVICE))


def _of_classes(split: Split, classes: range) -> Split:
    kept = split.at(((split.labels >= classes.start) & (split.labels < classes.stop)).nonzero().squeeze(1))
    return replace(kept, labels=kept.labels - classes.start)


def _with_head(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with a last layer drawn anew from the seed."""
    copied = copy.deepcopy(model)
    head = copied.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head.reset_parameters()
    return copied


def _steps(setup: Setup, task: Prepared) -> int:
    return min(task.total_steps, setup.cap_steps)


def _train_all(setup: Setup, task: Prepared, model: nn.Module) -> float:
    """Train all weights by the recipe; return the processor seconds."""
    started = time.process_time()
    for _ in task.fit(_steps(setup, task), model=model):
        pass
    return time.process_time() - started


def _train_head(setup: Setup, task: Prepared, model: nn.Module, rate: float = HEAD_RATE) -> float:
    """Compute features once and train the last layer on them for as many epochs; return processor seconds."""
    started, train = time.process_time(), task.dataset.train
    settings = replace(
        task.recipe.train, learning_rate=rate, epochs=_steps(setup, task) / task.steps_per_epoch
    )
    features_nf = training.features_of(
        model, train.inputs, len(train), prepare=task.dataset.prepare, execution=task.execution
    )
    head = training.find_head(model, task.dataset.prepare(train.inputs[:2]))
    for _ in training.fit_head(
        head, features_nf, train.labels, settings=settings, execution=task.execution, seed=task.recipe.seed
    ):
        pass
    return time.process_time() - started


def _cut(model: nn.Module, task: Prepared) -> tuple[nn.Module, float]:
    """Cut a net on items of a task, without labels or repair; return the ticket and processor seconds."""
    inputs, _ = task.sample_calibration(CALIBRATION_ITEMS)
    started = time.process_time()
    found = tpsprune.extract(model, [inputs], tpsprune.Macs(SHARE), quality="fast", round_to=1)
    return found.ticket, time.process_time() - started


def conclude(setup: Setup, done: Sequence[PullbackTraining], machine: Mapping[str, Any]) -> Finding:
    """Return accuracy and time of every arm over those of fine-tuning; the ruling is on the frozen net."""
    arms = [arm for arm in done[0].accuracies if arm != TUNED]
    accuracies = {arm: _to_tuned([each.accuracies for each in done], arm) for arm in arms}
    times = {arm: _to_tuned([each.cpu_seconds for each in done], arm) for arm in arms}
    predicted = {"accuracy": f"{ACCURACY:g} or more", "time": f"{TIME:g} or less"}
    return Finding(
        name="pullback",
        setup=setup,
        machine=machine,
        ruling=_rule(accuracies[FROZEN], times[FROZEN]),
        quantities=tuple(
            Quantity(
                name=f"{what}, {arm}", predicted=predicted[what] if arm == FROZEN else "", measured=measured
            )
            for what, found in (("accuracy", accuracies), ("time", times))
            for arm, measured in found.items()
        ),
        predicted_range=(ACCURACY, None),
        figures={"accuracies": accuracies, "times": times},
        trainings=tuple(done),
    )


def _to_tuned(found: Sequence[Mapping[str, float]], arm: str) -> Interval:
    return ratio_interval((each[arm], each[TUNED]) for each in found)


def _rule(accuracy: Interval, spent: Interval) -> Ruling:
    if accuracy.low >= ACCURACY and spent.high <= TIME:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if accuracy.high < ACCURACY or spent.low > TIME else Ruling.UNDECIDED
