"""The ticket's opponents at equal cost: their shapes, what a step of each costs, and the steps that buys.

A run that a budget cuts off has not annealed its learning rate, and is no opponent. So the number of steps is
fitted before the run begins, and the whole schedule, warm-up and annealing included, is stretched or
compressed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import fsum
from pathlib import Path
from typing import Final

from torch import nn

from tpsprune import energy, pruning
from tpsprune.errors import PruneError, RunFolderError
from tpsprune.loop.meter import Meter
from tpsprune.pipeline.stage import StageSettings, train_steps
from tpsprune.pipeline.workbench import Workbench, set_up
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.compare import EQUAL_COST, SHORTER_SCHEDULE, SHORTER_TUNING, TRANSFERRED
from tpsprune.recipe.prune import Macs
from tpsprune.recipe.stop import NoRule
from tpsprune.records import ArmRun, EnergyClass, StepSpan, Window
from tpsprune.runs import RunFolder, read_json, read_result
from tpsprune.training import Tick

OTHER_PHASES: Final = ("setup", "benchmark")
"""What every run pays whatever it trains: no part of the cost that opponents are given."""
FEWEST_STEPS, MOST_STEPS = 25, 150
TIMED_SHARE: Final = 0.25
"""Part of the schedule that is timed in each turn, within those bounds."""
WARM_UP_STEPS: Final = 3
ROUNDING: Final = 1e-6
"""Share of the MACs by which uniform widths may seem to cost more than the ticket's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketFacts:
    """What the ticket's run of a pair has found, for the arms that depend on it.

    ``cost`` is that of training, readings, pruning and evaluation, in joules, or in seconds where joules are
    assumed watts times seconds, or there are none.
    """

    plan: Plan | None
    widths: dict[str, int]
    epochs: float
    macs_share: float
    cost: float

    @classmethod
    def all_of(cls, run: ArmRun, root: Path) -> tuple[TicketFacts, ...]:
        """Read them from the folders, below ``root``, of what a run left: one ticket, or one of each size.

        The cost of each size is that of the whole run.

        Raises:
            RunFolderError: a folder is missing, or something in it is.
        """
        cost = cost_of(windows_to_match(run.windows))
        folders = [RunFolder(root / each) for each in ([size.folder for size in run.sizes] or [run.folder])]
        for folder in folders:
            if not folder.path.is_dir():
                raise RunFolderError(
                    f"{folder.path} is missing, and arms of pair {run.pair + 1} need the {run.arm} in it: "
                    "restore it, or begin again with another --out"
                )
        if run.arm in TRANSFERRED:  # Its opponent has the dense shape, and needs the cost alone.
            return (cls(plan=None, widths={}, epochs=run.epochs or 0.0, macs_share=1.0, cost=cost),)
        if not run.sizes:
            return (cls.read(folders[0], cost),)
        return tuple(
            cls(
                plan=(plan := Plan.from_json(read_json(folder.plan))),
                widths={group.name: len(group.kept) for group in plan.groups},
                epochs=run.epochs or 0.0,
                macs_share=each.size,
                cost=cost,
            )
            for each, folder in zip(run.sizes, folders, strict=True)
        )

    @classmethod
    def read(cls, folder: RunFolder, cost: float) -> TicketFacts:
        """Read it from a run's folder, at a cost that the caller knows.

        Raises:
            RunFolderError: something in the folder is missing or damaged.
        """
        outcome = read_result(folder.result)
        return cls(
            plan=Plan.from_json(read_json(folder.plan)),
            widths={each.group: each.width_after for each in outcome.groups if each.kind != "rank"},
            epochs=outcome.stopped.epoch,
            macs_share=outcome.macs_share,
            cost=cost,
        )


def windows_to_match(windows: Iterable[Window]) -> list[Window]:
    """Return the windows whose cost opponents are given: without set-up, one compilation, the benchmark."""
    found = [window for window in windows if window.phase not in OTHER_PHASES]
    compiled = next((window for window in found if window.phase == "compile"), None)
    return [window for window in found if window is not compiled]


def cost_of(windows: Iterable[Window]) -> float:
    """Return the joules of windows; their seconds where joules follow from those, or nothing was metered.

    Assumed watts times seconds orders runs as seconds do, and a sum of several constants only adds rounding.
    """
    found = tuple(windows)
    joules = [window.total_joules for window in found]
    assumed = {EnergyClass.CONSTANT, EnergyClass.NONE}
    if None in joules or all(set(window.classes.values()) <= assumed for window in found):
        return fsum(window.seconds for window in found)
    return fsum(each for each in joules if each is not None)


def plan_shape(arm: str, bench: Workbench, ticket: TicketFacts) -> Plan | None:
    """Return the plan that makes an arm's shape of the recipe's model; ``None`` for the dense one.

    ``uniform-joules`` keeps one share of the units of every group: the largest that costs no more
    multiply-accumulates than the ticket, in multiples of ``prune.round_to``.

    Raises:
        PruneError: no uniform widths cost as little as the ticket.
    """
    if arm in (*SHORTER_SCHEDULE, *SHORTER_TUNING):
        return None
    return _plan_uniform(bench, ticket.macs_share) if arm == "uniform-joules" else ticket.plan


def _plan_uniform(bench: Workbench, macs_share: float) -> Plan:
    settings = replace(
        bench.recipe.prune,
        target=Macs(min(macs_share + ROUNDING, 1.0 - ROUNDING)),
        widths="uniform",
        units="random",
        compensate=False,
        reconstruct=False,
        recalibrate=False,
        repair=False,
    )
    model = bench.new_model(fill=False)
    return pruning.extract(model, bench.watch_batches[:1], settings, seed=bench.recipe.seed).plan


def measure_steps(
    arms: Sequence[str], recipe: Recipe, pair: int, ticket: TicketFacts, device: str
) -> Iterator[StepSpan]:
    """Yield what some training steps of the shape of each arm take: arms by turns, then in reversed order.

    ``recipe`` is the dense arm's, at the pair's seed. The models are thrown away. An arm whose shape is out
    of reach is left out: its run says why. What is measured is charged to no arm.

    Cost: a quarter of a training for each arm, and no more than 300 steps.
    """
    with set_up(recipe, device, prunes=False) as bench, Meter(energy.build(recipe.energy, 0)) as meter:
        timed = min(max(round(TIMED_SHARE * bench.total_steps), FEWEST_STEPS), MOST_STEPS)
        models: dict[str, nn.Module] = {}
        for arm in arms:
            try:
                models[arm] = _new_model(arm, bench, ticket)
            except PruneError:
                continue
        for arm in (*models, *reversed(models)):
            ticks = _train_steps(bench, models[arm], WARM_UP_STEPS + timed)
            for _ in islice(ticks, WARM_UP_STEPS):
                pass
            with meter.window(f"steps of {arm}") as span:
                for _ in ticks:
                    pass
            yield StepSpan(arm=arm, seed=recipe.seed, pair=pair, steps=timed, window=span.window)


def _new_model(arm: str, bench: Workbench, ticket: TicketFacts) -> nn.Module:
    plan = plan_shape(arm, bench, ticket)
    model = bench.new_model(fill=False)
    return model if plan is None else bench.execution.place(pruning.replay(model, plan))


def _train_steps(bench: Workbench, model: nn.Module, steps: int) -> Iterator[Tick]:
    settings = StageSettings(
        phase="train", title="", rule=NoRule(), last_step=steps, total_steps=bench.total_steps
    )
    return train_steps(bench, bench.begin(model, "dense", NoRule()), settings)


def fit_epochs(
    arm: str,
    spans: Sequence[StepSpan],
    ticket: TicketFacts,
    steps_per_epoch: int,
    cost_of: Callable[[Iterable[Window]], float] = cost_of,
) -> float:
    """Return the epochs whose steps cost what the ticket's run did: cost · Σ steps / Σ cost of the spans.

    Where an arm has a shape for each size, a step is one of each: all of them train for so many epochs.
    ``cost_of`` is what the ticket's cost was counted by, as ``cpu_seconds_of``. Setting up, a compilation,
    the benchmark and the one evaluation at an opponent's end are on neither side.

    Raises:
        PruneError: no step of the arm was measured, since its shape is out of reach.
    """
    shapes: dict[str, list[StepSpan]] = {}
    for span in spans:
        if span.arm.partition("/")[0] == arm:
            shapes.setdefault(span.arm, []).append(span)
    if not shapes:
        raise PruneError(f"'{arm}' has no shape of the ticket's cost: {', '.join(EQUAL_COST)} need one")
    step_cost = fsum(
        cost_of(span.window for span in mine) / sum(span.steps for span in mine) for mine in shapes.values()
    )
    return max(round(ticket.cost / step_cost), 1) / steps_per_epoch
