"""The first moment of a run: a model that has not been trained here, and everything that will go with it."""

from __future__ import annotations

from torch import nn

from tpsprune import stopping, training
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.state import Clock, Stage, State
from tpsprune.recipe.stop import Rule

__all__ = ["begun"]


def begun(bench: Bench, model: nn.Module, stage: Stage, rule: Rule) -> State:
    """Return the state at step 0: a new optimiser, a regulariser, signals and a rule without a past."""
    return State(
        stage=stage,
        step=0,
        shift=0,
        model=model,
        optimizer=training.make_optimizer(model, bench.recipe.train),
        regulariser=bench.regulariser(model),
        signals=bench.panel.start(),
        rule=stopping.start(rule, chance_accuracy=bench.chance_accuracy, quality=bench.objective.quality),
        clock=Clock(),
        lines=(0, 0),
    )
