"""Arms that learn one task, each tuned on pilot seeds, then compared pair by pair on other seeds.

All but ``run_trial`` is a pure function of which trainings are done, so that it can be broken off anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Final, Literal, TypeAlias

from tpsprune.numerics.small_samples import Interval, ratio_interval
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import ModularData
from tpsprune.recipe.train import Tps
from tpsprune_studies.finding import (
    Bound,
    Plan,
    Ruling,
    Strand,
    by_trial,
    compare_steps,
    follow,
    judge,
)
from tpsprune_studies.setup import LATER, at_seed, prepare
from tpsprune_studies.tasks import describe_data

Stage: TypeAlias = Literal["pilot", "pair"]
Variant: TypeAlias = Literal["none", "weights", "neurons", "moments", "fourier", "labels"]

Rank: TypeAlias = tuple[int, float]
"""(0, steps) where every seed reached the level, else (1, less the accuracy): low ranks win."""
GROKFAST_GAINS: Final = (0.5, 0.1, 2.0)
PREDICTED_LEAST: Final = 2.0
PREDICTED_MOST: Final = 5.0
PREDICTED: Final = f"{PREDICTED_LEAST:g} to {PREDICTED_MOST:g}"
"""By how much TPS is said to be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """What an arm is tuned by; ``strength`` is λ of TPS, or Grokfast's gain, and 0 of neither."""

    learning_rate: float
    weight_decay: float
    strength: float = 0.0

    def __str__(self) -> str:
        """Return them in short: learning rate, weight decay, and λ or gain if there is one.

        >>> str(Hyperparameters(learning_rate=0.1, weight_decay=2.0, strength=10.0))
        'lr 0.1 wd 2 λ 10'
        """
        text = f"lr {self.learning_rate:g} wd {self.weight_decay:g}"
        return f"{text} λ {self.strength:g}" if self.strength else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to train, and the grid it is tuned over; tuning begins with the first value of each list.

    ``ordered`` keeps the natural names of tokens and classes. ``degree`` is that of ``moments``.
    """

    name: str
    variant: Variant = "none"
    grokfast: bool = False
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    strengths: tuple[float, ...] = (0.0,)
    ordered: bool = False
    degree: Literal[2, 3] = 2

    def grid(self, tried: Mapping[Hyperparameters, Rank]) -> Iterator[Hyperparameters]:
        """Yield every learning rate with every weight decay at the first strength, then other strengths.

        Those are for the leader of the first round, which ``tried`` holds by then.
        """
        for learning_rate, weight_decay in product(self.learning_rates, self.weight_decays):
            yield Hyperparameters(
                learning_rate=learning_rate, weight_decay=weight_decay, strength=self.strengths[0]
            )
        leader = min(tried, key=tried.__getitem__)
        yield from (replace(leader, strength=strength) for strength in self.strengths[1:])

    @property
    def size(self) -> int:
        """How many settings there are to try."""
        return len(self.learning_rates) * len(self.weight_decays) + len(self.strengths) - 1

    def edges(self, chosen: Hyperparameters) -> tuple[str, ...]:
        """Return which of the chosen settings lie at an end of their list: further out might be better."""
        lists = {
            "learning rate": (self.learning_rates, chosen.learning_rate),
            "weight decay": (self.weight_decays, chosen.weight_decay),
            "strength": (self.strengths, chosen.strength),
        }
        return tuple(
            name
            for name, (values, value) in lists.items()
            if len(values) > 1 and value in {min(values), max(values)}
        )


def make_arms(
    rates: tuple[float, ...],
    decays: tuple[float, ...],
    more_decays: tuple[float, ...],
    couplings: Mapping[Variant, tuple[float, ...]],
    *,
    grokfast: bool,
    degree: Literal[2, 3] = 2,
) -> tuple[Arm, ...]:
    """Return the arms without TPS, which try ``more_decays``, and one for each variant with its couplings."""
    plain = Arm(name="none", learning_rates=rates, weight_decays=more_decays)
    gains = replace(plain, name="grokfast", grokfast=True, strengths=GROKFAST_GAINS)
    return (
        plain,
        *((gains,) if grokfast else ()),
        *(
            Arm(
                name=variant,
                variant=variant,
                ordered=variant == "fourier",
                degree=degree,
                learning_rates=rates,
                weight_decays=decays,
                strengths=strengths,
            )
            for variant, strengths in couplings.items()
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A task and the arms that learn it: a training ends at the first validation accuracy of ``level``.

    Read every ``reading_steps`` steps, stopped after ``cap_steps``. ``conditions`` are eight hexadecimal
    digits of all that a training depends on and its trial does not name.
    """

    task: str
    recipe: Recipe
    arms: tuple[Arm, ...]
    level: float
    cap_steps: int
    reading_steps: int
    conditions: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compute the conditions once: every trial holds them, and there are thousands of trials."""
        object.__setattr__(self, "conditions", _hash_conditions(self))

    def arm(self, name: str) -> Arm:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTrial:
    """A training to be run; ``allowed_steps`` is less than the cap where it could win with fewer only."""

    stage: Stage
    task: str
    conditions: str
    name: str
    seed: int
    learning_rate: float
    weight_decay: float
    strength: float
    allowed_steps: int

    @property
    def arm(self) -> str:
        """Task and arm, whose trainings cost alike."""
        return f"{self.task}, {self.name}"

    @property
    def settings(self) -> Hyperparameters:
        """What its arm is tuned by."""
        return Hyperparameters(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, strength=self.strength
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTraining:
    """A finished training.

    ``steps`` were taken until the first reading at the level, or all that it was allowed where that was not
    ``reached``; ``cpu_seconds`` are the processor time of those steps, TPS's own (``tps_cpu_seconds``)
    included, evaluation not. ``seconds`` is wall time of the whole, for estimates of time left only.
    """

    trial: ArmTrial
    steps: int
    reached: bool
    validation_accuracy: float
    cpu_seconds: float
    tps_cpu_seconds: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """How many seeds an arm is tuned on, and on how many others it is then compared."""

    pilot_seeds: int
    seeds: int

    @property
    def pilots(self) -> range:
        """The seeds of tuning."""
        return range(self.pilot_seeds)

    @property
    def pairs(self) -> range:
        """The seeds of the comparison; none is a pilot's."""
        return range(self.pilot_seeds, self.pilot_seeds + self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSetup:
    """The experiments of a study, and on how many seeds each is run; ``full`` is the larger size."""

    experiments: tuple[Experiment, ...]
    seeds: Seeds
    full: bool = False

    def decisive(self) -> dict[str, Any]:
        """Return what every line of the journal must agree on; trials hold the rest."""
        return {"pilot_seeds": self.seeds.pilot_seeds}

    def describe(self) -> dict[str, Any]:
        """Return the settings that a finding names."""
        return {"seeds": list(self.seeds.pairs), **self.decisive()}

    def command(self, name: str) -> str:
        """Return the command that runs the study at this size."""
        return f"tpsprune study {name}" + (" --full" if self.full else "")


Done: TypeAlias = Mapping[ArmTrial, ArmTraining]
Tuned: TypeAlias = tuple[Hyperparameters, int | None]
"""Settings chosen, and their steps summed over the pilot seeds, none where one never reached the level."""


def _hash_conditions(experiment: Experiment) -> str:
    train, task = asdict(experiment.recipe.train), asdict(experiment.recipe.task)
    task["data"] = describe_data(experiment.recipe.task.data)
    for name in ("weight_decay", "learning_rate", "epochs", "checkpoint_seconds", "compile"):
        del train[name]
    for settings in (train, task["model"]):
        for name, value in LATER:  # Journals from before there was such a key stay valid.
            if name in settings and settings[name] == value:
                del settings[name]
    held = [train, task, experiment.level, experiment.reading_steps, experiment.cap_steps]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]


def _make_trial(
    experiment: Experiment, arm: Arm, settings: Hyperparameters, seed: int, stage: Stage, allowed: int
) -> ArmTrial:
    return ArmTrial(
        stage=stage,
        task=experiment.task,
        conditions=experiment.conditions,
        name=arm.name,
        seed=seed,
        **asdict(settings),
        allowed_steps=allowed,
    )


def make_recipe(experiment: Experiment, trial: ArmTrial) -> Recipe:
    """Return the experiment's recipe as ``trial`` runs it: one thread, and what differs between trials."""
    recipe, arm = experiment.recipe, experiment.arm(trial.name)
    if arm.ordered and isinstance(data := recipe.task.data, ModularData):
        recipe = replace(recipe, task=replace(recipe.task, data=replace(data, relabel=False)))
    regulariser = Tps(
        variant=arm.variant,
        coupling=0.0 if arm.variant == "none" else trial.strength,
        degree=arm.degree,
        warmup_share=0.0,
    )
    return at_seed(
        recipe,
        trial.seed,
        regulariser,
        learning_rate=trial.learning_rate,
        weight_decay=trial.weight_decay,
        grokfast_gain=trial.strength if arm.grokfast else 0.0,
    )


def run_trial(experiment: Experiment, trial: ArmTrial) -> ArmTraining:
    """Train on the processor until validation accuracy is at the level, or for the steps allowed.

    Raises:
        VariantError: the arm's TPS variant does not fit the task or the model.
    """
    prepared = prepare(make_recipe(experiment, trial))
    climb = prepared.climb(
        experiment.level,
        trial.allowed_steps,
        experiment.reading_steps,
        prepared.build_regulariser(experiment.cap_steps),
        total_steps=experiment.cap_steps,
        may_diverge=True,
    )
    return ArmTraining(
        trial=trial,
        steps=climb.steps,
        reached=climb.reached,
        validation_accuracy=climb.accuracy,
        cpu_seconds=climb.cpu_seconds,
        tps_cpu_seconds=climb.tps_cpu_seconds,
    )


def run(setup: TunedSetup, trial: ArmTrial) -> ArmTraining:
    """Run one training of a study."""
    return run_trial(next(each for each in setup.experiments if each.task == trial.task), trial)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """An arm with all its trainings: the settings it was tuned to, and the comparison in order of seed.

    ``pilot_steps`` are summed over the pilot seeds, none where one never reached the level.
    """

    arm: Arm
    chosen: Hyperparameters
    pilot_steps: int | None
    trainings: tuple[ArmTraining, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatios:
    """How many times an arm's steps and processor seconds the baseline takes, over pairs of seeds."""

    steps: Interval
    seconds: Interval
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedResult:
    """A finished experiment: ratios of every other arm to ``baseline``; ``best`` is the arm that is judged.

    They are the fastest without and with TPS on the pilot seeds: the pairs have no part in it.
    """

    arms: tuple[ArmResult, ...]
    baseline: ArmResult
    best: ArmResult
    ratios: Mapping[str, PairedRatios]

    @property
    def leading(self) -> PairedRatios:
        """The ratios of the arm that is judged."""
        return self.ratios[self.best.arm.name]

    def ruling_on(self, name: str) -> Ruling | None:
        """Return the verdict with that arm; none where neither it nor the baseline ever reached the level."""
        sides = (each for each in self.arms if each.arm.name in {name, self.baseline.arm.name})
        if not any(training.reached for each in sides for training in each.trainings):
            return None
        found = self.ratios[name]
        return judge(found.steps.low, found.steps.high, PREDICTED_LEAST, found.bound)

    @property
    def ruling(self) -> Ruling | None:
        """The verdict with the arm that is judged."""
        return self.ruling_on(self.best.arm.name)


def compare(baseline: ArmResult, result: ArmResult) -> PairedRatios:
    """Return the ratios baseline / arm; a training short of the level counts with its allowed steps."""
    pairs = list(zip(baseline.trainings, result.trainings, strict=True))
    steps, bound = compare_steps(pairs)
    seconds = ratio_interval((other.cpu_seconds, own.cpu_seconds) for other, own in pairs)
    return PairedRatios(steps=steps, seconds=seconds, bound=bound)


def tune(experiment: Experiment, arm: Arm, seeds: Seeds) -> Strand[ArmTrial, ArmTraining, Tuned]:
    """Tune an arm: the settings with the fewest steps to the level, summed over pilots, win.

    One after the other; a training is allowed no more steps than would still beat the leader, which costs
    nothing but time: it could only have lost. Where none reaches the level the highest accuracy at the cap
    wins.
    """
    tried: dict[Hyperparameters, Rank] = {}
    for settings in arm.grid(tried):
        tried[settings] = yield from _try(experiment, arm, settings, seeds, tried)
    chosen = min(tried, key=tried.__getitem__)
    misses, steps = tried[chosen]
    return chosen, None if misses else int(steps)


def _try(
    experiment: Experiment,
    arm: Arm,
    settings: Hyperparameters,
    seeds: Seeds,
    tried: Mapping[Hyperparameters, Rank],
) -> Strand[ArmTrial, ArmTraining, Rank]:
    best = min((steps for misses, steps in tried.values() if not misses), default=None)
    later = (arm.size - len(tried)) * seeds.pilot_seeds + seeds.seeds - 1
    used = 0
    for seed in seeds.pilots:
        allowed = experiment.cap_steps
        if best is not None:
            allowed = min(allowed, int(best) - used - experiment.reading_steps)
        if allowed < experiment.reading_steps:
            return 1, 0.0
        trial = _make_trial(experiment, arm, settings, seed, "pilot", allowed)
        training = yield trial, [trial.arm] * later
        if not training.reached:
            return 1, -training.validation_accuracy
        used += training.steps
    return 0, float(used)


def learn(experiment: Experiment, seeds: Seeds, done: Done) -> tuple[Plan, TunedResult | None]:
    """Return the trainings of an experiment as far as they are known, and what they show once all are done.

    Arms are tuned side by side; then every arm learns on every seed, the arms of a seed one after the other.
    """
    plans, tuned = zip(*(follow(tune(experiment, arm, seeds), done) for arm in experiment.arms), strict=True)
    chosen: dict[str, Tuned] = {arm.name: one for arm, one in zip(experiment.arms, tuned, strict=True) if one}
    if len(chosen) < len(plans):
        to_compare = [f"{experiment.task}, {name}" for name in chosen for _ in seeds.pairs]
        return Plan.join((*plans, Plan((), tuple(to_compare)))), None
    trials = [
        _make_trial(experiment, arm, chosen[arm.name][0], seed, "pair", experiment.cap_steps)
        for seed in seeds.pairs
        for arm in experiment.arms
    ]
    plan = Plan.join((*plans, Plan(tuple(trials))))
    if not all(trial in done for trial in trials):
        return plan, None
    arms = [
        ArmResult(arm, *chosen[arm.name], tuple(done[trial] for trial in trials if trial.name == arm.name))
        for arm in experiment.arms
    ]
    baseline, best = (
        min(
            (each for each in arms if (each.arm.variant != "none") is with_tps),
            key=lambda each: (each.pilot_steps is None, each.pilot_steps or 0),
        )
        for with_tps in (False, True)
    )
    ratios = {each.arm.name: compare(baseline, each) for each in arms if each is not baseline}
    return plan, TunedResult(arms=tuple(arms), baseline=baseline, best=best, ratios=ratios)


def plan(setup: TunedSetup, done: Sequence[ArmTraining]) -> Plan:
    """Return experiment after experiment: its tuning, and once that is done its comparison."""
    finished = by_trial(done)
    return Plan.join(learn(experiment, setup.seeds, finished)[0] for experiment in setup.experiments)


def collect_results(
    setup: TunedSetup, done: Sequence[ArmTraining]
) -> tuple[tuple[TunedResult, ...], tuple[ArmTraining, ...]]:
    """Return what each experiment shows, and the trainings of it all, without others of the journal."""
    finished = by_trial(done)
    plans, results = zip(*(learn(each, setup.seeds, finished) for each in setup.experiments), strict=True)
    assert all(results), "every training is done"
    return results, tuple(finished[trial] for trial in Plan.join(plans).trials if isinstance(trial, ArmTrial))
