"""One training under watch: every signal at every reading, up to generalisation or to the cap."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, get_args

import torch

from tpsprune import pruning, training
from tpsprune.recipe import Recipe
from tpsprune.recipe.task import split_by
from tpsprune.recipe.tps import Tps
from tpsprune.recipe.watch import Signal, Watch
from tpsprune.records import Reading
from tpsprune.signals import Panel, View
from tpsprune.studies.trial import DEVICE, begin, regulariser_of, ticks_of

__all__ = ["Series", "Watched", "WatchedTrial", "run_watched"]

DIGITS: Final = 6
"""Significant digits of a value in the journal."""
Series = tuple[tuple[int, float | None], ...]
"""Steps at which a signal was known, and its values; none where it had no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTrial:
    """A training to be watched: the task by its name in the study, and the seed of all that is random."""

    arm: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A training that was watched: signals of the whole model, and what each cost.

    ``reached_step`` is that of the first reading at the level, none where the cap came first. ``cpu_seconds``
    are the training's own; ``signal_cpu_seconds`` come on top, by signal as a recipe names it.
    """

    trial: WatchedTrial
    steps: int
    steps_per_epoch: int
    reached_step: int | None
    series: Mapping[str, Series]
    cpu_seconds: float
    signal_cpu_seconds: Mapping[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the training as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Watched:
        """Rebuild a training written by ``to_json``."""
        series = {name: tuple((step, value) for step, value in each) for name, each in raw["series"].items()}
        return cls(**{**raw, "trial": WatchedTrial(**raw["trial"]), "series": series})


def run_watched(
    recipe: Recipe, trial: WatchedTrial, *, cap_steps: int, level: float, reading_steps: int
) -> Watched:
    """Train on the processor, read all signals every ``reading_steps``, stop once accuracy is at the level.

    Where tokens are added or multiplied the coherence of TPS ``labels`` is read as well; it moves nothing.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    started = time.monotonic()
    dataset, model = begin(recipe)
    execution = training.Execution.of(recipe.train, DEVICE)
    items = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(recipe.seed))
    items = items[: recipe.watch.probe_items]
    probe, labels = dataset.prepare(dataset.train.inputs[items]), dataset.train.labels[items]
    found = pruning.tensors_by_group(model, pruning.find_groups(model, probe[:2]))
    coherence = None
    if dataset.facts.input_kind == "tokens":
        coherence = regulariser_of(replace(recipe, tps=Tps(variant="labels")), dataset, model, cap_steps)
    watch = Watch(signals=get_args(Signal), probe_items=recipe.watch.probe_items)
    series: dict[str, list[tuple[int, float | None]]] = {}
    spent: dict[str, float] = dict.fromkeys(watch.signals, 0.0)
    cpu_seconds, reached, step, losses = 0.0, None, 0, torch.zeros(())
    with Panel.of(watch, recipe.seed) as panel:
        memories = dict(panel.start())
        resumed = time.process_time()
        for tick in ticks_of(recipe, dataset, model, execution, cap_steps):
            losses += tick.loss
            step = tick.step
            if step % reading_steps:
                continue
            cpu_seconds += time.process_time() - resumed
            score = training.evaluate(
                model,
                dataset.validation.inputs,
                dataset.validation.labels,
                prepare=dataset.prepare,
                execution=execution,
            )
            view = View(
                model=model,
                probe=(probe,),
                labels=(labels,),
                step=step,
                epoch=tick.epoch,
                consumers=found.consumers,
                written=found.written,
                scaled=found.scaled,
            )
            readings = [
                view.reading("train_loss", float(losses) / reading_steps, "nats"),
                view.reading("validation_loss", score.loss, "nats"),
                view.reading("validation_accuracy", score.accuracy, "share"),
            ]
            losses = torch.zeros(())
            for signal in panel.signals:
                before = time.process_time() + panel.worker_cpu_seconds
                memories[signal.name], more = signal.step(memories[signal.name], view)
                spent[signal.name] += time.process_time() + panel.worker_cpu_seconds - before
                readings += more
            if coherence is not None:
                readings += coherence.order_parameters(step=step, epoch=tick.epoch)
            _note(series, step, readings)
            if score.accuracy >= level:
                reached = step
                break
            resumed = time.process_time()
    return Watched(
        trial=trial,
        steps=step,
        steps_per_epoch=training.steps_per_epoch(len(dataset.train), recipe.train),
        reached_step=reached,
        series={name: tuple(points) for name, points in series.items()},
        cpu_seconds=cpu_seconds,
        signal_cpu_seconds=spent,
        seconds=time.monotonic() - started,
    )


def with_task(recipe: Recipe, seed: int, weight_decay: float | None = None, **task: Any) -> Recipe:
    """Return the recipe at a seed, without TPS, with these fields of its data changed."""
    train = recipe.train if weight_decay is None else replace(recipe.train, weight_decay=weight_decay)
    return replace(
        recipe,
        seed=seed,
        task=replace(recipe.task, data=replace(split_by(recipe.task.data, seed), **task)),
        train=replace(train, threads=1),
        tps=Tps(variant="none"),
    )


def _note(series: dict[str, list[tuple[int, float | None]]], step: int, readings: list[Reading]) -> None:
    """Keep what is known of the whole model at a step: loops are known a reading after they were asked."""
    for reading in readings:
        if not reading.group:
            value = None if reading.value is None else float(f"{reading.value:.{DIGITS}g}")
            series.setdefault(reading.signal, []).append((step, value))
