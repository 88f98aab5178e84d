"""Study ``latent-field``: whether a pruned autoencoder keeps the attractors of the dense one.

An autoencoder applied to its own outputs, again and again, runs to fixed points. They are looked for, and how
far a cut moves the way there is held against weights that are shaken until the outputs err as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tpsprune.data.images import digits
from tpsprune.numerics.latent_field import (
    ITERATIONS,
    SAME_PLACE,
    Moved,
    basins_of,
    compare_fields,
    mean_radius,
)
from tpsprune.numerics.predictions import explained
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, resize

LATENT: Final = 8
HIDDEN: Final = 128
NOISES: Final = (0.0, 0.6)
"""Standard deviation of what is added to the inputs in training, of pixels in [0, 1]."""
STEPS: Final = 3000
BATCH_ITEMS: Final = 128
LEARNING_RATE: Final = 3e-3
TEST_ITEMS: Final = 597
SHARES: Final = (0.7, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldTrial:
    """An autoencoder: the noise it is trained with, and the seed."""

    noise: float
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return f"noise {self.noise:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Moved):
    """A ticket beside weights shaken to the same output error, and its R² on test items."""

    explained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldTraining:
    """An autoencoder after training: R² on test items, spectral radius at its attractors, and its cuts."""

    trial: FieldTrial
    explained: float
    radius: float
    attractors: int
    cuts: Mapping[str, Cut]
    seconds: float = 0.0


TRAINING: Final = FieldTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=5, cap_steps=STEPS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[FieldTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every noise on every seed."""
    return Plan(tuple(FieldTrial(noise=noise, seed=seed) for seed in setup.pair_seeds for noise in NOISES))


def run(setup: Setup, trial: FieldTrial) -> FieldTraining:
    """Train an autoencoder, look for its attractors, cut it."""
    torch.set_num_threads(setup.threads)
    torch.manual_seed(trial.seed)
    images_nd = digits().inputs.flatten(1).float() / 240
    order = torch.randperm(len(images_nd))
    test_nd, train_nd = images_nd[order[:TEST_ITEMS]], images_nd[order[TEST_ITEMS:]]
    model = _autoencoder()
    _train(model, train_nd, trial.noise, setup.cap_steps)
    with torch.no_grad():
        basins = basins_of(model, test_nd)
        cuts = {}
        for share in SHARES:
            with torch.enable_grad():
                ticket = tpsprune.extract(
                    model, [train_nd], tpsprune.Macs(share), quality="fast", round_to=1
                ).ticket
            moved = compare_fields(model, ticket, test_nd, basins)
            cuts[f"{share:g}"] = Cut(explained=explained(ticket(test_nd), test_nd), **asdict(moved))
        return FieldTraining(
            trial=trial,
            explained=explained(model(test_nd), test_nd),
            radius=mean_radius(model, basins),
            attractors=len(basins.attractors_a),
            cuts=cuts,
        )


def _autoencoder() -> nn.Sequential:
    sizes = (64, HIDDEN, LATENT, HIDDEN, 64)
    encoder = [nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])]
    decoder = [nn.Linear(sizes[2], sizes[3]), nn.ReLU(), nn.Linear(sizes[3], sizes[4])]
    return nn.Sequential(*encoder, *decoder)


def _train(model: nn.Module, images_nd: Tensor, noise: float, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        batch_nd = images_nd[torch.randint(len(images_nd), (BATCH_ITEMS,))]
        loss = functional.mse_loss(model(batch_nd + noise * torch.randn_like(batch_nd)), batch_nd)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def conclude(setup: Setup, done: Sequence[FieldTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the radius by noise, and the drift of a cut beside that of shaken weights, paired."""
    by_noise = {noise: [each for each in done if each.trial.noise == noise] for noise in NOISES}
    radii = {noise: mean_interval(each.radius for each in trainings) for noise, trainings in by_noise.items()}
    worse = {
        (noise, share): mean_interval(
            each.cuts[share].drift["10"] - each.cuts[share].shaken_drift["10"] for each in trainings
        )
        for noise, trainings in by_noise.items()
        for share in (f"{share:g}" for share in SHARES)
    }
    return Finding(
        name="latent-field",
        setup=setup,
        machine=machine,
        ruling=_rule(tuple(radii.values())),
        quantities=(
            *(
                Quantity(name=f"spectral radius, noise {noise:g}", predicted="below 1", measured=radius)
                for noise, radius in radii.items()
            ),
            *(
                Quantity(
                    name=f"drift of a cut to {share} above that of shaken weights, noise {noise:g}",
                    predicted="",
                    measured=interval,
                )
                for (noise, share), interval in worse.items()
            ),
        ),
        predicted_range=(None, 1.0),
        figures={
            "by_noise": by_noise,
            "radii": radii,
            "worse": worse,
            "mean_of": _mean_of,
            "iterations": ITERATIONS[-1],
            "same_place": SAME_PLACE,
        },
        trainings=tuple(done),
    )


def _mean_of(trainings: Sequence[FieldTraining], share: str, figure: str) -> float:
    """Return the mean of a figure of the cuts to a share; a drift is named with its iterations."""
    name, _, times = figure.partition(" ")
    values = [getattr(each.cuts[share], name) for each in trainings]
    return fmean(value[times] if times else value for value in values)


def _rule(radii: Sequence[Interval]) -> Ruling:
    if all(each.high < 1 for each in radii):
        return Ruling.CONFIRMED
    return Ruling.REFUTED if all(each.low >= 1 for each in radii) else Ruling.UNDECIDED
