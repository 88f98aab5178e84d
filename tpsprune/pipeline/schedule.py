"""From which step to which a ticket trains: between two rounds of cutting, and after the last."""

from __future__ import annotations

from tpsprune.pipeline.bench import Bench
from tpsprune.recipe.train import rewind_epoch

__all__ = ["between_schedule", "retrain_schedule", "trains_between"]


def retrain_schedule(bench: Bench, drawn_step: int) -> tuple[int, int]:
    """Return the first and the last step of the retraining on its own schedule.

    What is left of the budget goes on where the draw left it, or where the rewind goes back to; epochs
    of its own are a schedule of their own, from the rewind point if there is one, else from the start.
    """
    retrain = bench.recipe.retrain
    rewound_step = _rewound_step(bench)
    if retrain.epochs == "rest":
        return (drawn_step if rewound_step is None else rewound_step), bench.total_steps
    first_step = rewound_step or 0
    return first_step, first_step + retrain.epochs * bench.steps_per_epoch


def between_schedule(bench: Bench, cut_step: int) -> tuple[int, int, int]:
    """Return the first step, the last and the schedule's end of the training between two rounds.

    ``prune.round_epochs`` of what is left of the budget; where the retraining has epochs of its own, a
    schedule of its own.
    """
    steps = bench.recipe.prune.round_epochs * bench.steps_per_epoch
    first_step, total_steps = retrain_schedule(bench, cut_step)
    if bench.recipe.retrain.epochs != "rest":
        return first_step, first_step + steps, first_step + steps
    return first_step, min(first_step + steps, total_steps), total_steps


def trains_between(bench: Bench) -> bool:
    """Return whether the ticket trains between two rounds: not where nothing is retrained at all."""
    return bench.recipe.retrain.epochs != 0


def _rewound_step(bench: Bench) -> int | None:
    rewind = rewind_epoch(bench.recipe.retrain.rewind)
    return None if rewind is None else rewind * bench.steps_per_epoch
