"""Study ``inducers``: what makes a net prunable, at its best learning rate and beside its accuracy.

One task of a hundred classes, one net, with batch norms and without; trained plainly, and with each thing
that is said to leave fewer dimensions. After training: rank of the logits, dimension of the hidden layers,
and accuracy as cut, without retraining.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

import torch

import tpsprune
from tpsprune import recipe
from tpsprune.numerics.forward import evaluation_mode
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.numerics.spectra import effective_rank
from tpsprune.recipe import Recipe
from tpsprune.recipe.train import Tps
from tpsprune.signals.representations import numerical_rank
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import NO_TPS, Setup, at_seed, prepare, resize

CLASSES: Final = 100
WIDTHS: Final = (128, 128, 128)
SHARES: Final = (0.25, 0.1)
RANK_SHARES: Final = (1e-1, 1e-2, 1e-3)
"""Singular values of the logits above this share of the largest count; the published one is not known."""
LEARNING_RATES: Final = (1e-3, 3e-3, 1e-2)
CALIBRATION_ITEMS: Final = 512
EPOCHS: Final = 30
NET: Final = "tpsprune_studies.nets:plain_mlp"
PLAIN: Final = "none"
HOT: Final = "temperature 10"
NORMS: Final = (True, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inducer:
    """Something that may leave fewer dimensions: settings of ``[train]``, TPS, and arguments of the net."""

    train: Mapping[str, Any]
    tps: Tps = NO_TPS
    net: Mapping[str, Any]


def _inducer(tps: Tps = NO_TPS, net: Mapping[str, Any] | None = None, **train: Any) -> Inducer:
    return Inducer(train={"weight_decay": 0.0, **train}, tps=tps, net=net or {})


INDUCERS: Final[Mapping[str, Inducer]] = {
    PLAIN: _inducer(),
    "weight decay 0.1": _inducer(weight_decay=0.1),
    "weight decay 1": _inducer(weight_decay=1.0),
    "temperature 0.3": _inducer(temperature=0.3),
    "temperature 3": _inducer(temperature=3.0),
    HOT: _inducer(temperature=10.0),
    "temperature 30": _inducer(temperature=30.0),
    "TPS weights": _inducer(Tps(variant="weights")),
    "TPS neurons": _inducer(Tps(variant="neurons")),
    "batch-norm L1": _inducer(Tps(variant="bn-l1", coupling=1e-4)),
    "dropout 0.2": _inducer(net={"dropout": 0.2}),
    "init x 0.1": _inducer(net={"init_scale": 0.1}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InducerTrial:
    """A training: what induces, whether the net has batch norms, the learning rate, the seed."""

    inducer: str
    norm: bool
    learning_rate: float
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return describe_arm(self.inducer, norm=self.norm)


def describe_arm(inducer: str, *, norm: bool) -> str:
    """Return the name of an arm.

    >>> describe_arm("dropout 0.2", norm=True)
    'with batch norm, dropout 0.2'
    """
    return f"{'with' if norm else 'without'} batch norm, {inducer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InducerTraining:
    """A net after training: test accuracy, ranks of its logits, dimension of its hidden layers, and as cut.

    ``validation_accuracy`` chooses learning rates and nothing else.
    """

    trial: InducerTrial
    validation_accuracy: float
    accuracy: float
    ranks: Mapping[str, int]
    dimension_share: float
    cut_accuracies: Mapping[str, float]
    seconds: float = 0.0


TRAINING: Final = InducerTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size."""
    return resize(Setup(recipe=recipe, seeds=4), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[InducerTraining]) -> Plan:
    """Return every rate on the pilot seed, then each arm at its best rate on the others, plain at all rates.

    A rate by itself can make a net more prunable: inducers are held against plain training at each.
    """
    arms = list_arms()
    pilots = tuple(
        InducerTrial(inducer=name, norm=norm, learning_rate=rate, seed=setup.pilot_seed)
        for name, norm in arms
        for rate in LEARNING_RATES
    )
    finished = {each.trial for each in done}
    if not finished.issuperset(pilots):
        later = tuple(
            describe_arm(name, norm=norm)
            for name, norm in arms
            for _ in range(len(setup.pair_seeds) * (len(LEARNING_RATES) if name == PLAIN else 1))
        )
        return Plan(pilots, later)
    rates = _best_rates(setup, done)
    return Plan(
        (
            *pilots,
            *(
                InducerTrial(inducer=name, norm=norm, learning_rate=rate, seed=seed)
                for seed in setup.pair_seeds
                for name, norm in arms
                for rate in (LEARNING_RATES if name == PLAIN else (rates[name, norm],))
            ),
        )
    )


def list_arms() -> tuple[tuple[str, bool], ...]:
    """Return what is trained: every inducer with batch norms and without, where it can act."""
    return tuple((name, norm) for norm in NORMS for name in INDUCERS if norm or name != "batch-norm L1")


def _best_rates(setup: Setup, done: Sequence[InducerTraining]) -> dict[tuple[str, bool], float]:
    """Return by arm the learning rate of the best validation accuracy on the pilot seed."""
    pilots = [each for each in done if each.trial.seed == setup.pilot_seed]
    return {
        (name, norm): max(
            (each for each in pilots if (each.trial.inducer, each.trial.norm) == (name, norm)),
            key=lambda each: each.validation_accuracy,
        ).trial.learning_rate
        for name, norm in list_arms()
    }


def run(setup: Setup, trial: InducerTrial) -> InducerTraining:
    """Train a net, read it, cut it.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    prepared = prepare(_make_recipe(setup, trial))
    steps = prepared.total_steps
    for _ in prepared.fit(steps, prepared.build_regulariser(steps)):
        pass
    model, dataset = prepared.model, prepared.dataset
    inputs, _ = prepared.sample_calibration(CALIBRATION_ITEMS)
    (seen,) = passes(model, [dataset.prepare(dataset.test.inputs)])
    return InducerTraining(
        trial=trial,
        validation_accuracy=prepared.evaluate().accuracy,
        accuracy=prepared.evaluate(dataset.test).accuracy,
        ranks={f"{share:g}": numerical_rank(seen.output, share) for share in RANK_SHARES},
        dimension_share=_dimension_share(model, inputs),
        cut_accuracies={
            f"{share:g}": prepared.evaluate(
                dataset.test,
                tpsprune.extract(model, [inputs], tpsprune.Macs(share), quality="fast", round_to=1).ticket,
            ).accuracy
            for share in SHARES
        },
    )


def _make_recipe(setup: Setup, trial: InducerTrial) -> Recipe:
    inducer = INDUCERS[trial.inducer]
    net = {"features": 128, "widths": list(WIDTHS), "classes": CLASSES, "norm": trial.norm, **inducer.net}
    arguments = ", ".join(f"{name}={str(value).lower()}" for name, value in net.items())
    found = recipe.read(
        "digits",
        (
            "task.data={kind='custom', factory='tpsprune_studies.tasks:digit_pairs'}",
            f"task.model={{kind='custom', factory='{NET}', model_args={{{arguments}}}}}",
            f"train.epochs={EPOCHS}",
        ),
    )
    train = {**inducer.train, "learning_rate": trial.learning_rate, "threads": setup.threads}
    return at_seed(found, trial.seed, inducer.tps, **train)


def _dimension_share(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    """Return the effective rank of the units' covariance over the width, mean of the hidden layers."""
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for module in model.modules()
        if isinstance(module, torch.nn.ReLU)
    ]
    with torch.no_grad(), evaluation_mode(model):
        model(inputs)
    for handle in handles:
        handle.remove()
    return fmean(
        float(effective_rank(torch.linalg.eigvalsh(each.double().T.cov()))) / each.shape[1] for each in seen
    )


def conclude(setup: Setup, done: Sequence[InducerTraining], machine: Mapping[str, Any]) -> Finding:
    """Return what each inducer does; the ruling is on the rank at a temperature of ten, paired by seed.

    Ranks are held against plain training at the same rate; accuracies as cut against plain training at the
    rate at which most is left, uncut ones at the rate that is best uncut.
    """
    judged = [each for each in done if each.trial.seed in setup.pair_seeds]
    rates = _best_rates(setup, done)
    plain = {
        (norm, rate): [
            each
            for each in judged
            if each.trial == replace(each.trial, inducer=PLAIN, norm=norm, learning_rate=rate)
        ]
        for norm in NORMS
        for rate in LEARNING_RATES
    }
    by_arm = {
        (name, norm): [
            each
            for each in judged
            if each.trial == replace(each.trial, inducer=name, norm=norm, learning_rate=rates[name, norm])
        ]
        for name, norm in list_arms()
    }
    best, best_uncut = (
        {norm: max((plain[norm, rate] for rate in LEARNING_RATES), key=mean) for norm in NORMS}
        for mean in (_mean_cut, _mean_uncut)
    )
    changes = {
        norm: _paired(by_arm[HOT, norm], plain[norm, rates[HOT, norm]], lambda each: each.ranks["0.01"])
        for norm in NORMS
    }
    gains = {
        (name, norm): _paired(by_arm[name, norm], best[norm], lambda each: each.cut_accuracies["0.1"])
        for name, norm in list_arms()
        if name != PLAIN
    }
    dense = {arm: _paired(by_arm[arm], best_uncut[arm[1]], lambda each: each.accuracy) for arm in gains}
    return Finding(
        name="inducers",
        setup=setup,
        machine=machine,
        ruling=_rule(changes.values()),
        quantities=(
            *(
                Quantity(name=f"rank, {describe_arm(HOT, norm=norm)}", predicted="below 0", measured=change)
                for norm, change in changes.items()
            ),
            *(
                Quantity(
                    name=f"points, {describe_arm(name, norm=norm)}", predicted="", measured=_in_points(gain)
                )
                for (name, norm), gain in gains.items()
            ),
        ),
        predicted_range=(None, 0.0),
        figures={
            "by_arm": {
                **{
                    f"{describe_arm(PLAIN, norm=norm)}, rate {rate:g}": each
                    for (norm, rate), each in plain.items()
                },
                **{
                    describe_arm(name, norm=norm): each
                    for (name, norm), each in by_arm.items()
                    if name != PLAIN
                },
            },
            "best": {
                norm: (best[norm][0].trial.learning_rate, best_uncut[norm][0].trial.learning_rate)
                for norm in NORMS
            },
            "changes": changes,
            "better": _list_better(gains, dense),
            "ranks_of": lambda trainings, share: fmean(each.ranks[share] for each in trainings),
        },
        trainings=tuple(done),
    )


def _mean_cut(trainings: Sequence[InducerTraining]) -> float:
    return fmean(each.cut_accuracies["0.1"] for each in trainings)


def _in_points(gain: Interval) -> Interval:
    return replace(gain, mean=100 * gain.mean, low=100 * gain.low, high=100 * gain.high)


def _mean_uncut(trainings: Sequence[InducerTraining]) -> float:
    return fmean(each.accuracy for each in trainings)


def _paired(first: Sequence[InducerTraining], second: Sequence[InducerTraining], figure: Any) -> Interval:
    """Return by how much a figure of the first is above the second's, paired by seed."""
    other = {each.trial.seed: figure(each) for each in second}
    return mean_interval(figure(each) - other[each.trial.seed] for each in first)


def _rule(changes: Any) -> Ruling:
    """Return confirmed where every interval of the change of rank is below 0, refuted where one is above."""
    found = list(changes)
    if all(each.high < 0 for each in found):
        return Ruling.CONFIRMED
    return Ruling.REFUTED if any(each.low >= 0 for each in found) else Ruling.UNDECIDED


def _list_better(
    gains: Mapping[tuple[str, bool], Interval], dense: Mapping[tuple[str, bool], Interval]
) -> list[tuple[str, Interval, Interval]]:
    """Return the arms that are better as cut beyond doubt and no worse uncut: name, gain as cut and uncut."""
    return [
        (describe_arm(*arm[:1], norm=arm[1]), gain, dense[arm])
        for arm, gain in gains.items()
        if gain.low > 0 and dense[arm].high >= 0
    ]
