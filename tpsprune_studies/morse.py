"""Study ``morse``: whether TPS removes critical points of high index.

Small nets learn modular addition, without TPS and with each variant that fits, from the same weights. At
equal training losses on the way the exact Hessian says how many directions go down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch.nn import functional

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
    """The curvature where the training loss first fell to a level."""

    step: int
    index: int
    smallest: float
    largest: float
    negative_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MorseTraining:
    """A training: its numbers, accuracy at the end, and a point by level of the loss, where it got there."""

    trial: MorseTrial
    parameters: int
    accuracy: float
    points: Mapping[str, Point]
    seconds: float = 0.0


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
    """Train a net, and read its index whenever the training loss first falls to a level.

    Raises:
        DivergedError: the loss of a net without TPS is no longer finite.
    """
    from tpsprune import recipe

    found = recipe.read(setup.recipe.name, CHANGES)
    regulariser = Tps(variant=trial.variant)  # type: ignore[arg-type]
    train = {"weight_decay": WEIGHT_DECAY, "learning_rate": LEARNING_RATE, "threads": setup.threads}
    prepared = prepare(at_seed(found, trial.seed, regulariser, **train))
    inputs, labels = prepared.dataset.train.inputs, prepared.dataset.train.labels
    left = list(LOSSES)
    points: dict[str, Point] = {}
    try:
        for tick in prepared.fit(setup.cap_steps, prepared.build_regulariser(setup.cap_steps)):
            # The batch is all that is trained on, so this is the training loss one step before.
            while left and float(tick.loss) <= left[0]:
                hessian_pp = loss_hessian(
                    prepared.model, lambda model: functional.cross_entropy(model(inputs), labels)
                )
                read = curvature_of(hessian_pp)
                points[f"{left.pop(0):g}"] = Point(
                    step=tick.step,
                    index=read.index,
                    smallest=read.smallest,
                    largest=read.largest,
                    negative_share=read.negative_share,
                )
            if not left:
                break
    except DivergedError:
        if trial.variant == "none":
            raise
    return MorseTraining(
        trial=trial,
        parameters=sum(each.numel() for each in prepared.model.parameters()),
        accuracy=prepared.evaluate().accuracy,
        points=points,
    )


def conclude(setup: Setup, done: Sequence[MorseTraining], machine: Mapping[str, Any]) -> Finding:
    """Return how much lower the index is with TPS at equal loss, by variant and level, paired by seed."""
    plain = {each.trial.seed: each for each in done if each.trial.variant == "none"}
    lower = {
        (variant, level): _pair(plain, [each for each in done if each.trial.variant == variant], level)
        for variant in VARIANTS[1:]
        for level in (f"{loss:g}" for loss in LOSSES)
    }
    judged = {arm: interval for arm, interval in lower.items() if interval is not None}
    return Finding(
        name="morse",
        setup=setup,
        machine=machine,
        ruling=_rule(judged),
        quantities=tuple(
            Quantity(name=f"{variant}, at a loss of {level}", predicted="below 0", measured=interval)
            for (variant, level), interval in judged.items()
        ),
        predicted_range=(None, 0.0),
        figures={
            "lower": judged,
            "by_arm": {
                variant: [each for each in done if each.trial.variant == variant] for variant in VARIANTS
            },
        },
        trainings=tuple(done),
    )


def _pair(plain: Mapping[int, MorseTraining], others: Sequence[MorseTraining], level: str) -> Interval | None:
    """Return by how much the index with TPS is above that without, where both got to the loss, if two did."""
    found = [
        each.points[level].index - plain[each.trial.seed].points[level].index
        for each in others
        if level in each.points and level in plain[each.trial.seed].points
    ]
    return mean_interval(found) if len(found) > 1 else None


def _rule(judged: Mapping[tuple[str, str], Interval]) -> Ruling:
    """Return confirmed where a variant has a lower index at every level beyond doubt, refuted where none."""
    by_variant = {
        variant: [interval for (name, _), interval in judged.items() if name == variant]
        for variant in VARIANTS[1:]
    }
    if any(len(each) == len(LOSSES) and all(one.high < 0 for one in each) for each in by_variant.values()):
        return Ruling.CONFIRMED
    none_lower = all(one.low >= 0 or one.mean >= 0 for one in judged.values())
    return Ruling.REFUTED if judged and none_lower else Ruling.UNDECIDED
