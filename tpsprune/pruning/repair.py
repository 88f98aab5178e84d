"""Repair of a ticket without labels: optimiser steps towards the dense model's outputs and inner states."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError, first_line
from tpsprune.numerics.forward import HALF_PRECISION, evaluation_mode, sound_backward
from tpsprune.numerics.trees import (
    WithCalls,
    is_whole,
    item_count,
    join_items,
    map_tensors,
    take_items,
    tensors_of,
)
from tpsprune.pruning.extract import Extraction
from tpsprune.pruning.inner_states import Aims, call_keeping, find_aims
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.recalibration import running_norms
from tpsprune.pruning.surgery import KeptElements, elements_kept
from tpsprune.recipe.prune import Prune

STEP_ITEMS: Final = 64
MOST_STEPS: Final = 200
PASSES: Final = 12
"""How often a repair on few calibration data sees each of its items."""
LEAST_NORM_ITEMS: Final = 16
"""Batch norms take the statistics of batches of at least so many items; those of fewer say too little."""
LEARNING_RATE: Final = 3e-3
"""Where it helps a fifth of it brings less. Error on items held out, a quarter of the operations left: bytes
0.309 as cut, 0.117 at this rate, 0.143 at a fifth; CREPE 0.283, 0.056, 0.109; but MiniLM 0.401, 0.365, 0.325.
A trial of a tenth of the steps does not tell them apart: after it bytes were further off than MiniLM."""
ENOUGH: Final = 0.8
LOWER: Final = 1 / 5
MOST_RETRIES: Final = 2
WARMUP_SHARE: Final = 0.1
EVALUATIONS: Final = 10
"""How often the items held out are evaluated."""
GRADIENT_NORM: Final = 5.0
MOST_ROUNDS: Final = 20
LEAST_GAIN: Final = 0.02
"""A round that brings less ends a repair of quality ``best``."""
NORM_MOMENTUM: Final = 0.1
WORSE_WITH_BATCH: Final = 2.0
"""Batch norms keep their statistics where those of a batch give more than so many times the error."""

Fresh: TypeAlias = Callable[[int, int], Iterator[Any]]
"""From the items of a batch and a seed to batches without end."""


def repair_ticket(
    extraction: Extraction,
    dense: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    *,
    steps: int,
    fresh: Fresh | None = None,
    seed: int = 0,
) -> Generator[RepairStep, None, Extraction]:
    """Repair the ticket of an extraction in place: once, or with quality ``best`` for as long as it helps.

    Rounds of ``steps`` follow one another then, until one lowers the error on the items held out by less than
    2 %. A ticket that cannot be repaired (frozen, without a gradient) is left as it is.

    Returns:
        The extraction with a note: what the repair brought, or why there was none.
    """
    kept = elements_kept(extraction.plan.shapes, extraction.plan.groups)
    done, first, least = 0, math.inf, math.inf
    while True:
        before, begun = least, done
        rounds = repair(
            extraction.ticket,
            dense,
            batches,
            steps=steps,
            kept=kept,
            learning_rate=None if settings.repair_learning_rate == "auto" else settings.repair_learning_rate,
            # Steps that the user set are all that there are.
            retries=MOST_RETRIES if settings.repair_steps == "auto" else 0,
            fresh=fresh,
            activation_gib=settings.activation_gib,
            seed=seed + begun,
        )
        try:
            for each in rounds:
                done = begun + each.step
                if each.held_error is not None:
                    least = min(least, each.held_error)
                if done == 0:
                    first = before = least
                yield replace(each, step=done, steps=begun + each.steps)
        except PruneError as error:
            return _noted(extraction, f"the ticket was not repaired: {error}")
        if settings.quality != "best" or done >= MOST_ROUNDS * steps or least >= (1 - LEAST_GAIN) * before:
            break
    more = "" if settings.quality == "best" else "; quality = 'best' goes on for as long as that brings 2%"
    what = "the error of its outputs on calibration data held out"
    if not least < first:
        return _noted(extraction, f"{done} steps of repair did not lower {what}: the ticket is as it was cut")
    return _noted(extraction, f"{done} steps of repair lowered {what} from {first:.3g} to {least:.3g}{more}")


def note_no_repair(extraction: Extraction, settings: Prune) -> Extraction:
    """Return the extraction with a note where a lower quality left out the repair."""
    if settings.calibration == "synthetic":
        return extraction
    if settings.quality != "fast" or settings.repair != "auto" or settings.repair_steps != "auto":
        return extraction
    return _noted(extraction, "the ticket was not repaired (quality = 'fast'); 'balanced' distils it")


def _noted(extraction: Extraction, note: str) -> Extraction:
    return replace(extraction, notes=(*extraction.notes, note))


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One optimiser step, or the beginning (step 0): the error of outputs and states on its items before it.

    ``held_error`` is that of the outputs on the items held out, where this step evaluated them. Errors are
    mean squares of the difference to the dense model over the variance of its output.
    """

    step: int
    steps: int
    error: float
    held_error: float | None


def repair(
    ticket: nn.Module,
    dense: nn.Module,
    batches: Sequence[Any],
    *,
    steps: int,
    kept: KeptElements | None = None,
    learning_rate: float | None = None,
    retries: int = MOST_RETRIES,
    fresh: Fresh | None = None,
    activation_gib: float = 1.5,
    seed: int = 0,
) -> Iterator[RepairStep]:
    """Fit ``ticket`` in place to ``dense``, step by step, and leave it at its best.

    A step lowers E (a − b)² / var b of the outputs, b those of the dense model, plus the mean of the same
    over inner states: what layers give, at the units that are kept, and what blocks that kept their outputs
    give. Adam, with a linear warm-up over a tenth of the steps and a cosine to zero, gradients clipped to
    norm 5. Batch norms take the statistics of the batches and update their running ones, unless these take
    the ticket away from the dense model (calibration data unlike the training's, or few of them); everything
    else is in evaluation mode, dropout off. The ticket ends with the weights and statistics that did best on
    the items held out, wherever the caller leaves the loop; those it came with are candidates, so that there
    it never ends worse than it began. Where all steps together lower that error by less than a fifth they
    are taken again from the start, at a fifth of the rate; and once more where they do not lower it at all. A
    rate that is given is kept.

    It does not see what the batches do not hold, nor any label: it can bring the ticket to the accuracy of
    the dense model, not beyond.

    Args:
        ticket: changed in place, but for what does not require a gradient, and its modes.
        dense: not changed.
        batches: prepared, on the models' device, a few hundred items or more; a quarter is held out.
        steps: of each try.
        kept: which elements of the dense tensors are left (``surgery.elements_kept``): it says which units of
            a layer's output the ticket has. Without it the states are those of equal shape.
        learning_rate: Adam's, at its highest; by default 3e-3, or less where that brings little.
        retries: how often at most a lower rate is tried.
        fresh: gives batches to fit on in the place of ``batches``, as augmented training items.
        activation_gib: where a step on 64 items would hold more, it has fewer.
        seed: of the items sampled; torch's own generator is neither read nor moved.

    Raises:
        PruneError: there is no batch; no parameter of the ticket requires a gradient, or its code runs and
            has no gradient.

    Cost: a step is a pass forward and backward of the ticket and a pass forward of the dense model, with up
    to 64 items. Ten evaluations of a quarter of the items. Memory: Adam's two moments, two copies of the
    parameters, and the states of both models for one batch; of a ticket in half precision a copy in single
    precision besides, which is what the steps are taken on: they would be lost to rounding. What is
    evaluated and kept is the ticket itself, rounded.

    Source: Hinton et al. 2015 (arXiv:1503.02531), distillation; Romero et al. 2015, "FitNets"
    (arXiv:1412.6550), inner states; batch statistics: Jordan et al. 2023, "REPAIR" (arXiv:2211.08403).
    """
    if not batches:
        raise PruneError("the calibration data are empty; at least one batch is needed")
    fit, held = hold_out(batches)
    aims = find_aims(ticket, dense, fit, kept or {})
    items = max(1, min(STEP_ITEMS, int(activation_gib * 2**30 / aims.item_bytes)))
    source = _samples(fit, items, seed) if fresh is None else ([each] for each in fresh(items, seed))
    work, cast = ticket, _as_it_is
    if any(each.dtype in HALF_PRECISION for each in _trainable(ticket)):
        work, cast = _single_precision(ticket, fit), _widen
    trained, norms = _trainable(work), _norms_to_train(work, dense, fit, items, aims, cast)
    moving = _moving(work, with_norms=bool(norms))
    own = _moving(ticket, with_norms=bool(norms))
    start, best = ([tensor.detach().clone() for tensor in each] for each in (moving, own))
    with ExitStack() as stack:
        stack.callback(lambda: _copy(best, own))
        for model in (ticket, work, dense):
            stack.enter_context(evaluation_mode(model))
        stack.enter_context(_following(norms))
        first = least = output_error(ticket, dense, held)
        yield RepairStep(0, steps, math.nan, least)
        done, rate = 0, LEARNING_RATE if learning_rate is None else learning_rate
        while True:
            whole = done + steps
            optimizer = torch.optim.Adam(trained)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(step, steps)
                error = _descend(work, dense, next(source), aims, norms, trained, optimizer, cast)
                done += 1
                found = None
                if (step + 1) % math.ceil(steps / EVALUATIONS) == 0 or step + 1 == steps:
                    if work is not ticket:
                        _copy(moving, own)
                    found = output_error(ticket, dense, held)
                    if found < least:
                        least = found
                        _copy(own, best)
                yield RepairStep(done, whole, error, found)
                if not math.isfinite(error):
                    break
            tries = round(math.log(rate / LEARNING_RATE, LOWER))
            is_enough = least <= ENOUGH * first or (tries and least < first)
            if learning_rate is not None or is_enough or tries == retries:
                return
            rate *= LOWER
            _copy(start, moving)


def count_repair_steps(settings: Prune, items: int, *, trains_on: bool = False, fresh: bool = False) -> int:
    """Return the steps of a repair, of one round of it where the quality is ``best``; 0 for none.

    Args:
        settings: of the pruning.
        items: of calibration data.
        trains_on: whether the ticket is trained with labels afterwards, which washes a repair out.
        fresh: whether there are training items to repair on.

    >>> [count_repair_steps(Prune(), items) for items in (64, 1024, 4096)]
    [12, 192, 200]
    >>> count_repair_steps(Prune(), 64, fresh=True), count_repair_steps(Prune(), 64, trains_on=True)
    (200, 0)
    """
    steps = settings.repair_steps
    if settings.repair == "auto":
        # On items made up it brings nothing: of four cuts it left two and cost two 0.2 and 1.3 points.
        pays = settings.quality != "fast" and settings.calibration == "data" and not trains_on
        wanted = steps != "auto" or pays
    else:
        wanted = settings.repair
    if not wanted:
        return 0
    if steps != "auto":
        return steps
    return MOST_STEPS if fresh else min(MOST_STEPS, math.ceil(PASSES * items / STEP_ITEMS))


def _schedule(done: int, steps: int) -> float:
    """Return the share of the highest rate after so many steps: a linear rise, then a cosine to zero.

    >>> [round(_schedule(step, 20), 3) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.008]
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, steps - warmup)))


def _trainable(ticket: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that may move; complex ones stay as they are.

    Raises:
        PruneError: there is none.
    """
    trained = [each for each in ticket.parameters() if each.requires_grad and each.is_floating_point()]
    if not trained:
        raise PruneError("every parameter is frozen; set requires_grad where it may move")
    return trained


def _single_precision(ticket: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Return a copy of a ticket in single precision.

    Raises:
        PruneError: it does not run.
    """
    work = copy.deepcopy(ticket).float()
    [few, *_] = next(_samples(batches, 2, 0))
    try:
        with torch.no_grad(), evaluation_mode(work):
            call_keeping(work, _widen(few), ())
    except Exception as error:  # the model's own code runs here, and may raise anything
        raise PruneError(f"it does not run in single precision ({first_line(error)})") from error
    return work


def _as_it_is(batch: Any) -> Any:
    return batch


def _widen(batch: Any) -> Any:
    """Return a batch with its numbers of half precision in single precision."""
    return map_tensors(batch, lambda each: each.float() if each.dtype in HALF_PRECISION else each)


def _moving(ticket: nn.Module, *, with_norms: bool) -> list[Tensor]:
    """Return what a repair moves: parameters, and statistics of batch norms where those are taken anew."""
    norms = running_norms(ticket) if with_norms else ()
    return [*_trainable(ticket), *chain.from_iterable(norm.buffers(recurse=False) for norm in norms)]


def _norms_to_train(
    ticket: nn.Module,
    dense: nn.Module,
    batches: Sequence[Any],
    items: int,
    aims: Aims,
    cast: Callable[[Any], Any],
) -> list[_BatchNorm]:
    """Return the batch norms, or none where the error with statistics of a batch is much higher."""
    norms = running_norms(ticket)
    [batch, *others] = next(_samples(batches, items, 0))
    if not norms or others or item_count(batch) < LEAST_NORM_ITEMS:
        return []
    kept = [buffer.clone() for norm in norms for buffer in norm.buffers(recurse=False)]
    with torch.no_grad(), evaluation_mode(ticket), evaluation_mode(dense):
        wanted = call_keeping(dense, batch, ())
        only_outputs = replace(aims, states=())
        before = only_outputs.error(call_keeping(ticket, cast(batch), ()), wanted)
        with _counting(norms):
            after = only_outputs.error(call_keeping(ticket, cast(batch), ()), wanted)
    _copy(kept, [buffer for norm in norms for buffer in norm.buffers(recurse=False)])
    return norms if bool(after < WORSE_WITH_BATCH * before) else []


@contextmanager
def _following(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Have running statistics follow those of the batches, in nets too that train without."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = NORM_MOMENTUM
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@contextmanager
def _counting(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Have batch norms take the statistics of what passes, within the block."""
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()


def _descend(
    ticket: nn.Module,
    dense: nn.Module,
    parts: Sequence[Any],
    aims: Aims,
    norms: Sequence[_BatchNorm],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    cast: Callable[[Any], Any],
) -> float:
    """Take one step on the items of all parts, and return their error before it; ``cast``: for the ticket."""
    total = sum(map(item_count, parts))
    whole = 0.0
    for part in parts:
        share = item_count(part) / total
        with torch.no_grad():
            wanted = call_keeping(dense, part, aims.modules)
        counted = norms if item_count(part) >= LEAST_NORM_ITEMS else ()
        with torch.enable_grad(), sound_backward(ticket), _counting(counted):
            error = share * aims.error(call_keeping(ticket, cast(part), aims.modules), wanted)
            try:
                gradients = torch.autograd.grad(error, parameters, allow_unused=True)
            except RuntimeError as fault:  # Code that works in place may run and still have no gradient.
                raise PruneError(f"it has no gradient ({first_line(fault)})") from fault
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        whole += float(error.detach())
    if math.isfinite(whole):
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return whole


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for here, there in zip(source, target, strict=True):
        there.copy_(here)


def _samples(batches: Sequence[Any], items: int, seed: int) -> Iterator[list[Any]]:
    """Yield so many items drawn at random from all batches, as one batch where they can be joined.

    Batches that are never split are drawn by their items, until there are enough.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = [item_count(batch) for batch in batches]
    ends = list(accumulate(counts))
    while True:
        if any(is_whole(batch) for batch in batches):
            parts, left = [], items
            while left > 0:
                weights = torch.tensor(counts, dtype=torch.float64)
                rank = int(torch.multinomial(weights, 1, generator=generator))
                parts.append(batches[rank])
                left -= counts[rank]
            yield parts
            continue
        drawn = torch.randperm(ends[-1], generator=generator)[:items]
        owners = torch.bucketize(drawn, torch.tensor(ends), right=True)
        parts = [
            take_items(batches[rank], drawn[owners == rank] - (ends[rank] - counts[rank]))
            for rank in sorted(set(owners.tolist()))
        ]
        yield [_join(parts)] if len({_form(part) for part in parts}) == 1 else parts


def _form(batch: Any) -> tuple[Any, ...]:
    """Return what batches that can be joined have in common: number types and sizes but for the items."""
    return tuple((each.dtype, each.shape[1:], each.ndim) for each in tensors_of(batch))


def _join(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], WithCalls):
        return WithCalls(join_items([part.data for part in parts]), parts[0].also)
    return join_items(parts)
