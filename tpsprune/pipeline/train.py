"""The main job, top to bottom: train under watch, draw the ticket, retrain it, weigh both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

from tpsprune import energy, stopping, training
from tpsprune.errors import CannotWriteError, DivergedError, RunFolderError
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.bill import MAX_WINDOW_SECONDS, Bill
from tpsprune.pipeline.cut import cut_model, replayed, retrain_schedule
from tpsprune.pipeline.stage import Course, budget_used_up, run_stage
from tpsprune.pipeline.state import Clock, Restored, State, load_checkpoint, save_checkpoint, save_snapshot
from tpsprune.pipeline.weigh import weigh
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.retrain import rewind_epoch
from tpsprune.recipe.task import ImageFolderData
from tpsprune.records import Decided, Decision, Event, Finished, Note, Window
from tpsprune.runs import RunFolder, digest_of, write_text_atomically
from tpsprune.runs.tensors import save_tensors

__all__ = ["train"]

BUDGET_WINDOW_SECONDS = 2.0


def train(
    recipe: Recipe, out: Path, *, device: str = "auto", resume: bool = False, again: bool = False
) -> Iterator[Event]:
    """Run ``recipe`` into a folder below ``out``; yield what happens, last the outcome.

    ``resume`` goes on with this recipe's run from its last checkpoint; ``again`` makes a new folder
    beside one that is there. Leaving the loop leaves a run that can be resumed.

    Raises:
        TpspruneError: something asked for cannot be had; before the first step nothing has been written.
    """
    if isinstance(recipe.task.data, ImageFolderData):
        yield Note("reading the images: the first time they are decoded into a cache, later it is read")
    text = dumps(recipe)
    found = _found(out, recipe, digest_of(text)) if resume else None
    with Bill(energy.build(recipe.energy, _attempt(found)), _longest_window(recipe)) as bill:
        bill.switch("setup")
        with set_up(recipe, device) as bench:
            folder = found or RunFolder.create(out, recipe.name, digest_of(text), again=again)
            with folder.locked():
                try:
                    if not folder.recipe.is_file():
                        write_text_atomically(folder.recipe, text)
                    bill.keep_in(folder.energy)
                    yield from _flow(bench, folder, bill)
                except CannotWriteError as error:
                    raise CannotWriteError(f"{error}, then go on with --resume") from error
                except DivergedError as error:
                    kept = f"readings and the last checkpoint are kept in {folder.path}"
                    raise DivergedError(f"{error}; {kept}") from error


def _flow(bench: Bench, folder: RunFolder, bill: Bill) -> Iterator[Event]:
    restored = load_checkpoint(folder)
    if restored is not None:
        state = _restored(bench, folder, restored)
        yield Note(f"resumed in stage '{state.stage}' at step {state.step}")
    else:
        state = _begun(bench, folder)
        if state.regulariser is not None and (warning := state.regulariser.harm_note([], [])):
            yield Note(warning)
    if state.stage == "dense":
        state = yield from _dense(bench, folder, bill, state)
    if state.stage == "cut":
        bill.switch("prune")
        state = yield from cut_model(bench, folder, state)
    if state.stage == "retrain":
        state = yield from _retrain(bench, folder, bill, state)
    bill.switch("weigh")
    yield Finished(weigh(bench, folder, bill, state))


def _dense(bench: Bench, folder: RunFolder, bill: Bill, state: State) -> Generator[Event, None, State]:
    """Train the dense model until its ticket is to be drawn."""
    stop = bench.recipe.stop
    last_step = max(ceil(stop.draw_by_share * bench.total_steps), 1)
    rewind = rewind_epoch(bench.recipe.retrain.rewind)
    course = Course(
        phase="train",
        title="train",
        kind="draw",
        rule=stop.draw,
        last_step=last_step,
        total_steps=bench.total_steps,
        deadline=f"epoch {last_step / bench.steps_per_epoch:g} is the last to draw at (stop.draw_by_share)",
        snapshot_step=rewind * bench.steps_per_epoch if rewind else None,
    )
    state, decision = yield from run_stage(bench, folder, bill, state, course)
    yield Decided(decision=decision)
    state = replace(state, stage="cut", drawn=decision, rule={})
    save_tensors(folder.dense, state.model.state_dict(), {})
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
        reason = used_up or "no epochs were left to retrain for"
        rule = "budget" if used_up else "deadline"
        decision = Decision(kind="stop", act=True, step=step, epoch=epoch, rule=rule, reason=reason)
        state = state.having_written(folder, [], [decision])
    yield Decided(decision=decision)
    state = replace(state, stage="weigh", stopped=decision)
    save_checkpoint(folder, state, bench.panel)
    return state


def _begun(bench: Bench, folder: RunFolder) -> State:
    model = bench.new_model()
    if rewind_epoch(bench.recipe.retrain.rewind) == 0:
        save_snapshot(folder, model)
    return State(
        stage="dense",
        step=0,
        shift=0,
        model=model,
        optimizer=training.make_optimizer(model, bench.recipe.train),
        regulariser=bench.regulariser(model),
        signals=bench.panel.start(),
        rule=stopping.start(bench.recipe.stop.draw, chance_accuracy=bench.chance_accuracy),
        clock=Clock(),
        lines=(0, 0),
        cut={},
    )


def _restored(bench: Bench, folder: RunFolder, restored: Restored) -> State:
    model = bench.new_model()
    if restored.stage in {"retrain", "weigh"}:
        model = bench.execution.place(replayed(folder, model))
    return restored.state(model, bench.regulariser(model), bench.panel, bench.recipe)


def _found(out: Path, recipe: Recipe, digest: str) -> RunFolder:
    folder = RunFolder.find(out, recipe.name, digest)
    if folder.is_finished:
        raise RunFolderError(
            f"{folder.path} is finished, there is nothing to resume: look at it with "
            f"'tpsprune show {folder.path}', or run the recipe once more with --again"
        )
    return folder


def _longest_window(recipe: Recipe) -> float:
    """Return how long a window may stay open, in seconds: a budget is looked at whenever one closes."""
    has_budget = recipe.stop.budget_seconds is not None or recipe.stop.budget_joules is not None
    return BUDGET_WINDOW_SECONDS if has_budget else MAX_WINDOW_SECONDS


def _attempt(folder: RunFolder | None) -> int:
    """Return which attempt at the run this is, from 0."""
    if folder is None:
        return 0
    return 1 + max((window.attempt for window in folder.energy.parsed(Window.from_json)), default=0)
