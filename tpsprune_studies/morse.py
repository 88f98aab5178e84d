"""Study ``morse``: whether TPS removes critical points of high index.

Small nets learn modular addition, without TPS and with each variant that fits, from the same weights. At
equal training losses on the way, and wherever the gradient is smallest for a while, the exact Hessian says
how many directions go down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tpsprune.errors import DivergedError
from tpsprune.numerics.curvature import curvature_of, loss_hessian
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, at_seed, prepare, resize

CHANGES: Final = ("task.data.modulus=11", "task.model.widths=[24]", "task.model.embedding=8")
"""A net of 771 numbers, so that its Hessian is exact."""
VARIANTS: Final = ("none", "weights", "neurons", "labels")
WEIGHT_DECAY: Final = 1.0
LEARNING_RATE: Final = 3e-3
LOSSES: Final = (2.0, 1.0, 0.3)
"""Training losses at whose first crossing the index is read."""
STEPS: Final = 2000
REACH: Final = 25
"""Steps before and after among which the gradient is smallest at a minimum of its norm."""
AT_MINIMA: Final = ("the minima on average", "the minimum of highest index")


@dataclass(frozen=True, slots=True, kw_only=True)
class MorseTrial:
    """A training: the TPS variant and the seed."""

    variant: str
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return self.variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Loss, length of its gradient and curvature at a step of a training."""

    step: int
    loss: float
    gradient_norm: float
    index: int
    smallest: float
    largest: float
    negative_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MorseTraining:
    """A training: its numbers, and accuracy at the end; points by level of the loss, where it got there.

    ``minima`` are the points where the gradient is shorter than at ``REACH`` steps before and after;
    ``gradient_norm`` is its median length over all steps.
    """

    trial: MorseTrial
    parameters: int
    accuracy: float
    points: Mapping[str, Point]
    minima: tuple[Point, ...]
    gradient_norm: float
    seconds: float = 0.0

    @property
    def indices(self) -> Mapping[str, float]:
        """The index by where it is read: at each loss, and of the minima the mean and the highest."""
        found: dict[str, float] = {f"a loss of {level}": each.index for level, each in self.points.items()}
        if self.minima:
            at_minima = [each.index for each in self.minima]
            found |= dict(zip(AT_MINIMA, (fmean(at_minima), max(at_minima)), strict=True))
        return found


TRAINING: Final = MorseTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=5, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[MorseTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every variant on every seed."""
    return Plan(
        tuple(MorseTrial(variant=variant, seed=seed) for seed in setup.pair_seeds for variant in VARIANTS)
    )


def run(setup: Setup, trial: MorseTrial) -> MorseTraining:
    """Train a net, and read its index where the training loss first falls to a level, and at minima.

    Raises:
        DivergedError: the loss of a net without TPS is no longer finite.
    """
    from tpsprune import recipe

    found = recipe.read(setup.recipe.name, CHANGES)
    regulariser = Tps(variant=trial.variant)  # type: ignore[arg-type]
    train = {"weight_decay": WEIGHT_DECAY, "learning_rate": LEARNING_RATE, "threads": setup.threads}
    prepared = prepare(at_seed(found, trial.seed, regulariser, **train))
    inputs, labels = prepared.dataset.train.inputs, prepared.dataset.train.labels

    def loss_of(model: nn.Module) -> Tensor:
        return functional.cross_entropy(model(inputs), labels)

    left = list(LOSSES)
    points: dict[str, Point] = {}
    minima: list[Point] = []
    norms: list[float] = []
    recent: deque[tuple[int, Tensor]] = deque(maxlen=2 * REACH + 1)
    past = deepcopy(prepared.model)
    try:
        for tick in prepared.fit(setup.cap_steps, prepared.build_regulariser(setup.cap_steps)):
            # The batch is all that is trained on, so this is the training loss one step before.
            while left and float(tick.loss) <= left[0]:
                points[f"{left.pop(0):g}"] = read_point(tick.step, prepared.model, loss_of)
            norms.append(gradient_norm(prepared.model, loss_of))
            recent.append((tick.step, parameters_to_vector(prepared.model.parameters()).detach().clone()))
            if is_minimum(norms):
                step, theta_p = recent[REACH]
                vector_to_parameters(theta_p, past.parameters())
                minima.append(read_point(step, past, loss_of))
    except DivergedError:
        if trial.variant == "none":
            raise
    return MorseTraining(
        trial=trial,
        parameters=sum(each.numel() for each in prepared.model.parameters()),
        accuracy=prepared.evaluate().accuracy,
        points=points,
        minima=tuple(minima),
        gradient_norm=median(norms) if norms else 0.0,
    )


def is_minimum(norms: Sequence[float]) -> bool:
    """Return whether ``REACH`` steps ago the norm was below each of so many before and of those since.

    >>> is_minimum([3.0] * 25 + [1.0] + [2.0] * 25), is_minimum([3.0] * 25 + [1.0] + [2.0] * 24)
    (True, False)
    """
    if len(norms) <= 2 * REACH:
        return False
    window = norms[-2 * REACH - 1 :]
    return all(window[REACH] < each for place, each in enumerate(window) if place != REACH)


def gradient_norm(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> float:
    """Return the length of the loss's gradient in all parameters; the model's own gradients are left."""
    return float(parameters_to_vector(torch.autograd.grad(loss_of(model), list(model.parameters()))).norm())


def read_point(step: int, model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Point:
    """Return loss, gradient and curvature of a model as it is."""
    read = curvature_of(loss_hessian(model, loss_of))
    with torch.no_grad():
        loss = float(loss_of(model))
    return Point(
        step=step,
        loss=loss,
        gradient_norm=gradient_norm(model, loss_of),
        index=read.index,
        smallest=read.smallest,
        largest=read.largest,
        negative_share=read.negative_share,
    )


def conclude(setup: Setup, done: Sequence[MorseTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how much lower the index is with TPS, by variant and where it is read, paired by seed."""
    plain = {each.trial.seed: each for each in done if each.trial.variant == "none"}
    by_arm = {variant: [each for each in done if each.trial.variant == variant] for variant in VARIANTS}
    lower = {
        (variant, where): _pair(plain, by_arm[variant], where)
        for variant in VARIANTS[1:]
        for where in _places()
    }
    judged = {arm: interval for arm, interval in lower.items() if interval is not None}
    return Finding(
        name="morse",
        setup=setup,
        machine=machine,
        ruling=_rule(judged),
        quantities=tuple(
            Quantity(name=f"{variant}, at {where}", predicted="below 0", measured=interval)
            for (variant, where), interval in judged.items()
        ),
        predicted_range=(None, 0.0),
        figures={"lower": judged, "by_arm": by_arm},
        trainings=tuple(done),
    )


def _places() -> tuple[str, ...]:
    return (*(f"a loss of {loss:g}" for loss in LOSSES), *AT_MINIMA)


def _pair(plain: Mapping[int, MorseTraining], others: Sequence[MorseTraining], where: str) -> Interval | None:
    """Return by how much the index with TPS is above that without, where both have it, if two pairs do."""
    found = [
        each.indices[where] - plain[each.trial.seed].indices[where]
        for each in others
        if where in each.indices and where in plain[each.trial.seed].indices
    ]
    return mean_interval(found) if len(found) > 1 else None


def _rule(judged: Mapping[tuple[str, str], Interval]) -> Ruling:
    """Return confirmed where a variant has a lower index everywhere beyond doubt, refuted where none."""
    by_variant = {
        variant: [interval for (name, _), interval in judged.items() if name == variant]
        for variant in VARIANTS[1:]
    }
    if any(len(each) == len(_places()) and all(one.high < 0 for one in each) for each in by_variant.values()):
        return Ruling.CONFIRMED
    none_lower = all(one.low >= 0 or one.mean >= 0 for one in judged.values())
    return Ruling.REFUTED if judged and none_lower else Ruling.UNDECIDED
