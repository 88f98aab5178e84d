"""Study ``edge-position``: whether the optimiser sets the place of the spectral edge.

The same nets from the same weights on the same data, under AdamW, Muon and SGD; at every reading the singular
values of the last updates fall off most behind the k*-th. Text is learned by a small language model, as in
the published work; modular addition, where a net groks, is for comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final, Literal

import tpsprune
from tpsprune import recipe
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling, rule_all
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

TEXT: Final = "text"
ADDITION: Final = "modular addition"
OPTIMIZERS: Final = ("adamw", "muon", "sgd")
WINDOW: Final = 10
PREDICTED: Final[Mapping[str, int]] = {"muon": 1, "adamw": 2}
"""k* of most readings on text, by optimiser."""
HALF: Final = 0.5
TEXT_RECIPE: Final = "llama-text"
TEXT_CHANGES: Final = (
    "task.model.config.hidden_size=64",
    "task.model.config.intermediate_size=172",
    "task.model.config.num_hidden_layers=2",
    "task.model.config.num_key_value_heads=4",
    "train.batch_size=32",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How long a task is trained and how often read; rates and decays of AdamW (Muon's too) and of SGD."""

    steps: int
    reading_steps: int
    learning_rate: float
    weight_decay: float
    sgd_rate: float
    parts: tuple[Literal["all", "attention"], ...]

    def settings(self, optimizer: str) -> dict[str, Any]:
        """Return what an optimiser has in ``[train]``; a step takes the same share off the weights in all."""
        rate = self.sgd_rate if optimizer == "sgd" else self.learning_rate
        decay = self.weight_decay * self.learning_rate / rate
        return {"optimizer": optimizer, "learning_rate": rate, "weight_decay": decay}


REGIMES: Final[Mapping[str, Regime]] = {
    TEXT: Regime(
        steps=600,
        reading_steps=20,
        learning_rate=3e-3,
        weight_decay=0.05,
        sgd_rate=0.1,
        parts=("all", "attention"),
    ),
    ADDITION: Regime(
        steps=1200, reading_steps=30, learning_rate=1e-3, weight_decay=4.0, sgd_rate=5.0, parts=("all",)
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTrial:
    """A training: the task, the optimiser, the seed of all that is random."""

    task: str
    optimizer: str
    seed: int

    @property
    def arm(self) -> str:
        """Task and optimiser."""
        return f"{self.task}, {self.optimizer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTraining:
    """Place and ratio of the edge at each reading, by whose updates; loss and accuracy at the end."""

    trial: EdgeTrial
    places: Mapping[str, tuple[int, ...]]
    ratios: Mapping[str, tuple[float, ...]]
    loss: float
    accuracy: float
    seconds: float = 0.0

    def share(self, k: int, part: str = "all") -> float:
        """Return the share of readings with the edge behind the k-th value."""
        return self.places[part].count(k) / len(self.places[part])


TRAINING: Final = EdgeTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=5, cap_steps=2000), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[EdgeTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every task and optimiser on every seed, the optimisers of a seed one after the other."""
    return Plan(
        tuple(
            EdgeTrial(task=task, optimizer=optimizer, seed=seed)
            for seed in setup.pair_seeds
            for task in REGIMES
            for optimizer in OPTIMIZERS
        )
    )


def run(setup: Setup, trial: EdgeTrial) -> EdgeTraining:
    """Train to the end of the task's steps, or to the cap, and read the edge on the way.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    regime = REGIMES[trial.task]
    found = recipe.read(TEXT_RECIPE, TEXT_CHANGES) if trial.task == TEXT else setup.recipe
    settings = {"threads": setup.threads, **regime.settings(trial.optimizer)}
    prepared = prepare(at_seed(found, trial.seed, **settings))
    inputs, labels = prepared.sample_calibration(8)
    with ExitStack() as stack:
        watches = {
            part: stack.enter_context(
                tpsprune.Watch(
                    prepared.model,
                    [inputs],
                    [labels],
                    signals=["spectral_edge"],
                    every_steps=regime.reading_steps,
                    edge_window=WINDOW,
                    edge_parameters=part,
                    seed=trial.seed,
                )
            )
            for part in regime.parts
        }
        for tick in prepared.fit(min(regime.steps, setup.cap_steps)):
            for watch in watches.values():
                watch.step(tick.step, epoch=tick.epoch)
    score = prepared.evaluate()
    return EdgeTraining(
        trial=trial,
        places={
            part: tuple(int(k) for k in _values(watch, "spectral_edge_k")) for part, watch in watches.items()
        },
        ratios={
            part: tuple(float(f"{ratio:.4g}") for ratio in _values(watch, "spectral_edge"))
            for part, watch in watches.items()
        },
        loss=score.loss,
        accuracy=score.accuracy,
    )


def _values(watch: tpsprune.Watch, signal: str) -> list[float]:
    return [each.value for each in watch.readings if each.signal == signal and each.value is not None]


def conclude(setup: Setup, done: Sequence[EdgeTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how often the edge lies where, by arm; the ruling is on text, all parameters."""
    shares = {
        (task, optimizer, k): mean_interval(
            each.share(k) for each in done if (each.trial.task, each.trial.optimizer) == (task, optimizer)
        )
        for task in REGIMES
        for optimizer in OPTIMIZERS
        for k in (1, 2)
    }
    return Finding(
        name="edge-position",
        setup=setup,
        machine=machine,
        ruling=rule_all(_rule(shares[TEXT, optimizer, k]) for optimizer, k in PREDICTED.items()),
        quantities=tuple(
            Quantity(
                name=f"{task}, {optimizer}, k* = {k}",
                predicted="above 0.5" if (task, PREDICTED.get(optimizer)) == (TEXT, k) else "",
                measured=measured,
            )
            for (task, optimizer, k), measured in shares.items()
        ),
        predicted_range=(HALF, None),
        figures={
            "shares": shares,
            "rows": [
                _describe([each for each in done if each.trial.arm == f"{task}, {optimizer}"], part)
                for task, regime in REGIMES.items()
                for part in regime.parts
                for optimizer in OPTIMIZERS
            ],
        },
        trainings=tuple(done),
    )


def _rule(share: Interval) -> Ruling:
    if share.low > HALF:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if share.high < HALF else Ruling.UNDECIDED


def _describe(trainings: Sequence[EdgeTraining], part: str) -> dict[str, Any]:
    """Return a row of the table: readings of all seeds by k*, the median ratio, how the trainings ended."""
    places = Counter(k for each in trainings for k in each.places[part])
    return {
        "arm": trainings[0].trial.arm,
        "part": part,
        "places": [places[k] for k in range(1, WINDOW // 2 + 1)],
        "ratio": median(ratio for each in trainings for ratio in each.ratios[part]),
        "loss": fmean(each.loss for each in trainings),
        "accuracy": fmean(each.accuracy for each in trainings),
    }
