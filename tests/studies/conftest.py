"""A contest small enough for a test: thirteen residues, a narrow net, a few steps; and trainings made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tpsprune import recipe
from tpsprune.studies.contest import Arm, Contest, Size, Trained, Trial
from tpsprune.studies.setup import Setup
from tpsprune.studies.speed_up import SpeedUp, plan

OVERRIDES = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")
NONE = Arm(name="none", learning_rates=(0.01, 0.03), weight_decays=(1.0,))
LABELS = Arm(
    name="labels", variant="labels", learning_rates=(0.01,), weight_decays=(1.0,), strengths=(1.0, 3.0)
)


@pytest.fixture(scope="session")
def tiny() -> SpeedUp:
    contest = Contest(
        task="addition",
        recipe=recipe.read("modular-addition", OVERRIDES),
        arms=(NONE, LABELS),
        level=0.1,
        cap_steps=30,
        reading_steps=10,
    )
    return SpeedUp(contest=contest, size=Size(pilot_seeds=1, seeds=2))


@pytest.fixture(scope="session")
def tiny_setup() -> Setup:
    return Setup(
        recipe=recipe.read("modular-addition", OVERRIDES), seeds=2, cap_steps=30, level=0.1, reading_steps=10
    )


def longer(setup: SpeedUp, cap_steps: int = 5000) -> SpeedUp:
    return replace(setup, contest=replace(setup.contest, cap_steps=cap_steps))


def made(trial: Trial, steps: int) -> Trained:
    """A training that got there after so many steps, or after so many (negative) gave up."""
    return Trained(
        trial=trial,
        steps=abs(steps),
        reached=steps > 0,
        validation_accuracy=0.96 if steps > 0 else 0.1,
        cpu_seconds=abs(steps) * (0.01 if trial.name == "none" else 0.015),
        tps_cpu_seconds=0.0 if trial.name == "none" else abs(steps) * 0.005,
        seconds=abs(steps) * 0.02,
    )


def played(setup: SpeedUp, outcome: Callable[[Trial], int]) -> list[Trained]:
    """All trainings of a study, each with the steps that ``outcome`` gives it, or those it is allowed."""
    done: list[Trained] = []
    while True:
        finished = {trained.trial for trained in done}
        due = [trial for trial in plan(setup, done).trials if trial not in finished]
        if not due:
            return done
        trial = due[0]
        assert isinstance(trial, Trial)
        steps = outcome(trial)
        done.append(made(trial, steps if abs(steps) <= trial.allowed_steps else -trial.allowed_steps))


@pytest.fixture
def done() -> Callable[..., list[Trained]]:
    """Pilot and pairs as from ``(steps without, steps with)``; a negative number never got there."""

    def make(setup: SpeedUp, couples: list[tuple[int, int]]) -> list[Trained]:
        def outcome(trial: Trial) -> int:
            if trial.stage == "pilot":
                return 400 if trial.name == "labels" else 3000
            without, with_tps = couples[setup.size.pairs.index(trial.seed)]
            return with_tps if trial.name == "labels" else without

        return played(setup, outcome)

    return make
