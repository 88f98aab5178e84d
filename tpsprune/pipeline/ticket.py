"""From the draw on, where ``train`` and ``prune`` meet: prune in rounds, train, benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from tpsprune import measure, pruning, training
from tpsprune.errors import PruneError
from tpsprune.loop.answers import joules_of_answer
from tpsprune.loop.meter import Ledger
from tpsprune.numerics.forward import fixed_seed
from tpsprune.numerics.peers import fingerprint
from tpsprune.numerics.trees import at, first_of, item_count, take_items
from tpsprune.pipeline.benchmark import benchmark
from tpsprune.pipeline.plans import keep_plan, keep_whole_plan, pruned_by_plan, read_plan
from tpsprune.pipeline.spread import extract_whole, moments_of, shape_after, whole_model
from tpsprune.pipeline.stage import (
    PROGRESS_SECONDS,
    StageSettings,
    schedule_between_rounds,
    schedule_retraining,
    train_stage,
)
from tpsprune.pipeline.state import Pruning, Restored, State, has_snapshot, load_snapshot, save_checkpoint
from tpsprune.pipeline.workbench import Run, Workbench
from tpsprune.pruning import Extraction, WidthPlan
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.output_error import output_error
from tpsprune.recipe.prune import Bytes, Joules, Latency, Macs, Params, Prune, Target, Widths
from tpsprune.recipe.stop import NoRule
from tpsprune.recipe.train import rewind_epoch
from tpsprune.records import (
    Decided,
    Decision,
    Event,
    Finished,
    GroupChange,
    Note,
    PhaseEnded,
    PhaseStarted,
    Progress,
    Pruned,
)
from tpsprune.runs import RunFolder
from tpsprune.runs.tensors import load_tensors, shapes_of

NOT_REPAIRED: Final = (
    "the ticket was not repaired: that takes its gradients and the optimiser's moments in memory, which "
    "prune.gather = 'disk' is to spare; prune.gather = 'host' repairs it, or training that follows"
)


def finish(run: Run, state: State, *, timed: bool = True) -> Generator[Event, None, None]:
    """Prune in ``prune.rounds`` rounds, retrain the ticket, benchmark both models; yield the outcome last."""
    while state.stage in {"prune", "between"}:
        if state.stage == "between":
            state = yield from _train_between_rounds(run, state)
        run.ledger.switch("prune")
        state = yield from _prune_round(run, state)
    if state.stage == "retrain":
        state = yield from _retrain(run, state)
    run.ledger.switch("benchmark")
    bench = run.bench
    dense = shape_after(bench, run.folder, 0)
    whole = whole_model(run, state.model, state.rounds) if bench.is_spread else state.model
    yield Finished(benchmark(run, state, dense, whole, timed=timed))


def restore_state(bench: Workbench, folder: RunFolder, checkpoint: Restored) -> State:
    """Build the model as it was pruned when the checkpoint was written, and fill everything from it."""
    model = bench.place(shape_after(bench, folder, checkpoint.saved.rounds))
    adapter = _new_adapter(bench, model, 1) if checkpoint.has_adapter else None
    regulariser = bench.new_regulariser(model) if adapter is None else None
    return checkpoint.state(model, regulariser, bench.panel, bench.recipe, adapter)


def _train_between_rounds(run: Run, state: State) -> Generator[Event, None, State]:
    """Train the ticket between two rounds; no rule ends that early, a hard budget does."""
    assert state.pruning is not None
    assert state.pruning.ends is not None
    last_step, total_steps = state.pruning.ends
    if state.step < last_step and run.find_budget_end() is None:
        rounds = run.bench.recipe.prune.rounds
        settings = StageSettings(
            phase="retrain",
            title=f"retrain after round {state.rounds} of {rounds}",
            kind="round",
            rule=NoRule(),
            last_step=last_step,
            total_steps=total_steps,
            deadline=f"round {state.rounds + 1} of {rounds} is due (prune.round_epochs)",
            teacher=_load_teacher(run),
        )
        state, _ = yield from train_stage(run, state, settings)
    state = replace(_released(run.bench, state), stage="prune")
    save_checkpoint(run.folder, state, run.bench.panel, run.bench.peers)
    return state


def _retrain(run: Run, state: State) -> Generator[Event, None, State]:
    """Train the ticket with what is left of the budget, or on the schedule that the recipe gives it."""
    assert state.drawn is not None, "a ticket is retrained after its draw"
    bench = run.bench
    _, last_step = schedule_retraining(bench, state.drawn.step)
    used_up = run.find_budget_end()
    if state.step < last_step and used_up is None:
        settings = StageSettings(
            phase="retrain",
            title="retrain",
            rule=bench.recipe.stop.end,
            last_step=last_step,
            total_steps=last_step,
            teacher=_load_teacher(run),
        )
        if state.adapter is not None:
            count = count_parameters(state.adapter)
            yield Note(
                f"{count:,} numbers train in the place of {count_parameters(state.model):,} "
                f"(retrain.adapter = '{bench.recipe.retrain.adapter}')"
            )
        state, decision = yield from train_stage(run, state, settings)
    else:
        step, epoch = state.count_trained(bench.steps_per_epoch)
        none_requested = bench.recipe.retrain.epochs == 0
        nothing_left = (
            "no retraining was requested" if none_requested else "no epochs were left to retrain for"
        )
        rule, reason = ("budget", used_up) if used_up else ("deadline", nothing_left)
        decision = Decision(kind="stop", act=True, step=step, epoch=epoch, rule=rule, reason=reason)
        state = state.having_written(run.folder, [], [decision])
    yield Decided(decision=decision)
    state = replace(_released(bench, state), stage="benchmark", stopped=decision)
    save_checkpoint(run.folder, state, bench.panel, bench.peers)
    return state


def _prune_round(run: Run, state: State) -> Generator[Event, None, State]:
    """Prune once more, report what was pruned, and return the state at the start of what follows.

    With a rewind the plan of all rounds is replayed on the weights kept for it, with a new optimiser:
    moments belong to the weights they were taken with.
    """
    bench, folder = run.bench, run.folder
    round_ = state.rounds + 1
    target = round_target(
        bench.recipe.prune.target,
        round_,
        bench.recipe.prune.rounds,
        macs_share=state.pruning.macs_share if state.pruning else 1.0,
        parameters_share=state.pruning.parameters_share if state.pruning else 1.0,
    )
    if target is None:
        note = f"round {round_}: the rounds before have met {bench.recipe.prune.target} already"
        yield Note(note)
        if (plan := read_plan(folder, round_ - 1)) is not None:
            keep_whole_plan(folder, plan, round_)
        assert state.pruning is not None
        pruning_record = replace(state.pruning, notes=(*state.pruning.notes, note))
        ticket, moments = state.model, moments_of(bench, state)
    else:
        trains_on = _trains_on(run, state, round_)
        whole = whole_model(run, state.model, state.rounds) if bench.is_spread else None
        extraction, pruned = yield from draw_ticket(
            bench, run.ledger, state.model, target, round_, trains_on=trains_on, whole=whole
        )
        keep_plan(folder, extraction.plan, round_, bench.recipe.prune.target)
        pruning_record = _record_pruning(state, pruned, extraction.notes)
        ticket = bench.place(extraction.ticket)
        moments = {}
        if bench.recipe.retrain.optimizer == "carry":
            moments = moments_of(bench, state)
            with bench.holding_whole():
                moments = pruning.carry_state(moments, extraction.plan)
    rewind = rewind_epoch(bench.recipe.retrain.rewind)
    if rewind is not None and bench.peers.first(lambda: has_snapshot(folder)):
        original = bench.new_model(fill=False)
        with bench.holding_whole():
            if bench.has_numbers:
                load_snapshot(folder, original)
            original = pruned_by_plan(folder, original, round_)
        ticket, moments = bench.place(original), {}
    elif rewind is not None:
        note = f"a budget ended the training before epoch {rewind}: there is nothing to rewind to"
        yield Note(note)
        pruning_record = replace(pruning_record, notes=(*pruning_record.notes, note))
    state = _begin_training(bench, replace(state, rounds=round_, pruning=pruning_record), ticket, moments)
    save_checkpoint(folder, state, bench.panel, bench.peers)
    return state


def _trains_on(run: Run, state: State, round_: int) -> bool:
    """Return whether the ticket of a round is trained with labels, or its weights are replaced."""
    recipe = run.bench.recipe
    if recipe.retrain.epochs == 0 or recipe.retrain.rewind != "none":
        return recipe.retrain.rewind != "none"
    first_step, last_step = schedule_retraining(run.bench, state.step)
    used_up = run.find_budget_end() is not None
    return round_ < recipe.prune.rounds or (first_step < last_step and not used_up)


def draw_ticket(
    bench: Workbench,
    ledger: Ledger,
    model: nn.Module,
    target: Target,
    round_: int = 1,
    *,
    trains_on: bool,
    planned: WidthPlan | None = None,
    whole: nn.Module | None = None,
) -> Generator[Event, None, tuple[Extraction, Pruned]]:
    """Extract a ticket of ``model``, repair it if nothing trains it on, report its cost; nothing is written.

    ``planned``: what is planned for it already, as one of several sizes. ``whole``: a model that is spread
    over processes, whole in the first, where it is cut.

    Returns:
        The extraction, with the repaired ticket, and the event that was yielded.
    """
    settings = bench.recipe.prune
    ledger.switch("evaluate")
    before = bench.score(model, bench.dataset.validation)
    ledger.switch("prune")
    if settings.calibration == "synthetic" and not bench.prune_batches:
        yield PhaseStarted(phase="prune", title="calibration data made up", total_steps=1)
        bench = bench.calibrated(model)
    # A ticket with split layers is pruned no further.
    low_rank = settings.low_rank if round_ == settings.rounds else False
    spread_bench, dense = bench, model if whole is None else whole
    bench = bench if whole is None else bench.on_host()
    own, inputs = (
        replace(settings, target=target, low_rank=low_rank),
        extraction_inputs(bench, ledger, settings.units, target),
    )
    if whole is not None:
        extraction = extract_whole(bench, whole, own, inputs)
    elif planned is None:
        extraction = pruning.extract(model, bench.prune_batches, own, **inputs, peers=bench.peers)
    else:
        extraction = pruning.draw(model, bench.prune_batches, own, planned, clock=inputs.get("clock"))
    if bench.calibration_note:
        extraction = replace(extraction, notes=(*extraction.notes, bench.calibration_note))
    if note := uneven_note(extraction.changes, settings):
        extraction = replace(extraction, notes=(*extraction.notes, note))
    extraction = yield from repair_ticket(bench, ledger, extraction, dense, trains_on=trains_on)
    ledger.switch("evaluate")
    error = bench.first(lambda: output_error(extraction.ticket, dense, bench.prune_batches))
    if whole is not None:
        bench, extraction = spread_bench, replace(extraction, ticket=spread_bench.place(extraction.ticket))
    after = bench.score(extraction.ticket, bench.dataset.validation)
    pruned = Pruned(
        groups=extraction.changes,
        unpruned=extraction.unpruned,
        macs_share=extraction.macs_share,
        parameters_share=count_parameters(extraction.ticket) / count_parameters(model),
        validation_accuracy_before=before.accuracy,
        validation_accuracy_after=after.accuracy,
        output_error=error,
        round=round_,
        rounds=settings.rounds,
        quality=bench.objective.quality,
    )
    yield pruned
    for note in extraction.notes:
        yield Note(note)
    bench.peers.agree("the plan", extraction.plan.to_json()["groups"])
    bench.peers.agree("the ticket", fingerprint(extraction.ticket))
    ledger.switch("prune")
    return extraction, pruned


def repair_ticket(
    bench: Workbench, ledger: Ledger, extraction: Extraction, dense: nn.Module, *, trains_on: bool = False
) -> Generator[Event, None, Extraction]:
    """Repair the ticket in place on training items, augmented and without labels, if the recipe has it so.

    Returns:
        The extraction, with a note of what came of it.
    """
    settings, train = bench.recipe.prune, bench.dataset.train
    steps = pruning.count_repair_steps(settings, len(train), trains_on=trains_on, fresh=True)
    if not steps:
        return extraction if trains_on else pruning.note_no_repair(extraction, settings)
    if bench.cuts_on_disk:
        return replace(extraction, notes=(*extraction.notes, NOT_REPAIRED))
    ledger.switch("repair")
    if not bench.peers.is_first:  # The first process repairs, and tells the ticket.
        return _tell_repaired(bench, extraction)
    if not bench.prune_places:  # Of items made up no others are drawn.
        return (yield from _repair(bench, ledger, extraction, dense, steps, None))
    held = torch.cat(list(hold_out(bench.prune_places)[1]))
    others = torch.ones(len(train), dtype=torch.bool, device=held.device)
    others[held] = False
    # What is held out is not fitted; of a split that is all of it, it is.
    free = others.nonzero().squeeze(1) if bool(others.any()) else held
    inputs = at(train.inputs, free)

    def fresh(items: int, seed: int) -> Iterator[Any]:
        shuffled = training.shuffled(
            inputs,
            len(free),
            prepare=bench.dataset.prepare,
            execution=bench.execution,
            size=min(items, len(free)),
            seed=seed,
        )
        return (batch for _, batch in shuffled)

    return (yield from _repair(bench, ledger, extraction, dense, steps, fresh))


def _repair(
    bench: Workbench,
    ledger: Ledger,
    extraction: Extraction,
    dense: nn.Module,
    steps: int,
    fresh: Callable[[int, int], Iterator[Any]] | None,
) -> Generator[Event, None, Extraction]:
    """Repair the ticket on items from ``fresh``, or on the calibration data alone, with progress."""
    yield PhaseStarted(phase="repair", title="repair", total_steps=steps)
    shown_at, settings = time.monotonic(), bench.recipe.prune
    repairing = pruning.repair_ticket(
        extraction, dense, bench.prune_batches, settings, steps=steps, fresh=fresh, seed=bench.recipe.seed
    )
    while True:
        try:
            done = next(repairing)
        except StopIteration as end:
            yield PhaseEnded(phase="repair")
            return _tell_repaired(bench, end.value)
        ledger.split_if_long()
        if time.monotonic() - shown_at > PROGRESS_SECONDS:
            shown_at = time.monotonic()
            yield Progress(phase="repair", step=done.step, total_steps=done.steps, epoch=0.0)


def _tell_repaired(bench: Workbench, extraction: Extraction) -> Extraction:
    """Return the first process's extraction, whose ticket is repaired, in all of them."""
    notes = bench.peers.first(lambda: list(extraction.notes))
    if not bench.is_spread:
        bench.peers.write(list(extraction.ticket.state_dict().values()))
    return replace(extraction, notes=tuple(notes))


def uneven_note(changes: Sequence[GroupChange], settings: Prune) -> str | None:
    """Return a sentence where a group is pruned to a width that kernels are slow at, else ``None``.

    Widths that the target names are the user's, and not mentioned.
    """
    if isinstance(settings.target, Widths):
        return None
    pruned = [each for each in changes if each.width_after < each.width_before and each.kind != "rank"]
    uneven = [
        change
        for change in pruned
        if change.kind == "units" and change.width_after % pruning.width_step(change.width_before)
    ]
    if not uneven:
        return None
    first = uneven[0]
    why = (
        "with wider steps the target is out of reach"
        if settings.round_to == "auto"
        else 'set prune.round_to = "auto"'
    )
    return (
        f"{len(uneven)} of {len(pruned)} groups were pruned to a width that kernels can be slower at than at "
        f"the dense one ('{first.group}': {first.width_after}, no multiple of "
        f"{pruning.width_step(first.width_before)}): {why}"
    )


def extraction_inputs(bench: Workbench, ledger: Ledger, units: str, target: Target) -> dict[str, Any]:
    """Return what an extraction needs besides calibration data: a seed, labels for an importance, a clock."""
    extra: dict[str, Any] = {"seed": bench.recipe.seed}
    if units != "interpolation":
        extra["labels"], extra["objective"] = bench.prune_labels, bench.objective
    if isinstance(target, Latency):
        item, items = first_of(bench.prune_batches[0]), target.batch_items
        extra["clock"] = lambda model: measure.latency(model, item, items).median_seconds
    elif isinstance(target, Joules):
        if bench.recipe.energy.meter == "none":
            raise PruneError(f"target {target} needs a meter, and energy.meter is 'none'; use latency")
        copies = torch.zeros(target.batch_items, dtype=torch.int64)
        extra["clock"] = partial(joules_of_answer, take_items(bench.prune_batches[0], copies), ledger)
    elif bench.recipe.prune.low_rank:
        first = bench.prune_batches[0]
        batch = take_items(first, torch.arange(min(measure.TIMED_ITEMS, item_count(first))))
        extra["clock"] = lambda model: measure.batch_latency(model, batch).median_seconds
    return extra


def round_target(
    target: Target,
    round_: int,
    rounds: int,
    *,
    macs_share: float = 1.0,
    parameters_share: float = 1.0,
) -> Target | None:
    """Return the target of round ``round_`` (from 1) of ``rounds``, of the model as pruned so far.

    Each round keeps the same share of what is left: (target / reached)^(1 / rounds left). ``macs_share`` and
    ``parameters_share`` are those reached by earlier rounds: what one of them kept too much, the next ones
    prune, and the last meets the target. A share of latency, joules or bytes is split evenly,
    target^(1 / rounds), since earlier rounds are not measured again. A tolerance and explicit widths are the
    same in every round.

    Returns:
        ``target`` itself where there is one round; ``None`` where it is met already.

    >>> str(round_target(Macs(0.25), 1, 2)), str(round_target(Macs(0.25), 2, 2, macs_share=0.5))
    ('macs=0.5', 'macs=0.5')
    >>> round_target(Macs(0.25), 2, 2, macs_share=0.2) is None
    True
    """
    if rounds == 1:
        return target
    root = 1 / (rounds - round_ + 1)
    match target:
        case Macs(macs=share):
            return Macs((share / macs_share) ** root) if share < macs_share else None
        case Params(params=share):
            return Params((share / parameters_share) ** root) if share < parameters_share else None
        case Latency(latency=share):
            return replace(target, latency=share ** (1 / rounds))
        case Joules(joules=share):
            return replace(target, joules=share ** (1 / rounds))
        case Bytes(bytes=share):
            return Bytes(share ** (1 / rounds))
        case _:
            return target


def joined_changes(before: Sequence[GroupChange], after: Sequence[GroupChange]) -> tuple[GroupChange, ...]:
    """Return the changes of two rounds, one after the other, as those of one.

    Rank and residual are of the later round; a group that only one of them has is unchanged.
    """
    earlier = {(change.group, change.kind): change for change in before}
    later = {(change.group, change.kind): change for change in after}
    return tuple(
        replace(later[name], width_before=earlier[name].width_before)
        if name in earlier and name in later
        else later.get(name) or earlier[name]
        for name in dict.fromkeys([*earlier, *later])
    )


def _record_pruning(state: State, pruned: Pruned, notes: tuple[str, ...]) -> Pruning:
    """Return the record of all rounds so far: this round's figures joined to those of earlier ones."""
    this: dict[str, Any] = {each.name: getattr(pruned, each.name) for each in fields(pruned)}
    before = state.pruning
    if before is None:
        return Pruning(**this, notes=notes, dense_clock=state.clock)
    joined: dict[str, Any] = {
        "groups": joined_changes(before.groups, pruned.groups),
        "macs_share": before.macs_share * pruned.macs_share,
        "parameters_share": before.parameters_share * pruned.parameters_share,
        "validation_accuracy_before": before.validation_accuracy_before,
    }
    return Pruning(**(this | joined), notes=(*before.notes, *notes), dense_clock=before.dense_clock)


def _begin_training(bench: Workbench, state: State, ticket: nn.Module, moments: Any) -> State:
    """Return the state at the start of what follows a round: another, training between two, or the last."""
    state = replace(state, model=ticket, rule=bench.start_rule(bench.recipe.stop.end))
    if state.rounds == bench.recipe.prune.rounds:
        first_step, last_step = schedule_retraining(bench, state.step)
        state = state.starting_at(first_step, "retrain")
    elif bench.recipe.retrain.epochs == 0:  # then nothing trains between two rounds either
        first_step = last_step = state.step
        state = replace(state, stage="prune")
    else:
        first_step, last_step, total_steps = schedule_between_rounds(bench, state.step)
        assert state.pruning is not None
        pruning_record = replace(state.pruning, ends=(last_step, total_steps))
        state = replace(state.starting_at(first_step, "between"), pruning=pruning_record)
    if bench.recipe.retrain.adapter != "none" and first_step < last_step:
        adapter = _new_adapter(bench, ticket, last_step - first_step)
        optimizer = training.make_optimizer(adapter, bench.recipe.train)
        return replace(state, adapter=adapter, optimizer=optimizer, regulariser=None)
    optimizer = training.make_optimizer(ticket, bench.recipe.train)
    if bench.is_spread:
        moments = training.deal_out(moments, ticket, bench.peers)
    training.load_state_by_name(optimizer, ticket, moments)
    return replace(state, optimizer=optimizer, regulariser=bench.new_regulariser(ticket))


def _new_adapter(bench: Workbench, ticket: nn.Module, steps: int) -> training.Adapter:
    """Return the recipe's adapter of a ticket that trains for so many steps."""
    retrain = bench.recipe.retrain
    assert retrain.adapter != "none"
    return training.Adapter(
        ticket,
        retrain.adapter,
        rank=retrain.adapter_rank,
        ramp_steps=max(1, round(training.RAMP_SHARE * steps)),
        seed=bench.recipe.seed,
    )


def _released(bench: Workbench, state: State) -> State:
    """Return the state without its adapter, if it had one: all of the ticket may train, from new moments."""
    if state.adapter is None:
        return state
    state.adapter.release()
    optimizer = training.make_optimizer(state.model, bench.recipe.train)
    return replace(state, adapter=None, optimizer=optimizer)


def _load_teacher(run: Run) -> training.Teacher | None:
    """Return the dense model as it was drawn, as the recipe has it teach; it is charged to the retraining."""
    retrain, bench = run.bench.recipe.retrain, run.bench
    if retrain.teacher == "none" or retrain.teacher_share == 0.0:
        return None
    run.ledger.switch("retrain")
    with fixed_seed():  # Building a model seeds torch: a run without a teacher, or resumed, draws the same.
        dense = shape_after(bench, run.folder, 0)
    if bench.has_numbers:
        with bench.holding_whole():
            dense.load_state_dict(load_tensors(run.folder.dense, shapes_of(dense.state_dict()))[0])
    dense = bench.place(dense).eval().requires_grad_(requires_grad=False)
    return training.Teacher(dense, retrain.teacher_share, retrain.teacher_temperature)


def count_parameters(model: nn.Module) -> int:
    """Return the numbers that a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
