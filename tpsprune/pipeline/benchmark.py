"""The end of a run: the test split is read once, both models are measured, everything is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import torch
from torch import nn

from tpsprune import measure
from tpsprune.errors import ArtifactError
from tpsprune.numerics.forward import call_model, logits_of
from tpsprune.numerics.trees import first_of, map_tensors
from tpsprune.pipeline.load import rebuild_ticket
from tpsprune.pipeline.state import Clock, State
from tpsprune.pipeline.workbench import Run, Workbench
from tpsprune.records import (
    GIVEN,
    Milestone,
    ModelFigures,
    Projection,
    Reading,
    RunResult,
)
from tpsprune.runs import RunFolder, machine_facts, versions, write_result
from tpsprune.runs.tensors import load_tensors, save_tensors, shapes_of

LATENCY_BATCHES: Final = (1, 64)
LATENCY_SECONDS: Final = 0.5
REBUILT_TOLERANCE: Final = 1e-5


def benchmark(run: Run, state: State, dense: nn.Module, whole: nn.Module, *, timed: bool = True) -> RunResult:
    """Measure the dense model as it was drawn and the ticket as it was left; write the result.

    ``dense`` is in shape, and filled here. ``whole`` is the ticket: the state's model, or of one that is
    spread over processes the whole of it in the first one. ``timed``: with the latency of both,
    which takes seconds that a comparison would charge to the ticket.
    """
    assert state.drawn is not None
    assert state.stopped is not None
    assert state.pruning is not None
    bench, folder, ledger = run.bench, run.folder, run.ledger
    save_tensors(folder.ticket, whole.state_dict() if bench.has_numbers else {}, {})
    dense = dense if bench.is_spread else bench.place(dense)
    if bench.has_numbers:
        with bench.holding_whole():
            dense.load_state_dict(load_tensors(folder.dense, shapes_of(dense.state_dict()))[0])
    bench.first(lambda: _check_rebuilt(bench, folder, whole))
    dense_figures, ticket_figures = _measure(bench, folder, dense, whole, state.model, timed=timed)
    readings = folder.readings.parsed(Reading)
    ledger.close()
    outcome = RunResult(
        name=bench.recipe.name,
        seed=bench.recipe.seed,
        device=bench.execution.describe(),
        machine={**machine_facts(), "threads": torch.get_num_threads(), **run.processes},
        task=bench.dataset.facts,
        dense=dense_figures,
        ticket=ticket_figures,
        pruned_validation_accuracy=state.pruning.validation_accuracy_after,
        groups=state.pruning.groups,
        unpruned=state.pruning.unpruned,
        drawn_at=Milestone.of(state.drawn),
        stopped_at=Milestone.of(state.stopped),
        epochs={"budget": _budget_epochs(bench, state), "trained": state.stopped.epoch},
        energy=ledger.phases,
        method=ledger.method,
        total=ledger.total,
        projected_dense=_projection(bench, state),
        overhead={
            "signals": _share(state.clock.watch, state.clock),
            "TPS": _share(state.clock.tps, state.clock),
        },
        attempts=ledger.attempts,
        notes=tuple(_notes(run, state, readings)),
        versions=versions(),
        folder=str(folder.path),
    )
    write_result(folder.result, outcome)
    return outcome


def _check_rebuilt(bench: Workbench, folder: RunFolder, ticket: nn.Module) -> None:
    """Rebuild the ticket from its files, as an export will, and compare it with the one in memory."""
    rebuilt = rebuild_ticket(folder, bench.recipe.task.model, bench.dataset.facts)
    inputs = map_tensors(bench.watch_batches[0], lambda each: each.cpu().contiguous())
    kept = copy.deepcopy(ticket).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with torch.inference_mode():
        ours = logits_of(call_model(kept, inputs))
        difference = (ours - logits_of(call_model(rebuilt, inputs))).abs().max().item()
    if not difference <= REBUILT_TOLERANCE:  # NaN neither
        raise ArtifactError(
            f"{folder.path}: the ticket rebuilt from its files differs in its outputs by {difference:g}; "
            "its factory may not build the same model twice"
        )


def _measure(
    bench: Workbench,
    folder: RunFolder,
    dense: nn.Module,
    whole: nn.Module,
    ticket: nn.Module,
    *,
    timed: bool,
) -> tuple[ModelFigures, ModelFigures]:
    test = bench.dataset.test
    batch = (bench.on_host() if bench.is_spread else bench).watch_batches[0]
    files = ((dense, folder.dense), (whole, folder.ticket))
    sizes = bench.first(lambda: [asdict(measure.size(model, batch, file)) for model, file in files])
    pairs = {
        f"batch-{items}": measure.paired_latency(
            dense, ticket, first_of(batch), items, seconds=LATENCY_SECONDS
        )
        for items in (LATENCY_BATCHES if timed and not bench.is_spread else ())
    }
    first, second = (
        ModelFigures(
            accuracy=bench.score(model, test).accuracy,
            **sizes[position],
            latency_seconds={name: pair[position] for name, pair in pairs.items()},
        )
        for position, model in enumerate((bench.place(dense), ticket))
    )
    return first, second


def _projection(bench: Workbench, state: State) -> Projection | None:
    """Return what the dense model would have cost to the end of the budget: a projection, no measurement.

    Training and evaluation of the dense stage, lost work left out, times budget / epochs at the draw. It
    excludes setting up, readings, the benchmark, and TPS by its share of the processor time. It
    assumes that an epoch costs the same at the end as at the beginning, and that nothing would have
    stopped the dense model early. ``None`` where the dense model was trained elsewhere.
    """
    assert state.drawn is not None
    if state.drawn.rule == GIVEN:
        return None
    assert state.pruning is not None
    dense = state.pruning.dense_clock
    scale = bench.recipe.train.epochs / state.drawn.epoch * (1.0 - (_share(dense.tps, dense) or 0.0))
    return Projection(
        joules=None if dense.joules is None else dense.joules * scale,
        seconds=dense.seconds * scale,
        cpu_seconds=dense.cpu_seconds * scale,
    )


def _budget_epochs(bench: Workbench, state: State) -> float:
    """Return the epochs of the budget: of a model trained elsewhere, those of its retraining."""
    assert state.drawn is not None
    if state.drawn.rule != GIVEN:
        return float(bench.recipe.train.epochs)
    epochs = bench.recipe.retrain.epochs
    return 0.0 if epochs == "rest" else float(epochs)


def _share(cpu_seconds: float, clock: Clock) -> float | None:
    return cpu_seconds / clock.train if clock.train > 0 else None


def _notes(run: Run, state: State, readings: Sequence[Reading]) -> list[str]:
    bench, ledger = run.bench, run.ledger
    assert state.pruning is not None
    notes = list(state.pruning.notes)
    assert state.drawn is not None
    if bench.initial_weights and state.drawn.rule != GIVEN:
        notes.insert(0, f"the training began with {bench.initial_weights}")
    if bench.is_spread:
        notes.append("no latency was measured: that of a model spread over processes is none of one device")
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
    if invalid := [window for window in ledger.windows if not window.valid]:
        notes.append(
            f"{len(invalid)} of {len(ledger.windows)} energy windows are invalid "
            f"(first: {invalid[0].phase}: {invalid[0].fault})"
        )
    if ledger.attempts > 1:
        notes.append(
            f"{ledger.attempts} attempts: energy of work that was lost is counted, except in the windows "
            "that were open when it was lost"
        )
    return notes
