"""The main job, top to bottom: train under watch, draw the ticket, prune, retrain, benchmark both models."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path

from torch import nn

from tpsprune import measure, pruning, training
from tpsprune.pipeline.job import find_start, own_folder
from tpsprune.pipeline.load import describe_initial_weights
from tpsprune.pipeline.spread import whole_models_in
from tpsprune.pipeline.stage import StageSettings, schedule_retraining, train_stage
from tpsprune.pipeline.state import State, load_checkpoint, save_checkpoint, save_snapshot
from tpsprune.pipeline.ticket import draw_ticket, extraction_inputs, finish, restore_state
from tpsprune.pipeline.workbench import Run, Workbench, set_up_metered
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.prune import Share
from tpsprune.recipe.stop import NoRule, Rule
from tpsprune.recipe.task import ImageFolderData
from tpsprune.recipe.train import rewind_epoch
from tpsprune.records import Decided, Decision, Event, ModelFigures, Note, Trained
from tpsprune.runs import RunFolder, digest_of, versions, write_json_atomically
from tpsprune.runs.tensors import save_tensors


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

    ``resume`` continues this recipe's run from its last checkpoint; ``again`` makes a new folder
    beside one that is there; weights that the model begins with are part of its name. ``timed``: with the
    latency of both models at the end. Leaving the loop leaves a run that can be resumed.

    Where a launcher (torchrun) started several processes, they make one run: all yield the same events, and
    the first one writes.

    Raises:
        TpspruneError: something requested is not available; before the first step nothing has been written.
    """
    if isinstance(recipe.task.data, ImageFolderData):
        yield Note("reading the images: the first time they are decoded into a cache, later it is read")
    text = dumps(recipe)
    weights = describe_initial_weights(recipe)
    digest = digest_of(f"{text}\n{weights}" if weights else text)
    with training.gathered(device, spreads=recipe.train.spread == "shard") as started:
        started.agree("the recipe", text)
        started.agree("the weights that the model begins with", weights)
        started.agree("versions", versions())
        start = find_start(started, out, recipe.name, digest, resume=resume, shards=recipe.train.shards)
        if start.is_finished and start.found is not None:
            yield Note(f"{start.found.path} was finished before the job was restarted")
            return
        earlier = start.found.energy if start.found and started.is_first else None
        with (
            whole_models_in(out, recipe, started) as store,
            set_up_metered(recipe, device, earlier, peers=start.peers, store=store) as (bench, ledger),
            own_folder(start, out, recipe.name, digest, again=again, spreads=bench.is_spread) as folder,
            Run(bench, folder, ledger, start.describe()).writing(text) as run,
        ):
            state = yield from _begin_or_resume(run)
            if state.stage == "dense":
                state = yield from _train_dense(run, state)
            yield from finish(run, state, timed=timed and started.is_first)


def _begin_or_resume(run: Run) -> Generator[Event, None, State]:
    checkpoint = load_checkpoint(run.folder)
    if checkpoint is not None:
        state = restore_state(run.bench, run.folder, checkpoint)
        yield Note(f"resumed in stage '{state.stage}' at step {state.step}")
        return state
    model = run.bench.place(run.bench.new_model())
    if rewind_epoch(run.bench.recipe.retrain.rewind) == 0:
        save_snapshot(run.folder, run.bench.state_of(model))
    state = run.bench.begin(model, "dense", run.bench.recipe.stop.draw)
    if run.bench.initial_weights:
        yield Note(run.bench.initial_weights)
    if state.regulariser is not None and run.bench.recipe.tps.variant == "auto":
        yield Note(
            f"TPS: variant '{state.regulariser.variant_name}', since nothing but hidden units joins two "
            'tokens here (tps.variant = "none" trains without)'
        )
    if state.regulariser is not None and (warning := state.regulariser.harm_note([], [])):
        yield Note(warning)
    return state


def _train_dense(run: Run, state: State) -> Generator[Event, None, State]:
    """Train the dense model until its ticket is to be drawn."""
    bench = run.bench
    rewind = rewind_epoch(bench.recipe.retrain.rewind)
    last_step = _last_draw_step(run)
    settings = StageSettings(
        phase="train",
        title="train",
        kind="draw",
        rule=bench.recipe.stop.draw,
        last_step=last_step,
        total_steps=bench.total_steps,
        deadline=f"epoch {last_step / bench.steps_per_epoch:g} is the last to draw at (stop.draw_by_share)",
        snapshot_step=rewind * bench.steps_per_epoch if rewind else None,
    )
    state, decision = yield from train_stage(run, state, settings)
    yield Decided(decision=decision)
    state = replace(state, stage="prune", drawn=decision)
    save_tensors(run.folder.dense, bench.state_of(state.model), {})
    save_checkpoint(run.folder, state, bench.panel, bench.peers)
    return state


def train_without_pruning(
    recipe: Recipe,
    out: Path,
    *,
    arm: str,
    rule: Rule | None,
    plan: Plan | None = None,
    new_model: Callable[[Workbench], nn.Module] = Workbench.new_model,
    device: str = "auto",
) -> Iterator[Event]:
    """Train what a ticket is compared with: the recipe's model, or its shape as ``plan`` prunes it.

    ``new_model`` makes it as it is before the first step.

    ``rule`` may end the schedule; ``None`` is the ticket's schedule without pruning: under ``stop.draw``
    until the ticket would be drawn, then under ``stop.end`` for what its retraining would get (a rewind is
    left out: nothing was pruned). Yields what happens, last the final figures. A run that is broken off is
    not resumed.

    Raises:
        TpspruneError: as ``train``.
    """
    text = dumps(recipe)
    with set_up_metered(recipe, device, prunes=False) as (bench, ledger):
        folder = RunFolder.create(out, recipe.name, digest_of(f"{text}\nwhole {arm}"), again=True)
        with Run(bench, folder, ledger).writing(text) as run:
            model = new_model(bench)
            if plan is not None:
                model = bench.execution.place(pruning.replay(model, plan))
                write_json_atomically(folder.plan, plan.to_json())
            state = bench.begin(model, "dense", recipe.stop.draw if rule is None else rule)
            drawn = None
            if rule is None:
                state, drawn, decision = yield from _train_as_ticket(run, state)
            else:
                steps = bench.total_steps
                state, decision = yield from train_stage(run, state, _unpruned(rule, steps, steps, "train"))
            yield Decided(decision=replace(decision, kind="stop"))
            ledger.switch("benchmark")
            save_tensors(folder.dense if plan is None else folder.ticket, state.model.state_dict(), {})
            trained = read_test(run, state.model, decision)
            ledger.close()
            yield replace(trained, drawn_epoch=None if drawn is None else drawn.epoch)


def train_family(
    recipe: Recipe, out: Path, targets: Sequence[Share], *, device: str = "auto"
) -> Iterator[Event]:
    """Train the recipe's model once and cut it to every size; yield what happens, and each size's figures.

    Each size, the largest first, is verified, and repaired as the recipe says. Its plan and its weights are
    in a folder of their own below the run's. The recipe's target is the least of ``targets``. A run that is
    broken off is not resumed.

    Raises:
        TpspruneError: as ``train``; a size failed its verification.
    """
    text = dumps(recipe)
    with set_up_metered(recipe, device) as (bench, ledger):
        folder = RunFolder.create(out, recipe.name, digest_of(f"{text}\nfamily"), again=True)
        with Run(bench, folder, ledger).writing(text) as run:
            state = bench.begin(bench.new_model(), "dense", NoRule())
            steps = bench.total_steps
            state, decision = yield from train_stage(run, state, _unpruned(NoRule(), steps, steps, "train"))
            yield Decided(decision=replace(decision, kind="stop"))
            ledger.switch("prune")
            settings, ready = recipe.prune, bench.calibrated(state.model)
            inputs = extraction_inputs(ready, ledger, settings.units, settings.target)
            plans = pruning.plan_sizes(state.model, ready.prune_batches, settings, targets, **inputs)
            drawn = []
            for plan in plans:
                found, _ = yield from draw_ticket(
                    ready, ledger, state.model, plan.target, trains_on=False, planned=plan
                )
                drawn.append(found)
            ledger.switch("benchmark")
            save_tensors(folder.dense, state.model.state_dict(), {})
            trained = []
            for number, each in enumerate(drawn, 1):
                member = RunFolder.create(folder.path, "size", str(number))
                write_json_atomically(member.plan, each.plan.to_json())
                save_tensors(member.ticket, each.ticket.state_dict(), {})
                trained.append(replace(read_test(run, each.ticket, decision), folder=str(member.path)))
            ledger.close()
            yield from trained


def read_test(run: Run, model: nn.Module, stopped: Decision) -> Trained:
    """Return the figures of a model that is done, the test split read for them."""
    bench = run.bench
    figures = ModelFigures(
        accuracy=bench.score(model, bench.dataset.test).accuracy,
        **asdict(measure.size(model, bench.watch_batches[0])),
        latency_seconds={},
    )
    return Trained(figures=figures, stopped=stopped, drawn_epoch=None, folder=str(run.folder.path))


def _train_as_ticket(run: Run, state: State) -> Generator[Event, None, tuple[State, Decision, Decision]]:
    """Train until the draw, then on as the ticket would be retrained, if anything is left for that."""
    bench, stop = run.bench, run.bench.recipe.stop
    settings = _unpruned(stop.draw, _last_draw_step(run), bench.total_steps, "train until the draw")
    state, drawn = yield from train_stage(run, state, settings)
    first_step, last_step = schedule_retraining(bench, state.step)
    if first_step >= last_step or run.find_budget_end() is not None:
        return state, drawn, drawn
    state = replace(state.starting_at(first_step, "dense"), rule=bench.start_rule(stop.end))
    settings = _unpruned(stop.end, last_step, last_step, "train on")
    state, decision = yield from train_stage(run, state, settings)
    return state, drawn, decision


def _unpruned(rule: Rule, last_step: int, total_steps: int, title: str) -> StageSettings:
    return StageSettings(phase="train", title=title, rule=rule, last_step=last_step, total_steps=total_steps)


def _last_draw_step(run: Run) -> int:
    return max(ceil(run.bench.recipe.stop.draw_by_share * run.bench.total_steps), 1)
