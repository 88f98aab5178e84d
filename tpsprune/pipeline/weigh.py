"""The end of a run: the test is read once, both models are weighed, everything is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from tpsprune import measure
from tpsprune.errors import ArtifactError
from tpsprune.numerics.trees import first_of, map_tensors
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.load import largest_difference, rebuilt_from
from tpsprune.pipeline.rounds import as_cut
from tpsprune.pipeline.state import Clock, State
from tpsprune.records import GIVEN, Cost, GroupChange, LeftAlone, ModelFigures, Outcome, Reading
from tpsprune.runs import RunFolder, write_result
from tpsprune.runs.environment import machine_facts, versions
from tpsprune.runs.tensors import load_tensors, save_tensors, shapes_of

__all__ = ["weigh"]

LATENCY_BATCHES: Final = (1, 64)
LATENCY_SECONDS: Final = 0.5
REBUILT_TOLERANCE: Final = 1e-5


def weigh(bench: Bench, folder: RunFolder, bill: Bill, state: State, *, timed: bool = True) -> Outcome:
    """Weigh the dense model as it was drawn and the ticket as it was left; write the result.

    ``timed``: with the latency of both, which takes seconds that a comparison would charge to the ticket.
    """
    assert state.drawn is not None
    assert state.stopped is not None
    ticket = state.model
    save_tensors(folder.ticket, ticket.state_dict(), {})
    dense = bench.execution.place(as_cut(folder, bench.new_model(fill=False), 0))
    dense.load_state_dict(load_tensors(folder.dense, shapes_of(dense.state_dict()))[0])
    _prove_rebuilt(bench, folder, ticket)
    dense_figures, ticket_figures = _figures(bench, dense, ticket, timed=timed)
    groups = tuple(GroupChange(**raw) for raw in state.cut["groups"])
    readings = folder.readings.parsed(Reading.from_json)
    bill.close()
    outcome = Outcome(
        name=bench.recipe.name,
        seed=bench.recipe.seed,
        device=bench.execution.describe(),
        machine={**machine_facts(), "threads": torch.get_num_threads()},
        task=bench.dataset.facts,
        dense=dense_figures,
        ticket=ticket_figures,
        cut_validation_accuracy=state.cut["validation_accuracy_after"],
        groups=groups,
        left_alone=tuple(LeftAlone(**raw) for raw in state.cut["left_alone"]),
        drawn=state.drawn,
        stopped=state.stopped,
        epochs={"budget": _budget_epochs(bench, state), "trained": state.stopped.epoch},
        energy=bill.phases,
        method=bill.method,
        total=bill.total,
        projected_dense=_projection(bench, state),
        overhead={
            "signals": _share(state.clock.watch, state.clock),
            "TPS": _share(state.clock.tps, state.clock),
        },
        attempts=1 + max(window.attempt for window in bill.windows),
        notes=tuple(_notes(bench, bill, state, readings)),
        versions=versions(),
        folder=str(folder.path),
    )
    write_result(folder.result, outcome.to_json())
    return outcome


def _prove_rebuilt(bench: Bench, folder: RunFolder, ticket: nn.Module) -> None:
    """Build the ticket anew from its files, as an export will, and hold it against the one in memory."""
    rebuilt = rebuilt_from(folder, bench.dataset.facts)
    inputs = map_tensors(bench.probe[0], lambda each: each.cpu())
    difference = largest_difference(copy.deepcopy(ticket).cpu().eval(), rebuilt, inputs)
    if not difference <= REBUILT_TOLERANCE:
        raise ArtifactError(
            f"{folder.path}: the ticket built anew from its files answers differently, by {difference:g}; "
            "its factory may not build the same model twice"
        )


def _figures(
    bench: Bench, dense: nn.Module, ticket: nn.Module, *, timed: bool
) -> tuple[ModelFigures, ModelFigures]:
    test, batch = bench.dataset.test, bench.probe[0]
    pairs = [
        measure.paired_latency(dense, ticket, first_of(batch), items, seconds=LATENCY_SECONDS)
        for items in (LATENCY_BATCHES if timed else ())
    ]
    first, second = (
        ModelFigures(
            accuracy=bench.score(model, test).accuracy,
            size=measure.size(model, batch),
            latencies=tuple(pair[position] for pair in pairs),
        )
        for position, model in enumerate((dense, ticket))
    )
    return first, second


def _projection(bench: Bench, state: State) -> Cost | None:
    """Return what the dense model would have cost to the end of the budget: a projection, no measurement.

    Training and evaluation of the dense stage, lost work left out, times budget / epochs at the draw. Not
    in it: setting up, readings, weighing, and TPS as far as its share of the processor time goes. It
    assumes that an epoch costs the same at the end as at the beginning, and that nothing would have
    stopped the dense model early. ``None`` where the dense model was given.
    """
    assert state.drawn is not None
    if state.drawn.rule == GIVEN:
        return None
    dense = Clock(**state.cut["dense_clock"])
    scale = bench.recipe.train.epochs / state.drawn.epoch * (1.0 - (_share(dense.tps, dense) or 0.0))
    return Cost(
        joules=None if dense.joules is None else dense.joules * scale,
        seconds=dense.seconds * scale,
        cpu_seconds=dense.cpu_seconds * scale,
    )


def _budget_epochs(bench: Bench, state: State) -> float:
    """Return the epochs that could have been trained: of a model given, those of its retraining."""
    assert state.drawn is not None
    if state.drawn.rule != GIVEN:
        return float(bench.recipe.train.epochs)
    own = bench.recipe.retrain.epochs
    return 0.0 if own == "rest" else float(own)


def _share(cpu_seconds: float, clock: Clock) -> float | None:
    return cpu_seconds / clock.train if clock.train > 0 else None


def _notes(bench: Bench, bill: Bill, state: State, readings: Sequence[Reading]) -> list[str]:
    notes = list(state.cut["notes"])
    assert state.drawn is not None
    if bench.given and state.drawn.rule != GIVEN:
        notes.insert(0, f"the training began with {bench.given}")
    required = bench.recipe.task.required_accuracy
    accuracy = bench.score(state.model, bench.dataset.validation).accuracy
    if accuracy < required:
        notes.append(
            f"the task was not learned: the ticket's validation {bench.objective.quality} {accuracy:.3f} is "
            f"below task.required_accuracy = {required:g}; no figure of this run speaks for the ticket"
        )
    losses = [r.value for r in readings if r.signal == "train_loss" and r.value is not None]
    coherences = [
        r.value for r in readings if r.signal == "tps_coherence" and not r.group and r.value is not None
    ]
    if state.regulariser is not None and (harm := state.regulariser.harm_note(coherences, losses)):
        notes.append(harm)
    if invalid := [window for window in bill.windows if not window.valid]:
        notes.append(
            f"{len(invalid)} of {len(bill.windows)} energy windows are invalid "
            f"(first: {invalid[0].phase}: {invalid[0].fault})"
        )
    attempts = 1 + max(window.attempt for window in bill.windows)
    if attempts > 1:
        notes.append(
            f"{attempts} attempts: energy of work that was lost is on the bill, but for the windows "
            "that were open when it was lost"
        )
    return notes
