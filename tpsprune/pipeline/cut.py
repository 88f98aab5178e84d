"""The draw: from a dense model to its ticket, in a transaction, charged to the phase ``prune``."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from tpsprune import measure, pruning, stopping, training
from tpsprune.numerics.trees import first_of
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.heal import healed
from tpsprune.pipeline.rounds import as_cut, joined, keep_last_plan, keep_plan, round_target
from tpsprune.pipeline.schedule import between_schedule, retrain_schedule, trains_between
from tpsprune.pipeline.state import State, has_snapshot, load_snapshot, save_checkpoint
from tpsprune.pruning import Extraction
from tpsprune.pruning.repair import output_error
from tpsprune.recipe.retrain import rewind_epoch
from tpsprune.recipe.target import Latency, Target
from tpsprune.records import Event, GroupChange, Note, Pruned
from tpsprune.runs import RunFolder

__all__ = ["asked", "cut_model", "drawn", "uneven_note"]


def cut_model(bench: Bench, folder: RunFolder, bill: Bill, state: State) -> Generator[Event, None, State]:
    """Make the next round's cut, show what went, and return the state at the start of what follows it.

    With a rewind the plan of all rounds is replayed on the weights kept for it, and the optimiser is made
    anew: moments of other weights mean nothing to them.
    """
    round_ = state.rounds + 1
    target = round_target(
        bench.recipe.prune.target,
        round_,
        bench.recipe.prune.rounds,
        macs_share=state.cut.get("macs_share", 1.0),
        parameters_share=state.cut.get("parameters_share", 1.0),
    )
    if target is None:
        note = f"round {round_}: the rounds before have met {bench.recipe.prune.target} already"
        yield Note(note)
        keep_last_plan(folder, round_)
        cut = {**state.cut, "notes": [*state.cut["notes"], note]}
        ticket, moments = state.model, training.state_by_name(state.optimizer, state.model)
    else:
        extraction, pruned = yield from drawn(bench, bill, state.model, target, round_)
        keep_plan(folder, extraction.plan, round_, bench.recipe.prune.target)
        cut = _recorded(state, pruned, extraction.notes)
        ticket = bench.execution.place(extraction.ticket)
        moments = {}
        if bench.recipe.retrain.optimizer == "carry":
            moments = pruning.carried(training.state_by_name(state.optimizer, state.model), extraction.plan)
    rewind = rewind_epoch(bench.recipe.retrain.rewind)
    if rewind is not None and has_snapshot(folder):
        original = bench.new_model(fill=False)
        load_snapshot(folder, original)
        ticket, moments = bench.execution.place(as_cut(folder, original, round_)), {}
    elif rewind is not None:
        note = f"a budget ended the training before epoch {rewind}: there is nothing to rewind to"
        yield Note(note)
        cut["notes"].append(note)
    state = _begun(bench, replace(state, rounds=round_, cut=cut), ticket, moments)
    save_checkpoint(folder, state, bench.panel)
    return state


def drawn(
    bench: Bench, bill: Bill, model: nn.Module, target: Target, round_: int = 1
) -> Generator[Event, None, tuple[Extraction, Pruned]]:
    """Extract a ticket of ``model``, heal it if asked, show what it costs; nothing is written.

    Returns:
        The extraction, with the healed ticket, and the event that was shown.
    """
    settings = bench.recipe.prune
    bill.switch("evaluate")
    before = bench.score(model, bench.dataset.validation)
    bill.switch("prune")
    extraction = pruning.extract(
        model, bench.cut_probe, replace(settings, target=target), **asked(bench, settings.units, target)
    )
    if note := uneven_note(extraction.changes, bench.execution.width_step):
        extraction = replace(extraction, notes=(*extraction.notes, note))
    if settings.heal_steps:
        bill.switch("heal")
        yield from healed(bench, bill, extraction.ticket, model)
    bill.switch("evaluate")
    after = bench.score(extraction.ticket, bench.dataset.validation)
    pruned = Pruned(
        groups=extraction.changes,
        left_alone=extraction.left_alone,
        macs_share=extraction.macs_share,
        parameters_share=_parameters(extraction.ticket) / _parameters(model),
        validation_accuracy_before=before.accuracy,
        validation_accuracy_after=after.accuracy,
        output_error=output_error(extraction.ticket, model, bench.cut_probe),
        round=round_,
        rounds=settings.rounds,
        quality=bench.objective.quality,
    )
    yield pruned
    for note in extraction.notes:
        yield Note(note)
    bill.switch("prune")
    return extraction, pruned


def uneven_note(changes: Sequence[GroupChange], step: int) -> str | None:
    """Return a sentence where a group was cut to a width that is no multiple of ``step``, else ``None``."""
    cut = [change for change in changes if change.width_after < change.width_before]
    uneven = [change for change in cut if change.kind == "units" and change.width_after % step]
    if not uneven:
        return None
    return (
        f"{len(uneven)} of {len(cut)} groups were cut to a width that is no multiple of {step} "
        f"('{uneven[0].group}': {uneven[0].width_after}); bfloat16 kernels can be slower there than on the "
        f"dense model: prune.round_to = {step} would do"
    )


def asked(bench: Bench, units: str, target: Target) -> dict[str, Any]:
    """Return what an extraction needs beside the probe: a seed, labels for an importance, a clock."""
    extra: dict[str, Any] = {"seed": bench.recipe.seed}
    if units != "interpolation":
        extra["labels"], extra["objective"] = bench.cut_labels, bench.objective
    if isinstance(target, Latency):
        item, items = first_of(bench.cut_probe[0]), target.batch_items
        extra["clock"] = lambda model: measure.latency(model, item, items).median_seconds
    return extra


def _recorded(state: State, pruned: Pruned, notes: tuple[str, ...]) -> dict[str, Any]:
    """Return what the run remembers of its cuts: this one's figures joined to those of earlier rounds."""
    if not state.rounds:
        return {**asdict(pruned), "notes": list(notes), "dense_clock": asdict(state.clock)}
    earlier = tuple(GroupChange(**raw) for raw in state.cut["groups"])
    return {
        **asdict(pruned),
        "groups": [asdict(change) for change in joined(earlier, pruned.groups)],
        "macs_share": state.cut["macs_share"] * pruned.macs_share,
        "parameters_share": state.cut["parameters_share"] * pruned.parameters_share,
        "validation_accuracy_before": state.cut["validation_accuracy_before"],
        "notes": [*state.cut["notes"], *notes],
        "dense_clock": state.cut["dense_clock"],
    }


def _begun(bench: Bench, state: State, ticket: nn.Module, moments: Any) -> State:
    """Return the state at the start of what follows a cut: another one, training between two, or the last."""
    optimizer = training.make_optimizer(ticket, bench.recipe.train)
    training.load_state_by_name(optimizer, ticket, moments)
    state = replace(
        state,
        model=ticket,
        optimizer=optimizer,
        regulariser=bench.regulariser(ticket),
        rule=stopping.start(
            bench.recipe.stop.end,
            chance_accuracy=bench.chance_accuracy,
            quality=bench.objective.quality,
        ),
    )
    if state.rounds == bench.recipe.prune.rounds:
        first_step, _ = retrain_schedule(bench, state.step)
        return replace(state, stage="retrain", step=first_step, shift=state.shift + state.step - first_step)
    if not trains_between(bench):
        return replace(state, stage="cut")
    first_step, *ends = between_schedule(bench, state.step)
    shift = state.shift + state.step - first_step
    return replace(state, stage="between", step=first_step, shift=shift, cut={**state.cut, "ends": ends})


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
