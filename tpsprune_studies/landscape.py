"""Study ``landscape``: whether the persistence of the loss around a net explains how well it generalises.

Two dozen nets of different widths, rates, decays and batches learn few digits. Around each the training loss
is read on slices of the space of weights; its persistence, and plainer figures, are held against the gap.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import atanh, sqrt, tanh
from statistics import correlation, fmean
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.landscape import filter_normalised, total_persistence
from tpsprune.numerics.small_samples import Interval
from tpsprune.recipe import Recipe
from tpsprune.signals.weights import parameter_norm
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Prepared, Setup, at_seed, prepare, resize

PUBLISHED: Final = 0.82
WIDTHS: Final = (16, 128)
RATES: Final = (1e-3, 1e-2)
DECAYS: Final = (0.0, 0.3)
BATCHES: Final = (16, 128)
SIDE: Final = 21
"""Places along each direction of a slice, from −1 to 1 lengths of the weights."""
SLICES: Final = 3
STEPS: Final = 600
CONFIDENCE: Final = 0.95
NORMAL_QUANTILE: Final = 1.959964
PERSISTENCE: Final = "total persistence"
FIGURES: Final = (PERSISTENCE, "range of the loss", "norm of the weights", "learning rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeTrial:
    """A net: width, learning rate, weight decay, batch size, seed."""

    width: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int

    @property
    def arm(self) -> str:
        """What costs alike."""
        return f"width {self.width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeTraining:
    """A net after training: loss and accuracy on both splits, and the figures of its surroundings."""

    trial: LandscapeTrial
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    figures: Mapping[str, float]
    seconds: float = 0.0

    @property
    def loss_gap(self) -> float:
        """Loss on the test split above that on what was trained on."""
        return self.test_loss - self.train_loss

    @property
    def accuracy_gap(self) -> float:
        """Accuracy on what was trained on above that on the test split."""
        return self.train_accuracy - self.test_accuracy


TRAINING: Final = LandscapeTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=2, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[LandscapeTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every net on every seed."""
    return Plan(
        tuple(
            LandscapeTrial(width=width, learning_rate=rate, weight_decay=decay, batch_size=batch, seed=seed)
            for seed in setup.pair_seeds
            for width, rate, decay, batch in product(WIDTHS, RATES, DECAYS, BATCHES)
        )
    )


def run(setup: Setup, trial: LandscapeTrial) -> LandscapeTraining:
    """Train a net and look around it.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    from tpsprune import recipe

    changes = (
        f"task.model={{kind='mlp', widths=[{trial.width}, {trial.width}]}}",
        "task.data.test_share=0.5",
        "task.data.validation_share=0.4",
    )
    train: dict[str, Any] = {
        "learning_rate": trial.learning_rate,
        "weight_decay": trial.weight_decay,
        "batch_size": trial.batch_size,
        "threads": setup.threads,
    }
    prepared = prepare(at_seed(recipe.read("digits", changes), trial.seed, **train))
    for _ in prepared.fit(setup.cap_steps):
        pass
    dataset = prepared.dataset
    on_train, on_test = (prepared.evaluate(split) for split in (dataset.train, dataset.test))
    slices = [_read_slice(prepared, trial.seed * SLICES + rank) for rank in range(SLICES)]
    return LandscapeTraining(
        trial=trial,
        train_loss=on_train.loss,
        test_loss=on_test.loss,
        train_accuracy=on_train.accuracy,
        test_accuracy=on_test.accuracy,
        figures={
            PERSISTENCE: fmean(total_persistence(each) for each in slices),
            "range of the loss": fmean(float(each.max() - each.min()) for each in slices),
            "norm of the weights": float(parameter_norm(prepared.model)),
            "learning rate": trial.learning_rate,
        },
    )


def _read_slice(prepared: Prepared, seed: int) -> Tensor:
    """Return the training loss on a grid over two random directions."""
    generator = torch.Generator().manual_seed(seed)
    centre = {name: each.clone() for name, each in prepared.model.state_dict().items()}
    directions = [filter_normalised(centre, generator) for _ in range(2)]
    walked: nn.Module = copy.deepcopy(prepared.model)
    steps = torch.linspace(-1, 1, SIDE).tolist()
    losses = []
    for first, second in product(steps, steps):
        walked.load_state_dict(
            {
                name: each + first * directions[0][name] + second * directions[1][name]
                for name, each in centre.items()
            }
        )
        losses.append(prepared.evaluate(prepared.dataset.train, walked).loss)
    return torch.tensor(losses).view(SIDE, SIDE)


def conclude(setup: Setup, done: Sequence[LandscapeTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how much of the gap each figure explains over all nets; the ruling is on persistence."""
    explained = {
        figure: tuple(
            explain([each.figures[figure] for each in done], [getattr(each, gap) for each in done])
            for gap in ("loss_gap", "accuracy_gap")
        )
        for figure in FIGURES
    }
    return Finding(
        name="landscape",
        setup=setup,
        machine=machine,
        ruling=_rule(*explained[PERSISTENCE]),
        quantities=tuple(
            Quantity(
                name=f"{figure}, gap of {what}",
                predicted=f"{PUBLISHED:g}" if figure == PERSISTENCE else "",
                measured=interval,
            )
            for figure, both in explained.items()
            for what, interval in zip(("loss", "accuracy"), both, strict=True)
            if interval is not None
        ),
        predicted_range=(PUBLISHED, None),
        figures={
            "explained": explained,
            "nets": len(done),
            "with_basins": sum(each.figures[PERSISTENCE] > 1e-6 for each in done),
            "by_arm": {
                arm: [each for each in done if each.trial.arm == arm]
                for arm in dict.fromkeys(e.trial.arm for e in done)
            },
            "gap_of": lambda trainings, name: fmean(getattr(each, name) for each in trainings),
        },
        trainings=tuple(done),
    )


def explain(figures: Sequence[float], gaps: Sequence[float]) -> Interval | None:
    """Return R² of a line through points, with the interval of Fisher's z of the correlation.

    Of figures that are all alike there is none: they explain nothing, and nothing was put to the test.
    """
    count = len(figures)
    if len(set(figures)) < 2 or len(set(gaps)) < 2:
        return None
    found = max(-1.0, min(1.0, correlation(figures, gaps)))
    middle, reach = atanh(min(abs(found), 1 - 1e-12)), NORMAL_QUANTILE / sqrt(count - 3)
    low, high = max(0.0, tanh(middle - reach)), tanh(middle + reach)
    return Interval(mean=found**2, low=low**2, high=high**2, count=count, confidence=CONFIDENCE)


def _rule(*explained: Interval | None) -> Ruling:
    """Return confirmed where the published share is within reach for some gap, refuted where for none.

    Undecided, too, where persistence was the same for all nets: then it was not put to the test.
    """
    found = [each for each in explained if each is not None]
    if found and all(each.high < PUBLISHED for each in found):
        return Ruling.REFUTED
    return Ruling.CONFIRMED if any(each.low >= PUBLISHED / 2 for each in found) else Ruling.UNDECIDED
