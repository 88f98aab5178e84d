"""Study ``latent-field``: whether a pruned autoencoder keeps the attractors of the dense one.

An autoencoder applied to its own outputs, again and again, runs to fixed points. They are looked for, and how
far a cut moves the way there is held against weights that are shaken until the outputs err as much.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional

import tpsprune
from tpsprune.data.images import digits
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
ITERATIONS: Final = (1, 10, 100)
POWER_STEPS: Final = 60
SAME_PLACE: Final = 0.05
"""End points nearer than this share of the spread of the data are one attractor."""
BISECTIONS: Final = 18


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
class Cut:
    """A ticket beside weights shaken to the same output error: drift by iterations, and shared basins.

    Drift is the distance of the iterates from the dense model's, over the spread of those. ``basins`` is the
    share of items that run to the attractor that they run to in the dense model.
    """

    explained: float
    error: float
    drift: Mapping[str, float]
    shaken_drift: Mapping[str, float]
    basins: float
    shaken_basins: float


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
        spread = float((test_nd - test_nd.mean(0)).square().sum(1).mean().sqrt())
        ends_nd = iterate(model, test_nd, ITERATIONS[-1])
        attractor_n, attractors_ad = attractors_of(ends_nd, SAME_PLACE * spread)
        cuts = {}
        for share in SHARES:
            with torch.enable_grad():
                ticket = tpsprune.extract(
                    model, [train_nd], tpsprune.Macs(share), quality="fast", round_to=1
                ).ticket
            error = _output_error(model, ticket, test_nd)
            shaken = shake_to(model, test_nd, error)
            cuts[f"{share:g}"] = Cut(
                explained=explained(ticket(test_nd), test_nd),
                error=error,
                drift=_drift(model, ticket, test_nd),
                shaken_drift=_drift(model, shaken, test_nd),
                basins=_shared(ticket, test_nd, attractors_ad, attractor_n),
                shaken_basins=_shared(shaken, test_nd, attractors_ad, attractor_n),
            )
        return FieldTraining(
            trial=trial,
            explained=explained(model(test_nd), test_nd),
            radius=fmean(spectral_radius(model, each) for each in attractors_ad[:8]),
            attractors=len(attractors_ad),
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


def iterate(model: nn.Module, inputs_nd: Tensor, times: int) -> Tensor:
    """Return the model's outputs of its outputs, so many times over.

    z → E(D(z)) and x → D(E(x)) are one orbit seen from two sides: D maps the first to the second.
    """
    for _ in range(times):
        inputs_nd = model(inputs_nd)
    return inputs_nd


def attractors_of(ends_nd: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Return the number of each end point's attractor, and the attractors: the first point of each place."""
    found: list[Tensor] = []
    numbers = []
    for end_d in ends_nd:
        distances = [float((end_d - each).norm()) for each in found]
        if not distances or min(distances) > near:
            found.append(end_d)
            numbers.append(len(found) - 1)
        else:
            numbers.append(distances.index(min(distances)))
    return torch.tensor(numbers), torch.stack(found)


def spectral_radius(model: nn.Module, point_d: Tensor) -> float:
    """Return the modulus of the largest eigenvalue of the Jacobian at a point, by power iteration.

    The geometric mean growth over the last half of the steps, so that a pair of complex eigenvalues, which
    turns, gives its modulus too.
    """
    direction_d = functional.normalize(torch.randn_like(point_d), dim=0)
    growths = []
    for _ in range(POWER_STEPS):
        moved_d: Tensor = jvp(model, (point_d,), (direction_d,))[1].detach()
        growths.append(float(moved_d.norm()))
        direction_d = functional.normalize(moved_d, dim=0)
    last = torch.tensor(growths[POWER_STEPS // 2 :]).clamp_min(1e-12)
    return float(last.log().mean().exp())


def shake_to(model: nn.Module, inputs_nd: Tensor, error: float) -> nn.Module:
    """Return a copy whose weights are shaken, each tensor by its own size, until the outputs err so much."""
    noise = {name: torch.randn_like(each) * each.std() for name, each in model.state_dict().items()}
    low, high = 0.0, 1.0
    shaken = copy.deepcopy(model)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        shaken.load_state_dict(
            {name: each + middle * noise[name] for name, each in model.state_dict().items()}
        )
        low, high = (middle, high) if _output_error(model, shaken, inputs_nd) < error else (low, middle)
    return shaken


def _output_error(model: nn.Module, other: nn.Module, inputs_nd: Tensor) -> float:
    return float((model(inputs_nd) - other(inputs_nd)).square().mean().sqrt())


def _drift(model: nn.Module, other: nn.Module, inputs_nd: Tensor) -> dict[str, float]:
    found = {}
    for times in ITERATIONS:
        ours_nd, theirs_nd = iterate(model, inputs_nd, times), iterate(other, inputs_nd, times)
        spread = (ours_nd - ours_nd.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-6)
        found[f"{times}"] = float((theirs_nd - ours_nd).square().sum(1).mean().sqrt() / spread)
    return found


def _shared(other: nn.Module, inputs_nd: Tensor, attractors_ad: Tensor, attractor_n: Tensor) -> float:
    """Return the share of items whose end is nearest to the attractor that they have in the dense model."""
    ends_nd = iterate(other, inputs_nd, ITERATIONS[-1])
    return float((torch.cdist(ends_nd, attractors_ad).argmin(1) == attractor_n).double().mean())


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
        figures={"by_noise": by_noise, "radii": radii, "worse": worse, "mean_of": _mean_of},
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
