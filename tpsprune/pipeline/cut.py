"""The draw: from a dense model to its ticket, in a transaction, charged to the phase ``prune``."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, replace

from torch import nn

from tpsprune import pruning, stopping, training
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.state import State, has_snapshot, load_snapshot, save_checkpoint
from tpsprune.recipe.retrain import rewind_epoch
from tpsprune.records import Event, Note, Pruned
from tpsprune.runs import RunFolder, read_json, write_json_atomically

__all__ = ["cut_model", "replayed", "retrain_schedule"]


def cut_model(bench: Bench, folder: RunFolder, state: State) -> Generator[Event, None, State]:
    """Draw the ticket, show what went, and return the state at the start of its retraining.

    With a rewind the plan is replayed on the weights kept for it, and the optimiser is made anew:
    moments of other weights mean nothing to them.
    """
    recipe = bench.recipe
    before = bench.score(state.model, bench.dataset.validation)
    extraction = pruning.extract(state.model, bench.probe, recipe.prune)
    after = bench.score(extraction.ticket, bench.dataset.validation)
    write_json_atomically(folder.plan, extraction.plan.to_json())
    pruned = Pruned(
        groups=extraction.changes,
        left_alone=extraction.left_alone,
        macs_share=extraction.macs_share,
        parameters_share=_parameters(extraction.ticket) / _parameters(state.model),
        validation_accuracy_before=before.accuracy,
        validation_accuracy_after=after.accuracy,
    )
    yield pruned
    notes = list(extraction.notes)
    rewind = rewind_epoch(recipe.retrain.rewind)
    if rewind is not None and not has_snapshot(folder):
        notes.append(f"a budget ended the training before epoch {rewind}: there is nothing to rewind to")
        rewind = None
    for note in notes:
        yield Note(note)
    ticket = bench.execution.place(extraction.ticket)
    moments = {}
    if rewind is not None:
        original = bench.new_model()
        load_snapshot(folder, original)
        ticket = bench.execution.place(replayed(folder, original))
    elif recipe.retrain.optimizer == "carry":
        moments = pruning.carried(training.state_by_name(state.optimizer, state.model), extraction.plan)
    optimizer = training.make_optimizer(ticket, recipe.train)
    training.load_state_by_name(optimizer, ticket, moments)
    first_step, _ = retrain_schedule(bench, state.step)
    state = replace(
        state,
        stage="retrain",
        step=first_step,
        shift=state.step - first_step,
        model=ticket,
        optimizer=optimizer,
        regulariser=bench.regulariser(ticket),
        rule=stopping.start(recipe.stop.end, chance_accuracy=bench.chance_accuracy),
        cut={**asdict(pruned), "notes": notes, "dense_clock": asdict(state.clock)},
    )
    save_checkpoint(folder, state, bench.panel)
    return state


def retrain_schedule(bench: Bench, drawn_step: int) -> tuple[int, int]:
    """Return the first and the last step of the retraining on its own schedule.

    What is left of the budget goes on where the draw left it, or where the rewind goes back to; epochs
    of its own are a schedule of their own, from the rewind point if there is one, else from the start.
    """
    retrain = bench.recipe.retrain
    rewind = rewind_epoch(retrain.rewind)
    rewound_step = None if rewind is None else rewind * bench.steps_per_epoch
    if retrain.epochs == "rest":
        return (drawn_step if rewound_step is None else rewound_step), bench.total_steps
    first_step = rewound_step or 0
    return first_step, first_step + retrain.epochs * bench.steps_per_epoch


def replayed(folder: RunFolder, model: nn.Module) -> nn.Module:
    """Return ``model`` cut by the run's plan, every weight that stays as it is."""
    return pruning.replay(model, pruning.Plan.from_json(read_json(folder.plan)))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
