"""A study small enough for a test: thirteen residues, a narrow net, a few steps; and trainings made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tpsprune import recipe
from tpsprune.studies.setup import Setup
from tpsprune.studies.trial import Trained, Trial

OVERRIDES = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")


@pytest.fixture(scope="session")
def tiny() -> Setup:
    return Setup(
        recipe=recipe.read("modular-addition", OVERRIDES),
        seeds=2,
        cap_steps=30,
        level=0.1,
        reading_steps=10,
        weight_decays=(1.0, 2.0),
    )


@pytest.fixture
def done() -> Callable[..., list[Trained]]:
    """Pilot and pairs as from ``(seed, steps without, steps with)``; a negative number never got there."""

    def make(setup: Setup, pairs: list[tuple[int, int]]) -> list[Trained]:
        pilot = [
            made(Trial(stage="pilot", seed=setup.pilot_seed, arm="none", weight_decay=1.0), 4000),
            made(Trial(stage="pilot", seed=setup.pilot_seed, arm="none", weight_decay=2.0), 3000),
            made(Trial(stage="pilot", seed=setup.pilot_seed, arm="labels", weight_decay=1.0), 350),
            made(Trial(stage="pilot", seed=setup.pilot_seed, arm="labels", weight_decay=2.0), 375),
        ]
        return pilot + [
            made(Trial(stage="pair", seed=seed, arm=arm, weight_decay=weight_decay), steps)
            for seed, pair in zip(setup.pair_seeds, pairs, strict=True)
            for arm, weight_decay, steps in zip(("none", "labels"), (2.0, 1.0), pair, strict=True)
        ]

    return make


def made(trial: Trial, steps: int) -> Trained:
    return Trained(
        trial=trial,
        steps=abs(steps),
        reached=steps > 0,
        validation_accuracy=0.96 if steps > 0 else 0.1,
        cpu_seconds=abs(steps) * (0.01 if trial.arm == "none" else 0.015),
        tps_cpu_seconds=0.0 if trial.arm == "none" else abs(steps) * 0.005,
        seconds=abs(steps) * 0.02,
    )
