"""Study ``speed-up``: whether TPS makes a structured task converge two to five times faster.

On modular addition every variant of TPS is compared with training without it and with Grokfast, each at the
learning rate, weight decay and strength that tuning on pilot seeds found best for it: same initial weights,
same split, same order of data within a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Quantity, Ruling
from tpsprune_studies.tuned_comparison import (
    PREDICTED,
    PREDICTED_LEAST,
    PREDICTED_MOST,
    ArmTraining,
    Experiment,
    Seeds,
    TunedSetup,
    Variant,
    collect_results,
    make_arms,
    plan,  # noqa: F401 -- `Study` has it
    run,  # noqa: F401 -- `Study` has it
)

TRAINING: Final = ArmTraining
LEVEL: Final = 0.95
CAP_STEPS: Final = 3000
LEARNING_RATES: Final = (0.1, 0.03, 0.3, 0.01)
WEIGHT_DECAYS: Final = (2.0, 1.0, 4.0, 0.5)
MORE_DECAYS: Final = (*WEIGHT_DECAYS, 8.0)
COUPLINGS: Final[Mapping[Variant, tuple[float, ...]]] = {
    "labels": (10.0, 3.0, 30.0, 100.0),
    "moments": (10.0, 3.0, 30.0, 100.0),
    "fourier": (1.0, 0.3, 3.0, 10.0),
    "weights": (0.3, 0.1, 0.03, 1.0),
    "neurons": (0.3, 0.1, 1.0, 3.0),
}


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> TunedSetup:
    """Return the settings of the study at that size."""
    experiment = Experiment(
        task="addition",
        recipe=recipe,
        arms=make_arms(LEARNING_RATES, WEIGHT_DECAYS, MORE_DECAYS, COUPLINGS, grokfast=True),
        level=LEVEL,
        cap_steps=cap_steps or CAP_STEPS,
        reading_steps=1,
    )
    size = Seeds(pilot_seeds=5 if full else 2, seeds=seeds or (10 if full else 5))
    return TunedSetup(experiments=(experiment,), seeds=size, full=full)


def conclude(setup: TunedSetup, done: Sequence[ArmTraining], machine: Mapping[str, Any]) -> Finding:
    """Return the comparison; the ruling is on the steps of the arm with TPS that won on the pilot seeds."""
    (result,), trainings = collect_results(setup, done)
    return Finding(
        name="speed-up",
        setup=setup,
        machine=machine,
        ruling=result.ruling or Ruling.UNDECIDED,
        quantities=tuple(
            Quantity(
                name=f"{name}: {what}",
                predicted=PREDICTED if name == result.best.arm.name else "",
                measured=measured,
                bound=each.bound,
            )
            for name, each in result.ratios.items()
            for what, measured in (("optimiser steps", each.steps), ("CPU-seconds", each.seconds))
        ),
        predicted_range=(PREDICTED_LEAST, PREDICTED_MOST),
        figures={"experiment": setup.experiments[0], "result": result},
        trainings=trainings,
    )
