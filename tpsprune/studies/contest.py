"""A contest: arms that learn the same task, each tuned by a race on pilot seeds, then met on other seeds.

Everything here is a pure function of which trainings are done, so that a contest can be broken off anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal, TypeAlias

from tpsprune.recipe import Recipe

__all__ = ["Arm", "Contest", "Race", "Settings", "Size", "Trained", "Trial", "Variant", "pairs", "race"]

Stage: TypeAlias = Literal["pilot", "pair"]
Variant: TypeAlias = Literal["none", "weights", "neurons", "moments", "fourier", "labels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an arm is tuned by; ``strength`` is λ of TPS, or Grokfast's gain, and 0 of neither."""

    learning_rate: float
    weight_decay: float
    strength: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A way to train, and the grid it is tuned over; the first of each list is where the race begins.

    ``ordered`` leaves tokens and answers their own names. ``degree`` is that of ``moments``.
    """

    name: str
    variant: Variant = "none"
    grokfast: bool = False
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    strengths: tuple[float, ...] = (0.0,)
    ordered: bool = False
    degree: Literal[2, 3] = 2

    def first_round(self) -> Iterator[Settings]:
        """Yield every learning rate with every weight decay, at the first strength."""
        for learning_rate, weight_decay in product(self.learning_rates, self.weight_decays):
            yield Settings(learning_rate=learning_rate, weight_decay=weight_decay, strength=self.strengths[0])

    def second_round(self, leader: Settings) -> Iterator[Settings]:
        """Yield the other strengths at the leader's learning rate and weight decay."""
        for strength in self.strengths[1:]:
            yield Settings(
                learning_rate=leader.learning_rate, weight_decay=leader.weight_decay, strength=strength
            )

    @property
    def size(self) -> int:
        """How many settings there are to try."""
        return len(self.learning_rates) * len(self.weight_decays) + len(self.strengths) - 1

    def edges(self, chosen: Settings) -> tuple[str, ...]:
        """Return by what the chosen settings lie at an end of their list: further out might be better."""
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
class Contest:
    """A task, its arms, and when a training is there: at the first validation accuracy of ``level`` or more.

    Read every ``reading_steps`` steps, given up after ``cap_steps``. ``conditions`` are eight hexadecimal
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
        """Work out the conditions once: every trial holds them, and trials are made by the thousand."""
        object.__setattr__(self, "conditions", _conditions(self))

    def arm(self, name: str) -> Arm:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A training to be done; ``allowed_steps`` are fewer than the cap where it could win with those only."""

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
        """What it costs alike with."""
        return f"{self.task}, {self.name}"

    @property
    def settings(self) -> Settings:
        """What its arm is tuned by."""
        return Settings(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, strength=self.strength
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training that is done.

    ``steps`` were taken until the first reading at the level, or all that it was allowed where that was not
    ``reached``; ``cpu_seconds`` are those steps' processor time, TPS's own (``tps_cpu_seconds``) among it,
    evaluation not. ``seconds`` is wall time of the whole, for estimates of time left only.
    """

    trial: Trial
    steps: int
    reached: bool
    validation_accuracy: float
    cpu_seconds: float
    tps_cpu_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Trained:
        """Rebuild a training written by ``to_json``."""
        return cls(**{**raw, "trial": Trial(**raw["trial"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many seeds an arm is tuned on, and on how many others it is then compared."""

    pilot_seeds: int
    seeds: int

    @property
    def pilots(self) -> range:
        """The seeds of the races."""
        return range(self.pilot_seeds)

    @property
    def pairs(self) -> range:
        """The seeds of the comparison; none is a pilot's."""
        return range(self.pilot_seeds, self.pilot_seeds + self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The trials of a race as far as they are known, its winner once all are done, how many are left."""

    trials: tuple[Trial, ...]
    chosen: Settings | None
    left: int


def race(contest: Contest, arm: Arm, size: Size, done: Mapping[Trial, Trained]) -> Race:
    """Return how an arm is tuned: the settings that take the fewest steps to the level, summed over pilots.

    One after the other; a training is allowed no more steps than would still beat the leader, which costs
    nothing but time: it could only have lost. Where none gets there the highest accuracy at the cap wins.
    """
    trials: list[Trial] = []
    tried: dict[Settings, tuple[int, float]] = {}
    for settings in _grid(arm, tried):
        played, rank = _played(contest, arm, settings, size.pilots, tried, done)
        trials += played
        if rank is None:
            return Race(trials=tuple(trials), chosen=None, left=arm.size - len(tried))
        tried[settings] = rank
    return Race(trials=tuple(trials), chosen=_leader(tried), left=0)


def pairs(contest: Contest, chosen: Mapping[str, Settings], size: Size) -> Iterator[Trial]:
    """Yield the comparison: every arm on every seed, the arms of a seed one after the other."""
    for seed in size.pairs:
        for arm in contest.arms:
            yield _trial(contest, arm, chosen[arm.name], seed, "pair", contest.cap_steps)


def _conditions(contest: Contest) -> str:
    train, task = asdict(contest.recipe.train), asdict(contest.recipe.task)
    for section, name in (
        (train, "weight_decay"),
        (train, "learning_rate"),
        (train, "epochs"),
        (train, "checkpoint_seconds"),
        (task["data"], "split_seed"),
    ):
        section.pop(name, None)
    held = [train, task, contest.level, contest.reading_steps, contest.cap_steps]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]


def _grid(arm: Arm, tried: Mapping[Settings, tuple[int, float]]) -> Iterator[Settings]:
    """Yield what an arm tries; by the time the second round begins, ``tried`` holds the first."""
    yield from arm.first_round()
    yield from arm.second_round(_leader(tried))


def _leader(tried: Mapping[Settings, tuple[int, float]]) -> Settings:
    return min(tried, key=lambda settings: tried[settings])


def _played(
    contest: Contest,
    arm: Arm,
    settings: Settings,
    seeds: Sequence[int],
    tried: Mapping[Settings, tuple[int, float]],
    done: Mapping[Trial, Trained],
) -> tuple[list[Trial], tuple[int, float] | None]:
    """Return the trials of one setting and its rank, none while a training is due: low ranks win.

    (0, steps) where every seed got there, else (1, less the accuracy).
    """
    best = min((steps for misses, steps in tried.values() if not misses), default=None)
    trials: list[Trial] = []
    used = 0
    for seed in seeds:
        allowed = contest.cap_steps
        if best is not None:
            allowed = min(allowed, int(best) - used - contest.reading_steps)
        if allowed < contest.reading_steps:
            return trials, (1, 0.0)
        trials.append(_trial(contest, arm, settings, seed, "pilot", allowed))
        trained = done.get(trials[-1])
        if trained is None:
            return trials, None
        if not trained.reached:
            return trials, (1, -trained.validation_accuracy)
        used += trained.steps
    return trials, (0, float(used))


def _trial(contest: Contest, arm: Arm, settings: Settings, seed: int, stage: Stage, allowed: int) -> Trial:
    return Trial(
        stage=stage,
        task=contest.task,
        conditions=contest.conditions,
        name=arm.name,
        seed=seed,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        strength=settings.strength,
        allowed_steps=allowed,
    )
