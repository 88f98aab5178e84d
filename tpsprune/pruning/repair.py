"""Repair of a ticket on the calibration data, without labels: batch-norm statistics, then optimiser steps.

Shape letters: b items.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, item_tensors, sound_backward
from tpsprune.numerics.trees import is_whole, item_count, take_items
from tpsprune.pruning.observations import HELD_OUT, sample_items

TRIAL_ITEMS: Final = 32
STEP_ITEMS: Final = 128
BLOCK_SHARE: Final = 0.3
"""Share of the steps spent on single blocks, before all are fitted together."""
EVALUATIONS: Final = 10
"""How often the items held out are evaluated."""
GRADIENT_NORM: Final = 1.0
ROUNDING: Final = 1e-6
"""Share of an output's size that single precision does not resolve, after a few operations."""


def output_error(model: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> float:
    """Return the mean square difference of two models' outputs, over the variance of the second's.

    Variance is about each output's mean over all items, however they are batched; of outputs that do not vary
    (a single item, or one constant but for rounding) the mean square takes its place.
    """
    return _error(_predict(model, batches), _predict(dense, batches))


def _predict(model: nn.Module, batches: Iterable[Any]) -> Iterator[list[Tensor]]:
    for batch in batches:
        with torch.no_grad(), evaluation_mode(model), fixed_seed():
            outputs = list(item_tensors(call_model(model, batch)))
        # Outside the block: two of these generators alternate, and would restore modes in the wrong order.
        yield outputs


def _error(found: Iterable[list[Tensor]], wanted: Iterable[list[Tensor]]) -> float:
    error = 0.0
    spread: list[_Spread] = []
    for ours, theirs in zip(found, wanted, strict=True):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            error += float((a - b).float().square().sum())
            if place == len(spread):
                spread.append(_Spread(b.float().mean(0)))
            spread[place].add(b.float())
    squares, raw = (sum(each.squares() for each in spread), sum(each.raw for each in spread))
    return error / max(squares if squares > ROUNDING**2 * raw else raw, 1e-30)


class _Spread:
    """Running sums of an output about its first batch's mean."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift
        self.items = 0
        self.sum = torch.zeros_like(shift, dtype=torch.float32)
        self.square = self.raw = 0.0

    def add(self, output: Tensor) -> None:
        self.raw += float(output.square().sum())
        # A last batch of another length (sequences) has no common mean: about its own then.
        if output.shape[1:] != self.shift.shape:
            self.square += float((output - output.mean(0)).square().sum())
            return
        away = output - self.shift
        self.items += len(away)
        self.sum += away.sum(0)
        self.square += float(away.square().sum())

    def squares(self) -> float:
        """Return the sum of squares about the mean of all items."""
        return max(0.0, self.square - float(self.sum.square().sum()) / max(1, self.items))


def recalibrate_norms(ticket: nn.Module, dense: nn.Module, batches: Sequence[Any]) -> tuple[nn.Module, bool]:
    """Return the ticket with batch-norm statistics of the calibration data where its error is lower so.

    Every batch norm that keeps running statistics takes the average over the batches, in one pass; other
    modules remain in evaluation mode. The error is against the dense model's outputs on 32 of the items;
    where statistics of these alone do not lower it, the other items are not used. It does not see what the
    calibration data do not hold.

    Returns:
        The ticket or its recalibrated copy, and whether it is the copy.
    """
    few = [part for part in sample_items(batches, TRIAL_ITEMS, TRIAL_ITEMS) if item_count(part) > 1]
    if not _norms(ticket) or not few:
        return ticket, False
    wanted = list(_predict(dense, few))
    before = _error(_predict(ticket, few), wanted)
    if _error(_predict(_recalibrated_copy(ticket, few), few), wanted) >= before:
        return ticket, False
    recalibrated = _recalibrated_copy(ticket, batches)
    better = _error(_predict(recalibrated, few), wanted) < before
    return (recalibrated, True) if better else (ticket, False)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def _recalibrated_copy(ticket: nn.Module, batches: Sequence[Any]) -> nn.Module:
    other = copy.deepcopy(ticket)
    with torch.no_grad(), evaluation_mode(other), fixed_seed(), _averaging(_norms(other)):
        for batch in (each for each in batches if item_count(each) > 1):
            call_model(other, batch)
    return other


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average what passes, from nothing; momentum and step count are restored afterwards."""
    before = [
        (norm, norm.momentum, norm.num_batches_tracked.clone())
        for norm in norms
        if norm.num_batches_tracked is not None
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum, tracked in before:
        norm.momentum = momentum
        norm.num_batches_tracked = tracked


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One optimiser step: what it worked on (a block's name, or empty for the whole) and its error before.

    ``held_error`` is that of the whole on the items held out, where this step evaluated them. Errors are
    mean squares of the difference to the dense model over the variance of its output.
    """

    step: int
    steps: int
    block: str
    error: float
    held_error: float | None


def repair(
    ticket: nn.Module,
    dense: nn.Module,
    batches: Sequence[Any],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Iterator[RepairStep]:
    """Fit ``ticket`` in place to the outputs of ``dense``, step by step, and leave it at its best.

    First each block is fitted by itself, in the order of the forward pass: from its inputs in the ticket as
    repaired so far to the outputs of the dense model's block. Then all together, to the model's outputs. Each
    stage is Adam with a cosine from ``learning_rate`` to zero, gradients clipped to norm 1. Everything runs
    in evaluation mode: batch-norm statistics are kept, dropout is off. The ticket ends with the weights that
    did best on the items held out, wherever the caller leaves the loop; those it came with are candidates, so
    that there it never ends worse than it began. A step that is no longer finite ends the repair.

    It does not see what the calibration data do not hold, nor any label: it can bring the ticket to the
    accuracy of the dense model, not beyond.

    Args:
        ticket: changed in place, but for what does not require a gradient, and its modes.
        dense: not changed.
        batches: prepared, on the models' device, a few hundred items or more.
        steps: in all.
        learning_rate: Adam's.
        seed: of the items sampled; torch's own generator is neither read nor moved.

    Raises:
        PruneError: no parameter of the ticket requires a gradient, or there is no batch.

    Cost: a step is a pass forward and backward of the ticket and a pass forward of the dense model, with up
    to 128 items; a block's step ends at the block. Ten evaluations of a quarter of the items. Memory: Adam's
    two moments and a copy of the parameters.

    Source: Romero et al. 2015, "FitNets" (arXiv:1412.6550): stage-wise hints, then the whole; Li et al.
    2021, "BRECQ" (arXiv:2102.05426): blocks as the unit to reconstruct.
    """
    trained = [parameter for parameter in ticket.parameters() if parameter.requires_grad]
    if not trained:
        raise PruneError(
            "repair: every parameter of the ticket is frozen; set requires_grad where it may move"
        )
    if not batches:
        raise PruneError("repair: the calibration data are empty; at least one batch is needed")
    generator = torch.Generator().manual_seed(seed)
    fit, held = _hold_out(batches)
    blocks = find_blocks(ticket, dense, fit[0])
    best = [parameter.detach().clone() for parameter in trained]
    done = 0
    with ExitStack() as stack:
        stack.callback(lambda: _copy(best, trained))
        stack.enter_context(evaluation_mode(ticket))
        stack.enter_context(evaluation_mode(dense))
        least = _held_error(ticket, dense, held)
        for block, count in _share_out(steps, blocks):
            part = ticket.get_submodule(block)
            own = [parameter for parameter in part.parameters() if parameter.requires_grad]
            optimizer = torch.optim.Adam(own, lr=learning_rate)
            for step in range(count):
                for each in optimizer.param_groups:
                    each["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / count))
                error = _descend(ticket, dense, _sample(fit, generator), block, own, optimizer)
                done += 1
                found = None
                if done % math.ceil(steps / EVALUATIONS) == 0 or done == steps or step == count - 1:
                    found = _held_error(ticket, dense, held)
                    if found < least:
                        least = found
                        _copy(trained, best)
                yield RepairStep(done, steps, block, error, found)
                if not math.isfinite(error):
                    return


def find_blocks(ticket: nn.Module, dense: nn.Module, batch: Any) -> tuple[str, ...]:
    """Return the blocks that can be fitted one by one, by name, in the order in which they return.

    A block is a module with parts, of which some tensor has lost elements, that is called once and returns
    one tensor, of the same shape as in the dense model: a residual block that lost inner units, for example.
    Of blocks inside one another the innermost count. Where pruning narrowed the output of every block there
    are none.
    """
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    narrowed = [name for name, parameter in ticket.named_parameters() if shapes.get(name) != parameter.shape]
    names = [
        name
        for name, module in ticket.named_modules()
        if name
        and next(module.children(), None) is not None
        and any(n.startswith(f"{name}.") for n in narrowed)
    ]
    with torch.no_grad(), evaluation_mode(ticket), evaluation_mode(dense):
        ours, theirs = _shapes_out(ticket, batch, names), _shapes_out(dense, batch, names)
    fitting = [name for name, found in ours.items() if len(found) == 1 and found == theirs.get(name)]
    return tuple(name for name in fitting if not any(other.startswith(f"{name}.") for other in fitting))


def _shapes_out(model: nn.Module, batch: Any, names: Sequence[str]) -> dict[str, list[torch.Size]]:
    """Return the shapes of each named module's outputs, call by call, in the order of its first return."""
    shapes: dict[str, list[torch.Size]] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                shapes.setdefault(name, []).extend(each.shape for each in item_tensors(out))

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        call_model(model, batch)
    return shapes


class _Reached(Exception):  # noqa: N818 - ends a forward pass where nothing further is needed
    pass


def _descend(
    ticket: nn.Module,
    dense: nn.Module,
    batch: Any,
    block: str,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> float:
    with torch.no_grad():
        aims = _block_outputs(dense, batch, block)
    with torch.enable_grad(), sound_backward(ticket):
        error = _step_error(_block_outputs(ticket, batch, block), aims)
        gradients = torch.autograd.grad(error, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if bool(error.isfinite()):
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return float(error.detach())


def _block_outputs(model: nn.Module, batch: Any, block: str) -> list[Tensor]:
    """Return a block's outputs and end the pass there; an empty name is the whole model."""
    if not block:
        return list(item_tensors(call_model(model, batch)))
    outs: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, out: Tensor) -> None:
        outs.append(out)
        raise _Reached

    handle = model.get_submodule(block).register_forward_hook(stop)
    try:
        call_model(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return outs


def _step_error(found: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
    wrong = torch.stack([(a - b).float().square().sum() for a, b in zip(found, aims, strict=True)]).sum()
    return wrong / max(_squares(aims), 1e-30)


def _squares(aims: Sequence[Tensor]) -> float:
    return sum(float((aim - aim.mean(0)).float().square().sum()) for aim in aims)


def _held_error(ticket: nn.Module, dense: nn.Module, held: Sequence[Any]) -> float:
    wrong = spread = 0.0
    with torch.no_grad():
        for batch in held:
            aims = _block_outputs(dense, batch, "")
            own = _squares(aims)
            wrong += float(_step_error(_block_outputs(ticket, batch, ""), aims)) * max(own, 1e-30)
            spread += own
    error = wrong / max(spread, 1e-30)
    return error if math.isfinite(error) else math.inf


def _share_out(steps: int, blocks: Sequence[str]) -> list[tuple[str, int]]:
    each = int(BLOCK_SHARE * steps / len(blocks)) if blocks else 0
    return [(block, each) for block in blocks if each] + [("", steps - each * len(blocks))]


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for here, there in zip(source, target, strict=True):
            there.copy_(here)


def _sample(fit: Sequence[Any], generator: torch.Generator) -> Any:
    batch = fit[int(torch.randint(len(fit), (), generator=generator))]
    return take_items(batch, torch.randperm(item_count(batch), generator=generator)[:STEP_ITEMS])


def _hold_out(batches: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what to fit and what is held out: some items of every batch, or every fourth whole batch."""
    if len(batches) >= HELD_OUT and any(is_whole(batch) for batch in batches):
        held = batches[HELD_OUT - 1 :: HELD_OUT]
        return [batch for rank, batch in enumerate(batches, start=1) if rank % HELD_OUT], held
    fit, held = zip(*(_split(batch) for batch in batches), strict=True)
    return fit, held


def _split(batch: Any) -> tuple[Any, Any]:
    """Return the items to fit and those held out: the same ones where there are too few to part."""
    items = torch.arange(item_count(batch))
    held = len(items) // HELD_OUT
    return (take_items(batch, items[:-held]), take_items(batch, items[-held:])) if held else (batch, batch)
