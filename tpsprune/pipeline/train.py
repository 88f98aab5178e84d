"""The main job, top to bottom: train under watch, draw the ticket, retrain it, weigh both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

from tpsprune import energy
from tpsprune.pipeline.begin import begun
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.running import attempt, found_run, longest_window, running_in
from tpsprune.pipeline.stage import Course, run_stage
from tpsprune.pipeline.state import State, load_checkpoint, save_checkpoint, save_snapshot
from tpsprune.pipeline.ticket import finished, restored
from tpsprune.pipeline.weights import begins_with
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.task import ImageFolderData
from tpsprune.recipe.train import rewind_epoch
from tpsprune.records import Decided, Event, Note
from tpsprune.runs import RunFolder, digest_of
from tpsprune.runs.tensors import save_tensors

__all__ = ["train"]


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    again: bool = False,
    timed: bool = True,
) -> Iterator[Event]:
    """Run ``recipe`` into a folder below ``out``; yield what happens, last the outcome.

    ``resume`` goes on with this recipe's run from its last checkpoint; ``again`` makes a new folder
    beside one that is there; weights that the model begins with are part of its name. ``timed``: with the
    latency of both models at the end. Leaving the loop leaves a run that can be resumed.

    Raises:
        TpspruneError: something asked for cannot be had; before the first step nothing has been written.
    """
    if isinstance(recipe.task.data, ImageFolderData):
        yield Note("reading the images: the first time they are decoded into a cache, later it is read")
    text = dumps(recipe)
    given = begins_with(recipe)
    digest = digest_of(f"{text}\n{given}" if given else text)
    found = found_run(out, recipe.name, digest) if resume else None
    with Bill(energy.build(recipe.energy, attempt(found)), longest_window(recipe)) as bill:
        bill.switch("setup")
        with set_up(recipe, device) as bench:
            folder = found or RunFolder.create(out, recipe.name, digest, again=again)
            with running_in(folder, text, bill):
                yield from _flow(bench, folder, bill, timed=timed)


def _flow(bench: Bench, folder: RunFolder, bill: Bill, *, timed: bool) -> Iterator[Event]:
    checkpoint = load_checkpoint(folder)
    if checkpoint is not None:
        state = restored(bench, folder, checkpoint)
        yield Note(f"resumed in stage '{state.stage}' at step {state.step}")
    else:
        state = _begun(bench, folder)
        if bench.given:
            yield Note(bench.given)
        if state.regulariser is not None and bench.recipe.tps.variant == "auto":
            yield Note(
                f"TPS: variant '{state.regulariser.variant_name}', since nothing but hidden units joins two "
                'tokens here (tps.variant = "none" trains without)'
            )
        if state.regulariser is not None and (warning := state.regulariser.harm_note([], [])):
            yield Note(warning)
    if state.stage == "dense":
        state = yield from _dense(bench, folder, bill, state)
    yield from finished(bench, folder, bill, state, timed=timed)


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


def _begun(bench: Bench, folder: RunFolder) -> State:
    model = bench.new_model()
    if rewind_epoch(bench.recipe.retrain.rewind) == 0:
        save_snapshot(folder, model)
    return begun(bench, model, "dense", bench.recipe.stop.draw)
