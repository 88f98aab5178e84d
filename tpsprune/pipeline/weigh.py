"""The end of a run: the test is read once, both models are weighed, everything is written."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import takewhile
from typing import Any, Final

import torch
from torch import nn

from tpsprune import energy, measure
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.state import State
from tpsprune.records import Cost, GroupChange, LeftAlone, ModelFigures, Outcome, Reading
from tpsprune.runs import RunFolder, write_result
from tpsprune.runs.tensors import load_tensors, save_tensors, shapes_of

__all__ = ["weigh"]

LATENCY_BATCHES: Final = (1, 64)
LATENCY_SECONDS: Final = 0.5
PACKAGES: Final = ("tpsprune", "torch", "torch-pruning", "codecarbon", "numpy", "ripser", "safetensors")


def weigh(bench: Bench, folder: RunFolder, bill: Bill, state: State) -> Outcome:
    """Weigh the dense model as it was drawn and the ticket as it was left; write the result."""
    assert state.drawn is not None
    assert state.stopped is not None
    ticket = state.model
    save_tensors(folder.ticket, ticket.state_dict(), {})
    dense = bench.new_model()
    dense.load_state_dict(load_tensors(folder.dense, shapes_of(dense.state_dict()))[0])
    dense_figures, ticket_figures = _figures(bench, dense, ticket)
    groups = tuple(GroupChange(**raw) for raw in state.cut["groups"])
    readings = folder.readings.parsed(Reading.from_json)
    bill.close()
    outcome = Outcome(
        name=bench.recipe.name,
        seed=bench.recipe.seed,
        device=bench.execution.describe(),
        machine=_machine(),
        task=bench.dataset.facts,
        dense=dense_figures,
        ticket=ticket_figures,
        cut_validation_accuracy=state.cut["validation_accuracy_after"],
        groups=groups,
        left_alone=tuple(LeftAlone(**raw) for raw in state.cut["left_alone"]),
        drawn=state.drawn,
        stopped=state.stopped,
        epochs={"budget": float(bench.recipe.train.epochs), "trained": state.stopped.epoch},
        energy=bill.phases,
        method=bill.method,
        total=bill.total,
        projected_dense=_projection(bench, bill, _tps_share(state)),
        overhead={"signals": _share(state.clock.watch, state), "TPS": _tps_share(state)},
        attempts=1 + max(window.attempt for window in bill.windows),
        notes=tuple(_notes(bench, bill, state, readings)),
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        folder=str(folder.path),
    )
    write_result(folder.result, outcome.to_json())
    return outcome


def _figures(bench: Bench, dense: nn.Module, ticket: nn.Module) -> tuple[ModelFigures, ModelFigures]:
    test, batch = bench.dataset.test, bench.probe[0]
    pairs = [
        measure.paired_latency(dense, ticket, batch[0], items, seconds=LATENCY_SECONDS)
        for items in LATENCY_BATCHES
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


def _projection(bench: Bench, bill: Bill, tps_share: float | None) -> Cost:
    """Return what the dense model would have cost to the end of the budget, unwatched and without TPS.

    The cheapest honest opponent: neither readings nor the regulariser are charged to it. Epochs are
    counted by the evaluations on the bill, so that work which a kill threw away, and which is on the
    bill too, does not make an epoch look dearer than it is.
    """
    before_the_cut = list(takewhile(lambda window: window.phase != "prune", bill.windows))
    readings = sum(window.phase == "evaluate" for window in before_the_cut)
    cost = energy.projected_dense(
        before_the_cut,
        epochs_done=readings * bench.reading_steps / bench.steps_per_epoch,
        epochs_budget=float(bench.recipe.train.epochs),
        phases=("train", "evaluate"),
    )
    left = 1.0 - (tps_share or 0.0)
    return Cost(
        joules=None if cost.joules is None else cost.joules * left,
        seconds=cost.seconds * left,
        cpu_seconds=cost.cpu_seconds * left,
    )


def _share(cpu_seconds: float, state: State) -> float | None:
    return cpu_seconds / state.clock.train if state.clock.train > 0 else None


def _tps_share(state: State) -> float | None:
    return _share(state.clock.tps, state)


def _notes(bench: Bench, bill: Bill, state: State, readings: Sequence[Reading]) -> list[str]:
    notes = list(state.cut["notes"])
    required = bench.recipe.task.required_accuracy
    accuracies = [r.value for r in readings if r.signal == "validation_accuracy" and r.value is not None]
    if accuracies[-1] < required:
        notes.append(
            f"the task was not learned: validation accuracy {accuracies[-1]:.3f} is below "
            f"task.required_accuracy = {required:g}; no figure of this run speaks for the ticket"
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


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.implementation.name,
    }
