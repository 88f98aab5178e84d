"""From the draw on, where ``train`` and ``prune`` meet: cuts, training between and after them, weighing."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from tpsprune.pipeline.bench import Bench
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.cut import cut_model
from tpsprune.pipeline.rounds import as_cut
from tpsprune.pipeline.schedule import retrain_schedule
from tpsprune.pipeline.stage import Course, budget_used_up, run_stage
from tpsprune.pipeline.state import Restored, State, save_checkpoint
from tpsprune.pipeline.weigh import weigh
from tpsprune.recipe.stop import NoRule
from tpsprune.records import Decided, Decision, Event, Finished
from tpsprune.runs import RunFolder

__all__ = ["finished", "restored"]


def finished(
    bench: Bench, folder: RunFolder, bill: Bill, state: State, *, timed: bool = True
) -> Generator[Event, None, None]:
    """Cut in as many rounds as asked, retrain the ticket, weigh it and the dense model; last the outcome."""
    while state.stage in {"cut", "between"}:
        if state.stage == "between":
            state = yield from _between(bench, folder, bill, state)
        bill.switch("prune")
        state = yield from cut_model(bench, folder, bill, state)
    if state.stage == "retrain":
        state = yield from _retrain(bench, folder, bill, state)
    bill.switch("weigh")
    yield Finished(weigh(bench, folder, bill, state, timed=timed))


def restored(bench: Bench, folder: RunFolder, checkpoint: Restored) -> State:
    """Build the model as it was cut when the checkpoint was written, and fill everything from it."""
    model = bench.execution.place(as_cut(folder, bench.new_model(fill=False), checkpoint.saved.rounds))
    return checkpoint.state(model, bench.regulariser(model), bench.panel, bench.recipe)


def _between(bench: Bench, folder: RunFolder, bill: Bill, state: State) -> Generator[Event, None, State]:
    """Train the ticket for a while between two rounds; no rule ends that early, a hard budget does."""
    assert state.cut is not None
    assert state.cut.ends is not None
    last_step, total_steps = state.cut.ends
    if state.step < last_step and budget_used_up(bench, bill) is None:
        rounds = bench.recipe.prune.rounds
        course = Course(
            phase="retrain",
            title=f"retrain after round {state.rounds} of {rounds}",
            kind="round",
            rule=NoRule(),
            last_step=last_step,
            total_steps=total_steps,
            deadline=f"round {state.rounds + 1} of {rounds} is due (prune.round_epochs)",
        )
        state, _ = yield from run_stage(bench, folder, bill, state, course)
    state = replace(state, stage="cut")
    save_checkpoint(folder, state, bench.panel)
    return state


def _retrain(bench: Bench, folder: RunFolder, bill: Bill, state: State) -> Generator[Event, None, State]:
    """Train the ticket with what is left of the budget, or on the schedule that the recipe gives it."""
    assert state.drawn is not None, "a ticket is retrained after its draw"
    _, last_step = retrain_schedule(bench, state.drawn.step)
    used_up = budget_used_up(bench, bill)
    if state.step < last_step and used_up is None:
        course = Course(
            phase="retrain",
            title="retrain",
            kind="stop",
            rule=bench.recipe.stop.end,
            last_step=last_step,
            total_steps=last_step,
            deadline="the schedule is at its end",
        )
        state, decision = yield from run_stage(bench, folder, bill, state, course)
    else:
        step, epoch = state.moment(bench.steps_per_epoch)
        reason = used_up or _nothing_left(bench)
        rule = "budget" if used_up else "deadline"
        decision = Decision(kind="stop", act=True, step=step, epoch=epoch, rule=rule, reason=reason)
        state = state.having_written(folder, [], [decision])
    yield Decided(decision=decision)
    state = replace(state, stage="weigh", stopped=decision)
    save_checkpoint(folder, state, bench.panel)
    return state


def _nothing_left(bench: Bench) -> str:
    if bench.recipe.retrain.epochs == 0:
        return "no retraining was asked for"
    return "no epochs were left to retrain for"
