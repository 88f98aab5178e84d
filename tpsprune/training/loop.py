"""The training loop, as a generator of ticks.

The caller's loop body watches, and leaving the loop stops. Only the regulariser's term of the loss, a
function of the step, acts inside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from torch import Tensor, nn

from tpsprune.errors import DivergedError
from tpsprune.numerics.forward import call_model
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.peers import ALONE, AbstractPeers, own_part
from tpsprune.numerics.trees import Tree, at, tensors_of
from tpsprune.recipe.train import Train
from tpsprune.training.adapters import Adapter
from tpsprune.training.device import Execution, augmentation_generator, epoch_order
from tpsprune.training.optimizers import learning_rate_at
from tpsprune.training.shards import ShardedSteps
from tpsprune.training.teacher import Teacher

CHECK_EVERY = 50
"""Steps between two checks of the loss on a device where a check means waiting."""


class Prepare(Protocol):
    """How stored inputs become what the model takes: ``data.Preparation``."""

    def __call__(self, inputs: Tree, draws: Tensor | None = None, /) -> Tree:
        """Return the prepared inputs, augmented with their rows of what was drawn."""

    def draw(self, inputs: Tree, generator: torch.Generator, /) -> Tensor | None:
        """Return the random numbers that augment each of ``inputs``, item first; ``None`` for none."""


class Penalty(Protocol):
    """A term of the loss in addition to the task's.

    Where it shares the forward pass, its graph is that of the forward pass made within ``listening``, and one
    backward pass serves both. Else it has a graph of its own.
    """

    @property
    def shares_forward_pass(self) -> bool:
        """Whether it is of the forward pass."""

    def listening(self) -> AbstractContextManager[None]:
        """Return a context for the forward pass."""

    def penalty(
        self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None
    ) -> Tensor | None:
        """Return the term at a step, or none; ``label_i`` are the batch's labels, ``task_loss`` its loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """One optimiser step, done: ``step`` counts it in; ``loss`` is the task's, detached, on the device."""

    step: int
    epoch: float
    loss: Tensor
    learning_rate: float
    penalty_cpu_seconds: float


def steps_per_epoch(items: int, settings: Train) -> int:
    """Return the optimiser steps of an epoch; an incomplete last batch is dropped."""
    return max(items // batch_items(items, settings), 1)


def count_steps(epochs: float, per_epoch: int) -> int:
    """Return the optimiser steps of so many epochs: the nearest whole number, one at least.

    >>> count_steps(2.5, 7), count_steps(0.01, 7)
    (18, 1)
    """
    return max(round(epochs * per_epoch), 1)


def batch_items(items: int, settings: Train) -> int:
    """Return the items of a batch: never more than there are."""
    return items if settings.batch_size == "full" else min(settings.batch_size, items)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tree,
    labels: Tensor,
    *,
    prepare: Prepare,
    settings: Train,
    execution: Execution,
    seed: int,
    first_step: int,
    last_step: int,
    total_steps: int,
    penalty: Penalty | None = None,
    objective: Objective = CROSS_ENTROPY,
    teacher: Teacher | None = None,
    adapter: Adapter | None = None,
    peers: AbstractPeers = ALONE,
) -> Iterator[Tick]:
    """Train from step ``first_step`` up to ``last_step`` of a schedule over ``total_steps``.

    Each step: the objective's loss (with label smoothing, if any) on one batch, the teacher's part in it, the
    penalty's gradient added, clipping, the optimiser, a tick. With an adapter, its parameters train in the
    place of the model's. Batches and augmentation depend on (seed, step) alone, so that
    a loop begun at any step continues as one that was never interrupted. Both are drawn once an epoch, for
    all of its places, so that a GPU waits for them once an epoch. With ``peers`` of several shards each shard
    of a batch has its own forward and backward pass, and the step is that of their mean (``ShardedSteps``).

    Raises:
        DivergedError: the loss is not finite; names the step and what was not finite. The model is
            left as it is then; the last checkpoint is from before.
        RecipeError: a loss of the user's own raised.
    """
    items = len(labels)
    per_epoch = steps_per_epoch(items, settings)
    batches = shuffled_shards(
        inputs,
        items,
        prepare=prepare,
        execution=execution,
        size=batch_items(items, settings),
        seed=seed,
        first_step=first_step,
        peers=peers,
    )
    sharded = ShardedSteps(model, peers, seed)
    first_bad = torch.full((), -1, dtype=torch.int64, device=labels.device)
    check_every = 1 if execution.device.type == "cpu" else CHECK_EVERY
    model.train()
    trains: nn.Module = model
    if adapter is not None:
        trains = adapter
        adapter.set_modes()
    forward = execution.compiled(model)
    for step in range(first_step, last_step):
        shards = next(batches)
        learning_rate = learning_rate_at(step, total_steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        penalty_seconds = 0.0
        for place, (index, batch) in zip(peers.own_shards, shards, strict=True):
            sharded.begin(step, place)
            with execution.autocasting(), penalty.listening() if penalty else nullcontext():
                output = call_model(forward, batch)
            loss = of_task = objective.loss(output, labels[index], label_smoothing=settings.label_smoothing)
            if teacher is not None:
                loss = teacher.blend(
                    of_task, output, batch, labels[index], objective=objective, execution=execution
                )
            penalty_seconds += _backward(loss, penalty, step, labels[index], parts=peers.shards)
            sharded.add(loss.detach(), of_task.detach())
        loss, of_task = sharded.join(step)
        if adapter is not None:
            adapter.pull_back()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(trains.parameters(), settings.clip_norm)
        first_bad = torch.where((first_bad < 0) & ~torch.isfinite(loss), step, first_bad)
        if (step + 1) % check_every == 0 or step + 1 == last_step:
            _refuse_divergence(int(first_bad), model, batch, per_epoch, learning_rate, peers)
        optimizer.step()
        if adapter is not None:
            adapter.write()
        yield Tick(step + 1, (step + 1) / per_epoch, of_task, learning_rate, penalty_seconds)


def shuffled(
    inputs: Tree,
    items: int,
    *,
    prepare: Prepare,
    execution: Execution,
    size: int,
    seed: int,
    first_step: int = 0,
) -> Iterator[tuple[Tensor, Tree]]:
    """Yield, step by step and without end, the places of the items of a batch and the batch, augmented.

    Both depend on (seed, step) alone. An epoch's order and random numbers are drawn at its beginning, for all
    of its batches; an incomplete last batch is dropped.
    """
    batches = shuffled_shards(
        inputs, items, prepare=prepare, execution=execution, size=size, seed=seed, first_step=first_step
    )
    return (whole for (whole,) in batches)


def shuffled_shards(
    inputs: Tree,
    items: int,
    *,
    prepare: Prepare,
    execution: Execution,
    size: int,
    seed: int,
    first_step: int = 0,
    peers: AbstractPeers = ALONE,
) -> Iterator[list[tuple[Tensor, Tree]]]:
    """Yield of each batch of ``shuffled`` the shards of this process; the batch holds a multiple of them."""
    per_epoch, part = max(items // size, 1), size // peers.shards
    device = next(tensors_of(inputs)).device
    order, draws, order_epoch = torch.empty(0), None, -1
    for step in count(first_step):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(items, seed, epoch).to(device), epoch
            draws = prepare.draw(inputs, augmentation_generator(seed, epoch))
            draws = None if draws is None else draws.to(device)
        shards = []
        for place in peers.own_shards:
            first = position * size + place * part
            places = slice(first, first + part)
            index = order[places]
            batch = prepare(at(inputs, index), None if draws is None else draws[places])
            shards.append((index, execution.arrange(batch)))
        yield shards


def _backward(loss: Tensor, penalty: Penalty | None, step: int, label_i: Tensor, *, parts: int) -> float:
    """Give the parameters the gradients of loss and penalty; return the penalty's processor seconds.

    Both are divided by ``parts``, of which this is one.

    A penalty with a graph of its own gets a backward pass of its own: the sum of gradients is the gradient
    of the sum, and so its cost can be measured apart from the model's. One that shares the forward pass has
    been computed by then, but for an addition.
    """
    if penalty is None or not penalty.shares_forward_pass:
        _share_of(loss, parts).backward()  # type: ignore[no-untyped-call]
    if penalty is None:
        return 0.0
    started = time.process_time()
    term = penalty.penalty(step, label_i, loss.detach())
    if term is not None and not penalty.shares_forward_pass:
        _share_of(term, parts).backward()  # type: ignore[no-untyped-call]
    penalty_seconds = time.process_time() - started
    if penalty.shares_forward_pass:
        _share_of(loss if term is None else loss + term, parts).backward()  # type: ignore[no-untyped-call]
    return penalty_seconds


def _share_of(loss: Tensor, parts: int) -> Tensor:
    return loss if parts == 1 else loss / parts


def _refuse_divergence(
    step: int, model: nn.Module, batch: Tree, per_epoch: int, learning_rate: float, peers: AbstractPeers
) -> None:
    if step < 0:
        return
    place = f"step {step + 1} (epoch {(step + 1) / per_epoch:.2f})"
    own = [name for name, p in model.named_parameters() if not torch.isfinite(own_part(p)).all()]
    found = {name for each in peers.gather(own) for name in each}
    broken = [name for name, _ in model.named_parameters() if name in found]
    if not all(bool(torch.isfinite(each).all()) for each in tensors_of(batch)):
        cause = "the inputs of that batch hold values that are not finite: check the data"
    elif broken:
        cause = (
            f"the weights left the finite numbers first ('{broken[0]}', {len(broken)} tensors in all); "
            f"lower train.learning_rate (here {learning_rate:.3g}) or tps.coupling, or set train.clip_norm"
        )
    else:
        cause = (
            "weights and inputs are finite, the model's scores overflowed; "
            f"lower train.learning_rate (here {learning_rate:.3g}) or set train.clip_norm"
        )
    raise DivergedError(f"the loss is not finite at {place}: {cause}")
