"""What a run works with: data, signals and how to compute; the folder it writes to; the ledger it charges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from tpsprune import data, energy, models, pruning, stopping, tps, training
from tpsprune.data import Dataset
from tpsprune.errors import CannotWriteError, DivergedError, PeersError, RunFolderError, VariantError
from tpsprune.loop.meter import MAX_WINDOW_SECONDS, Ledger, Meter
from tpsprune.numerics.objective import Objective
from tpsprune.numerics.offload import OffloadStore
from tpsprune.numerics.peers import ALONE, AbstractPeers, Alone
from tpsprune.numerics.trees import Tree, at, join_items, map_tensors, random_inputs, split_evenly
from tpsprune.pipeline.load import describe_initial_weights
from tpsprune.pipeline.state import Clock, Stage, State
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Joules
from tpsprune.recipe.stop import Rule, Stop
from tpsprune.records import Cost, TaskFacts, Window
from tpsprune.runs import Journal, RunFolder, sweep, write_text_atomically
from tpsprune.signals import Panel
from tpsprune.stopping import Memory
from tpsprune.training import Execution, Score

BATCH_ITEMS = 256
"""At most so many items of calibration data go through the model at once."""
BUDGET_WINDOW_SECONDS = 2.0

Calibration = tuple[tuple[Tree, ...], tuple[Tensor, ...], tuple[Tensor, ...]]
"""Batches of calibration data, their labels, and their places in the training split."""


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """Set up once from a recipe and not changed thereafter: data on the device, signals, how to compute.

    ``watch_batches`` are the calibration data of the signals, ``prune_batches`` those that pruning chooses
    and compensates on, ``prune_places`` where these are in the training split. There are none where they are
    to be made up, which takes a trained model (``calibrated``).
    """

    recipe: Recipe
    dataset: Dataset
    execution: Execution
    objective: Objective
    watch_batches: tuple[Tree, ...]
    watch_labels: tuple[Tensor, ...]
    prune_batches: tuple[Tree, ...]
    prune_labels: tuple[Tensor, ...]
    prune_places: tuple[Tensor, ...]
    panel: Panel
    initial_weights: str = ""
    """A description of the weights that the model begins with, where they are not initialised."""
    peers: AbstractPeers = ALONE
    """The processes that work on the run."""
    calibration_note: str = ""
    """What the user should know of calibration data that were made up."""
    store: OffloadStore | None = None
    """Where the first process has whole models of a run that is spread, if not in memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.panel.close()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return training.steps_per_epoch(len(self.dataset.train), self.recipe.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole budget."""
        return training.count_steps(self.recipe.train.epochs, self.steps_per_epoch)

    @property
    def reading_steps(self) -> int:
        """Steps between two readings."""
        watch = self.recipe.watch
        return watch.every_steps or (watch.every_epochs or 1) * self.steps_per_epoch

    @property
    def chance_accuracy(self) -> float:
        """Accuracy of guessing: of classes, as if they were equally common; else as ``Objective`` has it."""
        return self.objective.chance(self.dataset.train.labels, self.dataset.facts.classes)

    @property
    def is_spread(self) -> bool:
        """Whether each process holds a part of every weight."""
        return self.recipe.train.spread == "shard"

    @property
    def cuts_on_disk(self) -> bool:
        """Whether whole models of a run that is spread lie in files."""
        return self.is_spread and self.recipe.prune.gather != "host"

    def holding_whole(self) -> AbstractContextManager[None]:
        """Return a block in which a spread run's whole models are made and used, by the first process."""
        return _holding(self.store)

    def first(self, make: Callable[[], Any]) -> Any:
        """Return what the first process alone computes of whole models; as ``peers.first``."""

        def holding() -> Any:
            with self.holding_whole():
                return make()

        return self.peers.first(holding)

    def new_model(self, *, fill: bool = True) -> nn.Module:
        """Build the model as it is before the first step: equal at equal seeds.

        With ``fill=False`` the weights that the recipe names are not read: the caller fills it. Of a run that
        is spread, it is in the first process's host memory or files, and without numbers in the others.
        """
        torch.manual_seed(self.recipe.seed)
        model = build_whole(self.recipe, self.dataset.facts, self.peers, self.store, fill=fill)
        return model if self.is_spread else self.execution.place(model)

    @property
    def has_numbers(self) -> bool:
        """Whether a new model has its numbers in this process."""
        return not self.is_spread or self.peers.is_first

    def place(self, model: nn.Module) -> nn.Module:
        """Have a model where it trains: on the device, or spread over the processes' devices."""
        if not self.is_spread:
            return self.execution.place(model)
        if training.is_spread(model):
            return model
        return training.spread_out(model, self.execution.device, self.peers)

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a model's whole tensors; of one that is spread, in the first process alone."""
        held = model.state_dict()
        return training.gather(held, self.peers, self.holding_whole) if self.is_spread else held

    def on_host(self) -> Self:
        """Return the workbench with its data in host memory."""
        execution = Execution.of(self.recipe.train, torch.device("cpu"))
        held = ("watch_batches", "watch_labels", "prune_batches", "prune_labels", "prune_places")
        moved = {name: map_tensors(getattr(self, name), lambda each: each.cpu()) for name in held}
        return replace(self, execution=execution, dataset=self.dataset.to(execution.device), **moved)

    def calibrated(self, model: nn.Module) -> Self:
        """Return the workbench with calibration data for pruning a model: made up where they are to be."""
        if self.recipe.prune.calibration == "data" or self.prune_batches:
            return self
        like = self.execution.arrange(random_inputs(self.dataset.facts, 2))
        like = map_tensors(like, lambda each: each.to(self.execution.device))
        items = min(pruning.MOST_ITEMS, self.recipe.prune.calibration_items)
        made = pruning.synthesize(model, like, items, seed=self.recipe.seed)
        return replace(self, prune_batches=made.batches, calibration_note=made.note)

    def new_regulariser(self, model: nn.Module) -> tps.Regulariser | None:
        """Bind the recipe's TPS to ``model``; ``None`` where there is none, as of a model that is spread."""
        if training.is_spread(model):
            return None
        return tps.build(
            self.recipe.tps,
            model,
            self.dataset.facts,
            train_inputs=self.dataset.train.inputs,
            train_labels=self.dataset.train.labels,
            total_steps=self.total_steps,
            calibration=(join_items(self.watch_batches), torch.cat(self.watch_labels)),
        )

    def start_rule(self, rule: Rule) -> Memory:
        """Return the memory of a rule before its first reading."""
        return stopping.start(rule, chance_accuracy=self.chance_accuracy, quality=self.objective.quality)

    def begin(self, model: nn.Module, stage: Stage, rule: Rule) -> State:
        """Return the state at step 0: a new optimiser and regulariser, signals and a rule without a past."""
        return State(
            stage=stage,
            step=0,
            shift=0,
            model=model,
            optimizer=training.make_optimizer(model, self.recipe.train),
            regulariser=self.new_regulariser(model),
            signals=self.panel.start(),
            rule=self.start_rule(rule),
            clock=Clock(),
            lines=(0, 0),
        )

    def score(self, model: nn.Module, split: data.Split) -> Score:
        """Evaluate ``model`` on one split."""
        return training.evaluate(
            model,
            split.inputs,
            split.labels,
            prepare=self.dataset.prepare,
            execution=self.execution,
            objective=self.objective,
            peers=self.peers,
        )


def set_up(
    recipe: Recipe,
    device_name: str,
    *,
    prunes: bool = True,
    peers: AbstractPeers = ALONE,
    store: OffloadStore | None = None,
) -> Workbench:
    """Load the data, fix the process, sample calibration data; build once what could be refused.

    Where nothing ``prunes`` the model, the target is not checked on it and no calibration data is sampled
    for pruning: a model that is only trained pays for neither. ``store``: where the first process has whole
    models of a run that is spread, if not in memory.

    Raises:
        TpspruneError: anything the recipe requests is not available here. Nothing is written by then.
    """
    device = training.choose_device(device_name)
    training.prepare_process(recipe.train, recipe.seed, device)
    if recipe.train.compile:
        training.require_compiler(device)
    objective = Objective.of(recipe.task.loss, recipe.train.temperature)
    dataset = data.load(recipe.task.data, recipe.task.loss).to(device)
    spreads = recipe.train.spread == "shard"
    if spreads and isinstance(peers, Alone):
        raise PeersError(
            "train.spread = 'shard' spreads the model over processes that a launcher starts: "
            "'torchrun --nproc-per-node=N -m tpsprune train RECIPE'; no other command does"
        )
    model = build_whole(recipe, dataset.facts, peers, store)
    execution = Execution.of(recipe.train, device, model)
    watch = _sample_calibration(recipe.seed, dataset, execution, recipe.watch.calibration_items)
    prune: Calibration = ((), (), ())
    if prunes and recipe.prune.calibration == "data":
        items = recipe.prune.calibration_items
        prune = _sample_calibration(recipe.seed, dataset, execution, items, peers.shards)
    panel = Panel.of(recipe.watch, recipe.seed, peers, spread=spreads)
    weights = describe_initial_weights(recipe)
    bench = Workbench(
        recipe, dataset, execution, objective, *watch[:2], *prune, panel, weights, peers, store=store
    )
    _check_shards(bench)
    if spreads:
        training.check_spread(model)
        bench.first(lambda: _check(replace(bench.on_host(), peers=ALONE), model, prunes=prunes))
    else:
        _check(bench, execution.place(model), prunes=prunes)
    return bench


def build_whole(
    recipe: Recipe,
    facts: TaskFacts,
    peers: AbstractPeers,
    store: OffloadStore | None = None,
    *,
    fill: bool = True,
) -> nn.Module:
    """Build a recipe's model; of one that is to be spread, without numbers but in the first process.

    There it lies in the files of a ``store``, where there is one.

    Raises:
        TpspruneError: as ``models.build``; in all processes.
    """
    if recipe.train.spread != "shard":
        return models.build(recipe.task.model, facts, fill=fill)

    def build() -> nn.Module:
        with training.without_numbers(peers), _holding(store):
            return models.build(recipe.task.model, facts, fill=fill and peers.is_first)

    return peers.together(build)


def _holding(store: OffloadStore | None) -> AbstractContextManager[None]:
    return nullcontext() if store is None else store.active()


def _check(bench: Workbench, model: nn.Module, *, prunes: bool) -> None:
    """Refuse what does not fit a model, whole and on the bench's device.

    Raises:
        TpspruneError: as ``set_up``.
    """
    dataset, recipe = bench.dataset, bench.recipe
    few = slice(0, 8)
    models.check_fits(
        model,
        bench.execution.arrange(dataset.prepare(at(dataset.train.inputs, few))),
        dataset.train.labels[few],
        dataset.facts.classes,
        bench.objective,
    )
    if bench.new_regulariser(model) is not None and bench.is_spread:
        raise VariantError(
            "tps.variant = 'auto' is 'labels' here, which is not done yet with train.spread = 'shard'; "
            "use tps.variant = 'none'"
        )
    if prunes:
        few_items = map_tensors(bench.watch_batches[0], lambda each: each.to(bench.execution.device))
        pruning.check_target(model, few_items, recipe.prune)
        if recipe.retrain.adapter != "none":
            training.find_adapted(model, recipe.retrain.adapter)


def _check_shards(bench: Workbench) -> None:
    """Refuse batches that cannot be cut into equal shards, and a target that one process alone can meter.

    Raises:
        PeersError: names what to use instead.
    """
    shards, target = bench.peers.shards, bench.recipe.prune.target
    if bench.peers.size > 1 and bench.recipe.energy.tracking == "process":
        raise PeersError(
            "energy.tracking = 'process' sees one of the processes of this run; use 'machine', or one process"
        )
    if bench.peers.size > 1 and isinstance(target, Joules):
        raise PeersError(
            f"prune.target {target} is metered in one process alone: start it plainly, or use macs"
        )
    size = training.batch_items(len(bench.dataset.train), bench.recipe.train)
    if size % shards:
        fitting = [str(each) for each in (size - size % shards, size - size % shards + shards) if each]
        raise PeersError(
            f"batches of {size} items (train.batch_size) do not divide into {shards} shards: "
            f"use {' or '.join(fitting)}"
        )


def _sample_calibration(
    seed: int, dataset: Dataset, execution: Execution, items: int, shards: int = 1
) -> Calibration:
    """Return batches of training items, their labels and places, sampled once, without augmentation.

    There are as many for each shard.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(dataset.train), generator=generator)[:items]
    index = index.to(execution.device)
    inputs = execution.arrange(dataset.prepare(at(dataset.train.inputs, index)))
    # Equal parts: a last batch of one item would stop a batch norm over vectors.
    parts = shards * ceil(len(index) / BATCH_ITEMS / shards)
    labels = dataset.train.labels[index]
    return split_evenly(inputs, parts), labels.tensor_split(parts), index.tensor_split(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run under way: what it computes with, where it writes, and what it charges."""

    bench: Workbench
    folder: RunFolder
    ledger: Ledger
    processes: Mapping[str, Any] = field(default_factory=dict)
    """How many processes worked on it, and in how many shards, where there is more than one of these."""

    @property
    def has_budget(self) -> bool:
        """Whether ``[stop]`` has a hard budget."""
        return has_budget(self.bench.recipe.stop)

    def find_budget_end(self) -> str | None:
        """Return as a sentence which hard budget is used up, by the books of the first process."""
        found: str | None = self.bench.peers.first(self.explain_budget) if self.has_budget else None
        return found

    def explain_budget(self) -> str | None:
        """Return the same by this process's books."""
        return explain_budget_end(self.bench.recipe.stop, self.ledger.total)

    @contextmanager
    def writing(self, recipe_text: str) -> Iterator[Self]:
        """Lock the folder, keep recipe and ledger in it; a fault names what is kept and how to resume."""
        with self.folder.locked():
            try:
                if not self.folder.recipe.is_file():
                    write_text_atomically(self.folder.recipe, recipe_text)
                self.ledger.keep_in(self.folder.energy)
                yield self
            except CannotWriteError as error:
                raise CannotWriteError(f"{error}, then resume with --resume") from error
            except DivergedError as error:
                kept = f"readings and the last checkpoint are kept in {self.folder.path}"
                raise DivergedError(f"{error}; {kept}") from error


def has_budget(stop: Stop) -> bool:
    """Return whether there is a hard budget."""
    return stop.budget_seconds is not None or stop.budget_joules is not None


def explain_budget_end(stop: Stop, spent: Cost) -> str | None:
    """Return as a sentence which hard budget of ``[stop]`` is used up; ``None`` while there is some left."""
    if stop.budget_seconds is not None and spent.seconds >= stop.budget_seconds:
        return f"the budget of {stop.budget_seconds:g} s is used up ({spent.seconds:.1f} s spent)"
    if stop.budget_joules is not None and (spent.joules or 0.0) >= stop.budget_joules:
        return f"the budget of {stop.budget_joules:g} J is used up ({spent.joules:.1f} J spent)"
    return None


@contextmanager
def set_up_metered(
    recipe: Recipe,
    device: str,
    earlier: Journal | None = None,
    *,
    prunes: bool = True,
    peers: AbstractPeers = ALONE,
    store: OffloadStore | None = None,
) -> Iterator[tuple[Workbench, Ledger]]:
    """Set up within the window ``setup`` of a ledger; ``earlier`` has those of the attempts before.

    Where ``[stop]`` has a budget, windows are split often: it is checked whenever one closes.

    Raises:
        TpspruneError: as ``set_up``, and where nothing can be metered as requested.
    """
    attempt = 0
    if earlier is not None:
        windows = earlier.parsed(Window)
        attempt = 1 + max((window.attempt for window in windows), default=0)
    longest = BUDGET_WINDOW_SECONDS if has_budget(recipe.stop) else MAX_WINDOW_SECONDS
    settings = recipe.energy if peers.is_first_of_node else replace(recipe.energy, meter="none")
    meter = peers.together(lambda: Meter(energy.build(settings, attempt)))
    with Ledger(meter, longest, peers) as ledger:
        ledger.switch("setup")
        with peers.together(lambda: set_up(recipe, device, prunes=prunes, peers=peers, store=store)) as bench:
            yield bench, ledger


def find_unfinished(out: Path, name: str, digest: str) -> RunFolder:
    """Return the unfinished run of this digest below ``out``.

    Raises:
        RunFolderError: there is none, or it is finished.
    """
    folder = RunFolder.find(out, name, digest)
    if folder.is_finished:
        sweep(folder.path)
        raise RunFolderError(
            f"{folder.path} is finished, there is nothing to resume: read it with "
            f"'tpsprune show {folder.path}', or run the recipe once more with --again"
        )
    return folder
