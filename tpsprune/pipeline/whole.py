"""What a ticket is held against: a model trained to its end without a cut, on the same bill."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path

from torch import nn

from tpsprune import energy, measure, pruning, stopping
from tpsprune.pipeline.begin import begun
from tpsprune.pipeline.bench import Bench, set_up
from tpsprune.pipeline.bill import Bill
from tpsprune.pipeline.running import longest_window, running_in
from tpsprune.pipeline.schedule import retrain_schedule
from tpsprune.pipeline.stage import Course, budget_used_up, run_stage
from tpsprune.pipeline.state import State
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe, dumps
from tpsprune.recipe.stop import Rule
from tpsprune.records import Decided, Decision, Event, ModelFigures, Trained
from tpsprune.runs import RunFolder, digest_of, write_json_atomically
from tpsprune.runs.tensors import save_tensors

__all__ = ["whole"]


def whole(
    recipe: Recipe,
    out: Path,
    *,
    arm: str,
    rule: Rule | None,
    plan: Plan | None = None,
    device: str = "auto",
) -> Iterator[Event]:
    """Train the recipe's model, or its shape as ``plan`` cuts it, into a folder below ``out``.

    ``rule`` may end the schedule; ``None`` is the ticket's own way without the cut: under ``stop.draw`` until
    the ticket would be drawn, then under ``stop.end`` for what its retraining would get (a rewind is left
    out: nothing was cut). Yields what happens, last where the model came to. A run that is broken off is
    not taken up again.

    Raises:
        TpspruneError: as ``train``.
    """
    text = dumps(recipe)
    with Bill(energy.build(recipe.energy, 0), longest_window(recipe)) as bill:
        bill.switch("setup")
        with set_up(recipe, device, cuts=False) as bench:
            folder = RunFolder.create(out, recipe.name, digest_of(f"{text}\nwhole {arm}"), again=True)
            with running_in(folder, text, bill):
                yield from _flow(bench, folder, bill, rule, plan)


def _flow(
    bench: Bench, folder: RunFolder, bill: Bill, rule: Rule | None, plan: Plan | None
) -> Generator[Event, None, None]:
    model = bench.new_model()
    if plan is not None:
        model = bench.execution.place(pruning.replay(model, plan))
        write_json_atomically(folder.plan, plan.to_json())
    first = bench.recipe.stop.draw if rule is None else rule
    state = begun(bench, model, "dense", first)
    if rule is not None:
        state, decision = yield from run_stage(
            bench, folder, bill, state, _course(rule, bench.total_steps, bench.total_steps, "train")
        )
        drawn = None
    else:
        state, drawn = yield from _until_draw(bench, folder, bill, state)
        state, decision = yield from _after_draw(bench, folder, bill, state, drawn)
    yield Decided(decision=replace(decision, kind="stop"))
    bill.switch("weigh")
    figures = _weighed(bench, folder, state.model, is_cut=plan is not None)
    bill.close()
    yield Trained(
        figures=figures,
        stopped=decision,
        drawn_epoch=None if drawn is None else drawn.epoch,
        folder=str(folder.path),
    )


def _until_draw(
    bench: Bench, folder: RunFolder, bill: Bill, state: State
) -> Generator[Event, None, tuple[State, Decision]]:
    stop = bench.recipe.stop
    last_step = max(ceil(stop.draw_by_share * bench.total_steps), 1)
    return (
        yield from run_stage(
            bench,
            folder,
            bill,
            state,
            _course(stop.draw, last_step, bench.total_steps, "train until the draw"),
        )
    )


def _after_draw(
    bench: Bench, folder: RunFolder, bill: Bill, state: State, drawn: Decision
) -> Generator[Event, None, tuple[State, Decision]]:
    """Train on as the ticket would be retrained, or not at all where nothing is left for it."""
    first_step, last_step = retrain_schedule(bench, state.step)
    if first_step >= last_step or budget_used_up(bench, bill) is not None:
        return state, drawn
    end = bench.recipe.stop.end
    state = replace(
        state,
        step=first_step,
        shift=state.shift + state.step - first_step,
        rule=stopping.start(end, chance_accuracy=bench.chance_accuracy, quality=bench.objective.quality),
    )
    return (yield from run_stage(bench, folder, bill, state, _course(end, last_step, last_step, "train on")))


def _course(rule: Rule, last_step: int, total_steps: int, title: str) -> Course:
    return Course(
        phase="train",
        title=title,
        kind="stop",
        rule=rule,
        last_step=last_step,
        total_steps=total_steps,
        deadline="the schedule is at its end",
    )


def _weighed(bench: Bench, folder: RunFolder, model: nn.Module, *, is_cut: bool) -> ModelFigures:
    """Keep the model where its kind lies in a run folder, and weigh it without timing it."""
    save_tensors(folder.ticket if is_cut else folder.dense, model.state_dict(), {})
    return ModelFigures(
        accuracy=bench.score(model, bench.dataset.test).accuracy,
        **asdict(measure.size(model, bench.probe[0])),
        latency_seconds={},
    )
