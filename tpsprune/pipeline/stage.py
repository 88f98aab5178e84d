"""One stage of training under watch: fit ⇄ signals ⇄ stopping, until a rule acts or the budget ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite

import torch

from tpsprune import stopping, training
from tpsprune.errors import DivergedError
from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.state import State, save_checkpoint, save_snapshot
from tpsprune.pruning import GroupTensors
from tpsprune.recipe.stop import Rule
from tpsprune.records import Decision, Event, PhaseEnded, PhaseStarted, Progress, Reading, Verdict
from tpsprune.runs import RunFolder
from tpsprune.signals import View
from tpsprune.training import Tick

__all__ = ["Course", "budget_used_up", "run_stage"]

SHOWN_SIGNALS = {"d_eff": "d_eff", "h1": "H1 z", "spectral_edge": "edge", "tps_coherence": "R"}
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a stage runs: its name on the bill, the rule that may end it, and where its schedule ends.

    ``deadline`` is the reason given when the schedule ends before the rule acts. ``snapshot_step`` is
    where weights for a later rewind are kept; no rule acts before it is passed.
    """

    phase: str
    title: str
    kind: str
    rule: Rule
    last_step: int
    total_steps: int
    deadline: str
    snapshot_step: int | None = None


def run_stage(
    bench: Bench, folder: RunFolder, bill: Bill, state: State, course: Course
) -> Generator[Event, None, tuple[State, Decision]]:
    """Train until the rule acts, a budget is used up or the schedule ends; return state and decision.

    A reading is also the moment of validation, journal and checkpoint, so that a run broken off
    anywhere goes on from the last of them and repeats what was lost bit for bit.
    """
    yield PhaseStarted(
        phase=course.phase, title=course.title, total_steps=course.last_step, done_steps=state.step
    )
    sites = bench.sites(state.model)
    loss_sum, losses = torch.zeros((), device=bench.execution.device), 0
    saved_at = shown_at = time.monotonic()
    decision = None
    bill.switch(course.phase)
    for tick in _ticks(bench, state, course):
        state = _moved(state, tick)
        loss_sum, losses = loss_sum + tick.loss, losses + 1
        if tick.step == course.snapshot_step:
            save_snapshot(folder, state.model)
        window = bill.split_if_long()
        state = state.having_paid(window)
        is_over = window is not None and budget_used_up(bench, bill) is not None
        if tick.step % bench.reading_steps and tick.step < course.last_step and not is_over:
            if time.monotonic() - shown_at > PROGRESS_SECONDS:
                shown_at = time.monotonic()
                yield _progress(bench, bill, state, course, ())
            continue
        state = state.having_paid(bill.switch("evaluate"))
        readings = _task_readings(bench, state, (loss_sum / losses).item())
        loss_sum, losses = torch.zeros_like(loss_sum), 0
        state = state.having_paid(bill.switch("watch"))
        state, watched = _watched(bench, state, sites)
        readings = (*readings, *watched)
        state, decision = _ruled(bench, bill, state, course, readings)
        state = state.having_written(folder, readings, [decision])
        if not decision.act and time.monotonic() - saved_at >= bench.recipe.train.checkpoint_seconds:
            save_checkpoint(folder, state, bench.panel)
            saved_at = time.monotonic()
        yield _progress(bench, bill, state, course, readings)
        if decision.act:
            break
        bill.switch(course.phase)
    assert decision is not None, "a stage has at least one step"
    with _watching(bench) as watched_seconds:
        signals, late = bench.panel.finish(state.signals)
    state = replace(state, signals=signals).having_spent(watch=watched_seconds())
    state = state.having_written(folder, late, [])
    yield PhaseEnded(phase=course.phase)
    return state, decision


def _ticks(bench: Bench, state: State, course: Course) -> Iterator[Tick]:
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
        last_step=course.last_step,
        total_steps=course.total_steps,
        penalty=regulariser if regulariser and regulariser.in_loss else None,
        objective=bench.objective,
    )


def _moved(state: State, tick: Tick) -> State:
    """Take the optimiser's step into the state, with the decoupled force that follows it."""
    if state.regulariser is None:
        return replace(state, step=tick.step)
    started = time.process_time()
    state.regulariser.move(tick.step - 1, tick.learning_rate)
    spent = tick.penalty_cpu_seconds + time.process_time() - started
    return replace(state, step=tick.step).having_spent(tps=spent)


def _task_readings(bench: Bench, state: State, train_loss: float) -> tuple[Reading, ...]:
    score = bench.score(state.model, bench.dataset.validation)
    step, epoch = state.moment(bench.steps_per_epoch)
    if not (isfinite(train_loss) and isfinite(score.loss)):
        raise DivergedError(
            f"the loss is not finite at step {step} (epoch {epoch:.2f}): {train_loss:g} in training, "
            f"{score.loss:g} in validation; lower train.learning_rate or tps.coupling, or set train.clip_norm"
        )
    return (
        Reading.of("train_loss", train_loss, step=step, epoch=epoch, unit=bench.objective.unit),
        Reading.of("validation_loss", score.loss, step=step, epoch=epoch, unit=bench.objective.unit),
        Reading.of("validation_accuracy", score.accuracy, step=step, epoch=epoch, unit="share"),
    )


def _watched(bench: Bench, state: State, sites: GroupTensors) -> tuple[State, tuple[Reading, ...]]:
    """Read the signals and the order parameters; what that costs goes on the watching clock."""
    step, epoch = state.moment(bench.steps_per_epoch)
    view = View(
        model=state.model,
        probe=bench.probe,
        labels=bench.probe_labels,
        step=step,
        epoch=epoch,
        consumers=sites.consumers,
        written=sites.written,
        scaled=sites.scaled,
    )
    with _watching(bench) as watched_seconds:
        signals, readings = bench.panel.read(state.signals, view)
        if state.regulariser is not None:
            readings = (*readings, *state.regulariser.order_parameters(step=step, epoch=epoch))
    return replace(state, signals=signals).having_spent(watch=watched_seconds()), readings


@contextmanager
def _watching(bench: Bench) -> Iterator[Callable[[], float]]:
    """Yield what tells, after the block, the processor seconds it took here and in the H1 process."""

    def now() -> float:
        return time.process_time() + bench.panel.worker_cpu_seconds

    started = now()
    yield lambda: now() - started


def _ruled(
    bench: Bench, bill: Bill, state: State, course: Course, readings: Sequence[Reading]
) -> tuple[State, Decision]:
    """Let the rule see the readings; a snapshot to come holds it, a budget and the end override both."""
    memory, verdict = stopping.step(course.rule, state.rule, readings)
    name = stopping.describe(course.rule)
    if course.snapshot_step is not None and state.step < course.snapshot_step:
        verdict = Verdict(False, f"held: the weights to rewind to are kept at step {course.snapshot_step}")
    if not verdict.act:
        used_up = budget_used_up(bench, bill)
        if used_up is not None:
            name, verdict = "budget", Verdict(True, used_up)
        elif state.step >= course.last_step:
            name, verdict = (
                "deadline",
                Verdict(True, f"{course.deadline}; the rule last said: {verdict.reason}"),
            )
    step, epoch = state.moment(bench.steps_per_epoch)
    decision = Decision(
        kind=course.kind, act=verdict.act, step=step, epoch=epoch, rule=name, reason=verdict.reason
    )
    return replace(state, rule=memory), decision


def budget_used_up(bench: Bench, bill: Bill) -> str | None:
    """Return in words which hard budget of ``[stop]`` is used up; ``None`` while there is some left."""
    stop, spent = bench.recipe.stop, bill.total
    if stop.budget_seconds is not None and spent.seconds >= stop.budget_seconds:
        return f"the budget of {stop.budget_seconds:g} s is used up ({spent.seconds:.1f} s spent)"
    if stop.budget_joules is not None and (spent.joules or 0.0) >= stop.budget_joules:
        return f"the budget of {stop.budget_joules:g} J is used up ({spent.joules:.1f} J spent)"
    return None


def _progress(
    bench: Bench, bill: Bill, state: State, course: Course, readings: Sequence[Reading]
) -> Progress:
    whole = {r.signal: r.value for r in readings if not r.group and r.value is not None}
    cost = bill.total
    return Progress(
        phase=course.phase,
        step=state.step,
        total_steps=course.last_step,
        epoch=state.moment(bench.steps_per_epoch)[1],
        loss=whole.get("train_loss"),
        validation_accuracy=whole.get("validation_accuracy"),
        signals=tuple((short, whole[name]) for name, short in SHOWN_SIGNALS.items() if name in whole),
        joules=cost.joules,
        watts=cost.joules / cost.seconds if cost.joules is not None and cost.seconds else None,
        read=bool(readings),
        quality=bench.objective.quality,
    )
