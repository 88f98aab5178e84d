"""One stage of training under watch: it ends when a rule acts, a budget is used up or its schedule ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite

import torch

from tpsprune import stopping, training
from tpsprune.errors import DivergedError
from tpsprune.loop.watch import Watch
from tpsprune.numerics.peers import fingerprint, own_part
from tpsprune.pipeline.spread import survey_whole
from tpsprune.pipeline.state import State, save_checkpoint, save_snapshot
from tpsprune.pipeline.workbench import Run, Workbench
from tpsprune.recipe.stop import Rule
from tpsprune.recipe.train import rewind_epoch
from tpsprune.records import Decision, Event, PhaseEnded, PhaseStarted, Progress, Reading
from tpsprune.training import Teacher, Tick

SHOWN_SIGNALS = {"d_eff": "d_eff", "h1": "H1 z", "spectral_edge": "edge", "tps_coherence": "R"}
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """How a stage runs: its phase in the ledger, the rule that may end it, and where its schedule ends.

    ``deadline`` is the reason reported when the schedule ends before the rule acts. ``snapshot_step`` is
    where weights for a later rewind are kept; no rule acts before it is passed. ``teacher``: whose outputs
    are learned beside the labels.
    """

    phase: str
    title: str
    rule: Rule
    last_step: int
    total_steps: int
    kind: str = "stop"
    deadline: str = "the schedule is at its end"
    snapshot_step: int | None = None
    teacher: Teacher | None = None


def train_stage(
    run: Run, state: State, settings: StageSettings
) -> Generator[Event, None, tuple[State, Decision]]:
    """Train until the rule acts, a budget is used up or the schedule ends; return state and decision.

    At a reading the model is watched, validated where the rule's verdict hangs on it, journalled and, if it
    is time, checkpointed, so that a run broken off anywhere resumes from the last checkpoint and repeats
    what was lost bit for bit. The last reading of a stage is validated always.
    """
    bench, ledger = run.bench, run.ledger
    yield PhaseStarted(
        phase=settings.phase, title=settings.title, total_steps=settings.last_step, done_steps=state.step
    )
    watch = _start_watch(run, state)
    loss_sum, losses = torch.zeros((), device=bench.execution.device), 0
    saved_at = shown_at = time.monotonic()
    decision = None
    phase = settings.phase
    ledger.switch("compile" if bench.execution.compiles else phase)
    for number, tick in enumerate(train_steps(bench, state, settings)):
        if number == 0 and bench.execution.compiles:  # which the first step has done
            ledger.switch(phase)
        state = _move_decoupled(state, tick)
        loss_sum, losses = loss_sum + tick.loss, losses + 1
        if tick.step == settings.snapshot_step:
            save_snapshot(run.folder, bench.state_of(state.model))
        window = ledger.split_if_long()
        state = state.having_paid(window)
        is_over = run.has_budget and bench.peers.any(window is not None and run.explain_budget() is not None)
        if tick.step % bench.reading_steps and tick.step < settings.last_step and not is_over:
            if time.monotonic() - shown_at > PROGRESS_SECONDS:
                shown_at = time.monotonic()
                yield _progress(run, state, settings, ())
            continue
        state = state.having_paid(ledger.switch("watch"))
        state, readings = _read(bench, watch, state, (loss_sum / losses).item())
        loss_sum, losses = torch.zeros_like(loss_sum), 0
        validates = bench.recipe.watch.validation == "always" or stopping.needs_validation(
            settings.rule, state.rule, readings
        )
        if validates:
            state, readings = _validate(run, state, readings)
        state, decision = _decide(run, state, settings, readings)
        if decision.act and not validates:
            state, readings = _validate(run, state, readings)
        state = state.having_written(run.folder, readings, [decision])
        if not decision.act and _is_time(bench, saved_at):
            save_checkpoint(run.folder, state, bench.panel, bench.peers)
            saved_at = time.monotonic()
        yield _progress(run, state, settings, readings)
        if decision.act:
            break
        ledger.switch(phase)
    assert decision is not None, "a stage has at least one step"
    read = len(watch.readings)
    with _watching(bench) as watched_seconds:
        watch.close()
    state = replace(state, signals=watch.signal_memories).having_spent(watch=watched_seconds())
    state = state.having_written(run.folder, watch.readings[read:], [])
    yield PhaseEnded(phase=settings.phase)
    return state, decision


def _is_time(bench: Workbench, saved_at: float) -> bool:
    """Return whether the next checkpoint is due: of a spread model, which all write, by the first's clock."""

    def ask() -> bool:
        return time.monotonic() - saved_at >= bench.recipe.train.checkpoint_seconds

    return bool(bench.peers.first(ask)) if bench.is_spread else ask()


def _start_watch(run: Run, state: State) -> Watch:
    """Return a watch of the state's model that remembers what the state does."""
    bench = run.bench
    watch = Watch(
        state.model,
        list(bench.watch_batches),
        bench.watch_labels,
        signals=bench.panel,
        every_steps=1,  # the stage chooses the steps
        ignored_layers=bench.recipe.prune.ignored_layers,
        group_tensors=survey_whole(run, state.rounds) if bench.is_spread else None,
    )
    watch.signal_memories = state.signals
    return watch


def train_steps(bench: Workbench, state: State, settings: StageSettings) -> Iterator[Tick]:
    """Yield each optimiser step from the state's to the last one of the settings."""
    regulariser = state.regulariser
    return training.fit(
        state.model,
        state.optimizer,
        bench.dataset.train.inputs,
        bench.dataset.train.labels,
        prepare=bench.dataset.prepare,
        settings=bench.recipe.train,
        execution=bench.execution,
        seed=bench.recipe.seed,
        first_step=state.step,
        last_step=settings.last_step,
        total_steps=settings.total_steps,
        penalty=regulariser if regulariser and regulariser.in_loss else None,
        objective=bench.objective,
        teacher=settings.teacher,
        adapter=state.adapter,
        peers=bench.peers,
    )


def _move_decoupled(state: State, tick: Tick) -> State:
    """Return the state after the optimiser's step and the decoupled force that follows it."""
    if state.regulariser is None:
        return replace(state, step=tick.step)
    started = time.process_time()
    state.regulariser.move(tick.step - 1, tick.learning_rate)
    spent = tick.penalty_cpu_seconds + time.process_time() - started
    return replace(state, step=tick.step).having_spent(tps=spent)


def _validate(run: Run, state: State, readings: list[Reading]) -> tuple[State, list[Reading]]:
    """Return the readings with those of the validation split, behind the first; its window is paid."""
    bench = run.bench
    run.ledger.switch("evaluate")
    score = bench.score(state.model, bench.dataset.validation)
    state = state.having_paid(run.ledger.switch("watch"))
    step, epoch = state.count_trained(bench.steps_per_epoch)
    if not isfinite(score.loss):
        raise _diverged(f"{score.loss:g} in validation", step, epoch)
    validation = (
        Reading.of("validation_loss", score.loss, step=step, epoch=epoch, unit=bench.objective.unit),
        Reading.of("validation_accuracy", score.accuracy, step=step, epoch=epoch, unit="share"),
    )
    return state, [readings[0], *validation, *readings[1:]]


def _diverged(what: str, step: int, epoch: float) -> DivergedError:
    return DivergedError(
        f"the loss is not finite at step {step} (epoch {epoch:.2f}): {what}; "
        "lower train.learning_rate or tps.coupling, or set train.clip_norm"
    )


def _read(bench: Workbench, watch: Watch, state: State, train_loss: float) -> tuple[State, list[Reading]]:
    """Return the training loss, signals and order parameters; their processor time is charged to watching."""
    step, epoch = state.count_trained(bench.steps_per_epoch)
    if not isfinite(train_loss):
        raise _diverged(f"{train_loss:g} in training", step, epoch)
    tensors = dict([*state.model.named_parameters(), *state.model.named_buffers()])
    are_finite = torch.stack([torch.isfinite(own_part(tensor)).all() for tensor in tensors.values()])
    own = [] if bool(are_finite.all()) else [list(tensors)[int(are_finite.int().argmin())]]
    if found := [name for each in bench.peers.gather(own) for name in each]:
        # No checkpoint is to hold such weights.
        raise _diverged(f"the step has left '{found[0]}' not finite", step, epoch)
    if bench.peers.size > 1:
        bench.peers.agree(
            f"the weights after step {step}",
            fingerprint(state.model),
            "they have drifted apart: go on from the last checkpoint with --resume, on machines of one kind",
        )
    first = Reading.of("train_loss", train_loss, step=step, epoch=epoch, unit=bench.objective.unit)
    read = len(watch.readings)
    with _watching(bench) as watched_seconds:
        order_parameters: tuple[Reading, ...] = ()
        if state.regulariser is not None:
            order_parameters = state.regulariser.order_parameters(step=step, epoch=epoch)
        watch.step(step, epoch=epoch, readings=(first, *order_parameters))
    last = {each.signal for each in order_parameters}  # in the journal
    readings = sorted(watch.readings[read:], key=lambda each: each.signal in last)
    state = replace(state, signals=watch.signal_memories)
    return state.having_spent(watch=watched_seconds()), readings


@contextmanager
def _watching(bench: Workbench) -> Iterator[Callable[[], float]]:
    """Yield a function that returns, after the block, its processor seconds here and in the H1 process."""

    def now() -> float:
        return time.process_time() + bench.panel.worker_cpu_seconds

    started = now()
    yield lambda: now() - started


def _decide(
    run: Run, state: State, settings: StageSettings, readings: Sequence[Reading]
) -> tuple[State, Decision]:
    """Apply the rule to a round of readings; return the state that remembers it, and the decision."""
    memory, verdict = stopping.step(settings.rule, state.rule, readings)
    step, epoch = state.count_trained(run.bench.steps_per_epoch)
    decision = Decision(
        kind=settings.kind,
        act=verdict.act,
        step=step,
        epoch=epoch,
        rule=stopping.describe(settings.rule),
        reason=verdict.reason,
    )
    return replace(state, rule=memory), _override(run, state, settings, decision)


def _override(run: Run, state: State, settings: StageSettings, decision: Decision) -> Decision:
    """Return the decision: a snapshot to come holds the rule; a budget and the schedule's end override it."""
    if settings.snapshot_step is not None and state.step < settings.snapshot_step:
        reason = f"held: the weights to rewind to are kept at step {settings.snapshot_step}"
        decision = replace(decision, act=False, reason=reason)
    if decision.act:
        return decision
    if used_up := run.find_budget_end():
        return replace(decision, act=True, rule="budget", reason=used_up)
    if state.step >= settings.last_step:
        reason = f"{settings.deadline}; the rule's last reason: {decision.reason}"
        return replace(decision, act=True, rule="deadline", reason=reason)
    return decision


def _progress(run: Run, state: State, settings: StageSettings, readings: Sequence[Reading]) -> Progress:
    whole = {r.signal: r.value for r in readings if not r.group and r.value is not None}
    cost = run.ledger.total
    return Progress(
        phase=settings.phase,
        step=state.step,
        total_steps=settings.last_step,
        epoch=state.count_trained(run.bench.steps_per_epoch)[1],
        loss=whole.get("train_loss"),
        validation_accuracy=whole.get("validation_accuracy"),
        signals=tuple((short, whole[name]) for name, short in SHOWN_SIGNALS.items() if name in whole),
        joules=cost.joules,
        watts=cost.joules / cost.seconds if cost.joules is not None and cost.seconds else None,
        read=bool(readings),
        quality=run.bench.objective.quality,
    )


def schedule_retraining(bench: Workbench, drawn_step: int) -> tuple[int, int]:
    """Return the first and the last step of the retraining on its own schedule.

    The rest of the budget continues the schedule at the draw, or at the rewind point; a number of epochs
    is a schedule by itself, from the rewind point if there is one, else from the start.
    """
    retrain = bench.recipe.retrain
    rewind = rewind_epoch(retrain.rewind)
    rewound_step = None if rewind is None else rewind * bench.steps_per_epoch
    if retrain.epochs == "rest":
        return (drawn_step if rewound_step is None else rewound_step), bench.total_steps
    first_step = rewound_step or 0
    steps = training.count_steps(retrain.epochs, bench.steps_per_epoch) if retrain.epochs else 0
    return first_step, first_step + steps


def schedule_between_rounds(bench: Workbench, pruned_step: int) -> tuple[int, int, int]:
    """Return the first step, the last and the schedule's end of the training between two rounds.

    ``prune.round_epochs`` of what is left of the budget; where the retraining has a number of epochs, a
    schedule by itself.
    """
    steps = bench.recipe.prune.round_epochs * bench.steps_per_epoch
    first_step, total_steps = schedule_retraining(bench, pruned_step)
    if bench.recipe.retrain.epochs != "rest":
        return first_step, first_step + steps, first_step + steps
    return first_step, min(first_step + steps, total_steps), total_steps
