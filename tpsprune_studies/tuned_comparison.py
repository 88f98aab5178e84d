"""Arms that learn one task, each tuned on pilot seeds, then compared pair by pair on other seeds.

All but ``run_trial`` is a pure function of which trainings are done, so that it can be broken off anywhere.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal, TypeAlias

from tpsprune.errors import DivergedError
from tpsprune.numerics.small_samples import Interval, ratio_interval
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import ModularData
from tpsprune.recipe.train import Tps
from tpsprune_studies.finding import Bound, Plan
from tpsprune_studies.setup import at_seed, prepare
from tpsprune_studies.tasks import describe_data

Stage: TypeAlias = Literal["pilot", "pair"]
Variant: TypeAlias = Literal["none", "weights", "neurons", "moments", "fourier", "labels"]


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

    def first_round(self) -> Iterator[Hyperparameters]:
        """Yield every learning rate with every weight decay, at the first strength."""
        for learning_rate, weight_decay in product(self.learning_rates, self.weight_decays):
            yield Hyperparameters(
                learning_rate=learning_rate, weight_decay=weight_decay, strength=self.strengths[0]
            )

    def second_round(self, leader: Hyperparameters) -> Iterator[Hyperparameters]:
        """Yield the other strengths at the leader's learning rate and weight decay."""
        return (replace(leader, strength=strength) for strength in self.strengths[1:])

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
    seconds: float


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
Rank: TypeAlias = tuple[int, float]
"""(0, steps) where every seed reached the level, else (1, less the accuracy): low ranks win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The trials that tune an arm as far as they are known, the settings chosen once all are done, the rest.

    ``left`` counts settings that are still to be tried.
    """

    trials: tuple[ArmTrial, ...]
    chosen: Hyperparameters | None
    left: int


def tune(experiment: Experiment, arm: Arm, seeds: Seeds, done: Done) -> Tuning:
    """Return how an arm is tuned: the settings with the fewest steps to the level, summed over pilots, win.

    One after the other; a training is allowed no more steps than would still beat the leader, which costs
    nothing but time: it could only have lost. Where none reaches the level the highest accuracy at the cap
    wins.
    """
    trials: list[ArmTrial] = []
    tried: dict[Hyperparameters, Rank] = {}
    for settings in _grid(arm, tried):
        needed, rank = _try(experiment, arm, settings, seeds.pilots, tried, done)
        trials += needed
        if rank is None:
            return Tuning(trials=tuple(trials), chosen=None, left=arm.size - len(tried))
        tried[settings] = rank
    return Tuning(trials=tuple(trials), chosen=_leader(tried), left=0)


def plan_experiment(experiment: Experiment, seeds: Seeds, done: Done) -> Plan:
    """Return the trainings as far as they are known: tuning arm by arm, then the comparison."""
    tunings = {arm.name: tune(experiment, arm, seeds, done) for arm in experiment.arms}
    trials = [trial for each in tunings.values() for trial in each.trials]
    chosen = {name: each.chosen for name, each in tunings.items() if each.chosen is not None}
    if len(chosen) == len(experiment.arms):
        return Plan((*trials, *_pair(experiment, chosen, seeds)))
    later = [
        f"{experiment.task}, {name}"
        for name, each in tunings.items()
        for _ in range(each.left * seeds.pilot_seeds + seeds.seeds)
    ]
    for trial in trials:
        if trial not in done:
            later.remove(trial.arm)
    return Plan(tuple(trials), tuple(later))


def plan(setup: TunedSetup, done: Sequence[ArmTraining]) -> Plan:
    """Return experiment after experiment: its tuning, and once that is done its comparison."""
    finished = by_trial(done)
    plans = [plan_experiment(experiment, setup.seeds, finished) for experiment in setup.experiments]
    return Plan(
        tuple(trial for each in plans for trial in each.trials),
        tuple(arm for each in plans for arm in each.later_arms),
    )


def select_planned(setup: TunedSetup, done: Sequence[ArmTraining]) -> tuple[ArmTraining, ...]:
    """Return the trainings of a finished plan, in its order, without others of the journal."""
    finished = by_trial(done)
    return tuple(finished[trial] for trial in plan(setup, done).trials if isinstance(trial, ArmTrial))


def _pair(experiment: Experiment, chosen: Mapping[str, Hyperparameters], seeds: Seeds) -> Iterator[ArmTrial]:
    """Yield the comparison: every arm on every seed, the arms of a seed one after the other."""
    for seed in seeds.pairs:
        for arm in experiment.arms:
            yield _make_trial(experiment, arm, chosen[arm.name], seed, "pair", experiment.cap_steps)


def _hash_conditions(experiment: Experiment) -> str:
    train, task = asdict(experiment.recipe.train), asdict(experiment.recipe.task)
    task["data"] = describe_data(experiment.recipe.task.data)
    for name in ("weight_decay", "learning_rate", "epochs", "checkpoint_seconds", "compile"):
        del train[name]
    held = [train, task, experiment.level, experiment.reading_steps, experiment.cap_steps]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]


def _grid(arm: Arm, tried: Mapping[Hyperparameters, Rank]) -> Iterator[Hyperparameters]:
    """Yield what an arm tries; by the time the second round begins, ``tried`` holds the first."""
    yield from arm.first_round()
    yield from arm.second_round(_leader(tried))


def _leader(tried: Mapping[Hyperparameters, Rank]) -> Hyperparameters:
    return min(tried, key=lambda settings: tried[settings])


def _try(
    experiment: Experiment,
    arm: Arm,
    settings: Hyperparameters,
    seeds: Sequence[int],
    tried: Mapping[Hyperparameters, Rank],
    done: Done,
) -> tuple[list[ArmTrial], Rank | None]:
    """Return the trainings of one setting, and its rank, none while a training is due."""
    best = min((steps for misses, steps in tried.values() if not misses), default=None)
    trials: list[ArmTrial] = []
    used = 0
    for seed in seeds:
        allowed = experiment.cap_steps
        if best is not None:
            allowed = min(allowed, int(best) - used - experiment.reading_steps)
        if allowed < experiment.reading_steps:
            return trials, (1, 0.0)
        trials.append(_make_trial(experiment, arm, settings, seed, "pilot", allowed))
        training = done.get(trials[-1])
        if training is None:
            return trials, None
        if not training.reached:
            return trials, (1, -training.validation_accuracy)
        used += training.steps
    return trials, (0, float(used))


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

    Validation is read every ``reading_steps`` steps and once more at the end. A training whose loss is no
    longer finite has lost: it never reaches the level, and its accuracy is 0.

    Raises:
        VariantError: the arm's TPS variant does not fit the task or the model.
    """
    started = time.monotonic()
    prepared = prepare(make_recipe(experiment, trial))
    regulariser = prepared.build_regulariser(experiment.cap_steps)
    penalty = regulariser if regulariser and regulariser.in_loss else None
    ticks = prepared.fit(experiment.cap_steps, penalty)
    steps, accuracy, cpu_seconds, tps_cpu_seconds = 0, 0.0, 0.0, 0.0
    resumed = time.process_time()
    try:
        for tick in ticks:
            moved = time.process_time()
            if regulariser is not None:
                regulariser.move(tick.step - 1, tick.learning_rate)
                tps_cpu_seconds += tick.penalty_cpu_seconds + time.process_time() - moved
            if tick.step % experiment.reading_steps and tick.step < trial.allowed_steps:
                continue
            cpu_seconds += time.process_time() - resumed
            steps, accuracy = tick.step, prepared.evaluate().accuracy
            if accuracy >= experiment.level or steps >= trial.allowed_steps:
                break
            resumed = time.process_time()
    except DivergedError:
        steps, accuracy = trial.allowed_steps, 0.0
    return ArmTraining(
        trial=trial,
        steps=steps,
        reached=accuracy >= experiment.level,
        validation_accuracy=accuracy,
        cpu_seconds=cpu_seconds,
        tps_cpu_seconds=tps_cpu_seconds,
        seconds=time.monotonic() - started,
    )


def run(setup: TunedSetup, trial: ArmTrial) -> ArmTraining:
    """Run one training of a study."""
    return run_trial(next(each for each in setup.experiments if each.task == trial.task), trial)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """An arm with all its trainings: the settings it was tuned to, and the comparison in order of seed.

    ``pilot_steps`` are summed over the pilot seeds, none where one never reached the level.
    """

    arm: Arm
    chosen: Hyperparameters
    pilot_steps: int | None
    trainings: tuple[ArmTraining, ...]

    @property
    def mean_cpu_seconds(self) -> float:
        """Processor seconds of a training of the comparison."""
        return sum(training.cpu_seconds for training in self.trainings) / len(self.trainings)

    @property
    def steps_by_seed(self) -> tuple[str, ...]:
        """The steps of each training of the comparison, as tables have them."""
        return tuple(format_steps(each.steps, reached=each.reached) for each in self.trainings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatios:
    """How many times an arm's steps and processor seconds the baseline takes, over pairs of seeds."""

    steps: Interval
    seconds: Interval
    bound: Bound


def by_trial(done: Sequence[ArmTraining]) -> dict[ArmTrial, ArmTraining]:
    """Return trainings by their trial; of two alike the one that was done first."""
    return {training.trial: training for training in reversed(done)}


def collect_results(experiment: Experiment, seeds: Seeds, done: Done) -> tuple[ArmResult, ...]:
    """Return every arm of an experiment whose trainings are all done."""
    tunings = {arm.name: tune(experiment, arm, seeds, done) for arm in experiment.arms}
    chosen = {name: each.chosen for name, each in tunings.items() if each.chosen is not None}
    compared = list(_pair(experiment, chosen, seeds))
    return tuple(
        ArmResult(
            arm=arm,
            chosen=chosen[arm.name],
            pilot_steps=_sum_pilots(tunings[arm.name].trials, chosen[arm.name], seeds, done),
            trainings=tuple(done[trial] for trial in compared if trial.name == arm.name),
        )
        for arm in experiment.arms
    )


def _sum_pilots(trials: Sequence[ArmTrial], chosen: Hyperparameters, seeds: Seeds, done: Done) -> int | None:
    pilots = [done[trial] for trial in trials if trial.settings == chosen]
    whole = len(pilots) == seeds.pilot_seeds and all(training.reached for training in pilots)
    return sum(training.steps for training in pilots) if whole else None


def choose_baseline(results: Sequence[ArmResult]) -> ArmResult:
    """Return the arm without TPS that was fastest on the pilot seeds."""
    return _fastest([result for result in results if result.arm.variant == "none"])


def choose_best_tps(results: Sequence[ArmResult]) -> ArmResult:
    """Return the arm with TPS that was fastest on the pilot seeds; the pairs have no part in it."""
    return _fastest([result for result in results if result.arm.variant != "none"])


def _fastest(results: Sequence[ArmResult]) -> ArmResult:
    return min(results, key=lambda result: (result.pilot_steps is None, result.pilot_steps or 0))


def compare(baseline: ArmResult, result: ArmResult) -> PairedRatios:
    """Return the ratios baseline / arm; a training short of the level counts with its allowed steps."""
    pairs = list(zip(baseline.trainings, result.trainings, strict=True))
    return PairedRatios(
        steps=ratio_interval((other.steps, own.steps) for other, own in pairs),
        seconds=ratio_interval((other.cpu_seconds, own.cpu_seconds) for other, own in pairs),
        bound=Bound(
            may_be_larger=any(not other.reached for other, _ in pairs),
            may_be_smaller=any(not own.reached for _, own in pairs),
        ),
    )


def format_steps(steps: int, *, reached: bool) -> str:
    """Return the steps a training took, with ``>`` before those of one that was stopped.

    >>> format_steps(1500, reached=False)
    '> 1,500'
    """
    return f"{steps:,}" if reached else f"> {steps:,}"
