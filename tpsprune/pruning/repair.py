"""Repair of a ticket without labels: optimiser steps towards the dense model's outputs and inner states.

Shape letters: b items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, item_tensors, sound_backward
from tpsprune.numerics.trees import item_count, take_items
from tpsprune.pruning.extract import Extraction
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.recalibration import running_norms
from tpsprune.pruning.surgery import KeptElements, elements_kept
from tpsprune.recipe.prune import Prune

STEP_ITEMS: Final = 64
MOST_STEPS: Final = 200
PASSES: Final = 12
"""How often a repair on calibration data alone sees each of its items."""
LEAST_NORM_ITEMS: Final = 16
"""Batch norms take the statistics of batches of at least so many items; those of fewer say too little."""
LEARNING_RATE: Final = 3e-3
WARMUP_SHARE: Final = 0.1
EVALUATIONS: Final = 10
"""How often the items held out are evaluated."""
GRADIENT_NORM: Final = 5.0
MOST_ROUNDS: Final = 20
LEAST_GAIN: Final = 0.02
"""A round that brings less ends a repair of quality ``best``."""
FIRST_ITEMS: Final = 16
"""On so many items it is seen which states to follow, and what a step holds."""
BACKWARD: Final = 3
"""What a step holds of a model's states for its backward pass, as a multiple of them."""
NORM_MOMENTUM: Final = 0.1
WORSE_WITH_BATCH: Final = 2.0
"""Batch norms keep their statistics where those of a batch give more than so many times the error."""
FOLLOWED: Final = 0.9
"""A state is followed if its error is below this at first: one further off is of other units."""


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
    2 %. A ticket that cannot be repaired (frozen, or of half precision) is left as it is.

    Returns:
        The extraction with a note: what the repair brought, or why there was none.
    """
    if fault := _why_not(extraction.ticket):
        return _noted(extraction, f"the ticket was not repaired: {fault}")
    kept = elements_kept(extraction.plan.shapes, extraction.plan.groups)
    done, first, least = 0, math.inf, math.inf
    while True:
        before = least
        for each in repair(
            extraction.ticket,
            dense,
            batches,
            steps=steps,
            kept=kept,
            learning_rate=settings.repair_learning_rate,
            fresh=fresh,
            activation_gib=settings.activation_gib,
            seed=seed + done,
        ):
            if each.held_error is not None:
                least = min(least, each.held_error)
            if each.step == 0 and done == 0:
                first = before = least
            yield replace(each, step=done + each.step, steps=done + steps)
        done += steps
        if settings.quality != "best" or done >= MOST_ROUNDS * steps or least > (1 - LEAST_GAIN) * before:
            break
    more = "" if settings.quality == "best" else "; quality = 'best' goes on for as long as that brings 2%"
    return _noted(
        extraction,
        f"{done} steps of repair brought the error of its outputs on calibration data held out from "
        f"{first:.3g} to {least:.3g}{more}",
    )


def _why_not(ticket: nn.Module) -> str:
    kinds = {parameter.dtype for parameter in ticket.parameters() if parameter.requires_grad}
    if not kinds:
        return "every parameter is frozen; set requires_grad where it may move"
    if low := kinds - {torch.float32, torch.float64}:
        return f"its weights are {str(low.pop()).removeprefix('torch.')}; extract from the model in float32"
    return ""


def _noted(extraction: Extraction, note: str) -> Extraction:
    return replace(extraction, notes=(*extraction.notes, note))


Fresh: TypeAlias = Callable[[int, int], Iterator[Any]]
"""From the items of a batch and a seed to batches without end."""


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
    learning_rate: float = LEARNING_RATE,
    fresh: Fresh | None = None,
    activation_gib: float = 1.5,
    seed: int = 0,
) -> Iterator[RepairStep]:
    """Fit ``ticket`` in place to ``dense``, step by step, and leave it at its best.

    A step lowers Σ ‖a − b‖² / Σ ‖b − b̄‖² of the outputs, b those of the dense model, and the mean of the same
    over inner states: what layers give, at the units that are kept, and what blocks that kept their outputs
    give. Adam, with a linear warm-up over a tenth of the steps and a cosine to zero, gradients clipped to
    norm 5. Batch norms take the statistics of the batches and update their running ones, unless these take
    the ticket away from the dense model (calibration data unlike the training's, or few of them); everything
    else is in evaluation mode, dropout off. The ticket ends with the weights and statistics that did best on
    the items held out, wherever the caller leaves the loop; those it came with are candidates, so that there
    it never ends worse than it began. A step that is no longer finite ends the repair.

    It does not see what the batches do not hold, nor any label: it can bring the ticket to the accuracy of
    the dense model, not beyond.

    Args:
        ticket: changed in place, but for what does not require a gradient, and its modes.
        dense: not changed.
        batches: prepared, on the models' device, a few hundred items or more; a quarter is held out.
        steps: in all.
        kept: which elements of the dense tensors are left (``surgery.elements_kept``): it says which units of
            a layer's output the ticket has. Without it the states are those of equal shape.
        learning_rate: Adam's, at its highest.
        fresh: gives batches to fit on in the place of ``batches``, as augmented training items.
        activation_gib: where a step on 64 items would hold more, it has fewer.
        seed: of the items sampled; torch's own generator is neither read nor moved.

    Raises:
        PruneError: no parameter of the ticket requires a gradient, or there is no batch.

    Cost: a step is a pass forward and backward of the ticket and a pass forward of the dense model, with up
    to 64 items. Ten evaluations of a quarter of the items. Memory: Adam's two moments, a copy of the
    parameters, and the states of both models for one batch.

    Source: Hinton et al. 2015 (arXiv:1503.02531), distillation; Romero et al. 2015, "FitNets"
    (arXiv:1412.6550), inner states; batch statistics: Jordan et al. 2023, "REPAIR" (arXiv:2211.08403).
    """
    trained = [parameter for parameter in ticket.parameters() if parameter.requires_grad]
    if not trained:
        raise PruneError(
            "repair: every parameter of the ticket is frozen; set requires_grad where it may move"
        )
    if not batches:
        raise PruneError("repair: the calibration data are empty; at least one batch is needed")
    fit, held = hold_out(batches)
    states, bytes_per_item = _follow_states(ticket, dense, _few(fit[0]), kept or {})
    items = max(1, min(STEP_ITEMS, int(activation_gib * 2**30 / bytes_per_item)))
    source = _samples(fit, items, seed) if fresh is None else fresh(items, seed)
    norms = _norms_to_train(ticket, dense, take_items(fit[0], torch.arange(min(items, item_count(fit[0])))))
    moving = [*trained, *chain.from_iterable(norm.buffers(recurse=False) for norm in norms)]
    best = [tensor.detach().clone() for tensor in moving]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    with ExitStack() as stack:
        stack.callback(lambda: _copy(best, moving))
        stack.enter_context(evaluation_mode(ticket))
        stack.enter_context(evaluation_mode(dense))
        stack.enter_context(_following(norms))
        least = output_error(ticket, dense, held)
        yield RepairStep(0, steps, math.nan, least)
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step - 1, steps)
            for norm in norms:
                norm.train()
            error = _descend(ticket, dense, next(source), states, trained, optimizer)
            for norm in norms:
                norm.eval()
            found = None
            if step % math.ceil(steps / EVALUATIONS) == 0 or step == steps:
                found = output_error(ticket, dense, held)
                if found < least:
                    least = found
                    _copy(moving, best)
            yield RepairStep(step, steps, error, found)
            if not math.isfinite(error):
                return


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
        wanted = steps != "auto" or (settings.quality != "fast" and not trains_on)
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


@dataclass(frozen=True, slots=True)
class _State:
    """What a module gives, and which of the dense model's elements along an axis the ticket has of it."""

    module: str
    axis: int = 0
    kept: Tensor | None = None

    def of_dense(self, tensor: Tensor) -> Tensor:
        return tensor if self.kept is None else tensor.index_select(self.axis, self.kept.to(tensor.device))


def _follow_states(
    ticket: nn.Module, dense: nn.Module, batch: Any, kept: KeptElements
) -> tuple[tuple[_State, ...], float]:
    """Return the states in which the ticket is to follow the dense model, and the bytes of a step per item.

    A module counts that has weights, is called once in both models and returns one tensor. Its units are
    those of the dense model, or those that ``kept`` names of its weight's first axis; they lie along the
    output's only axis of another length. What is further off than ``FOLLOWED`` is left out.
    """
    there = {name for name, _ in dense.named_modules()}
    names = [
        name
        for name, module in ticket.named_modules()
        if name and name in there and next(module.parameters(), None) is not None
    ]
    with torch.no_grad(), evaluation_mode(ticket), evaluation_mode(dense):
        ours, theirs = (_call(model, batch, names)[1] for model in (ticket, dense))
    states = []
    for name in (each for each in names if each in ours and each in theirs):
        a, b, state = ours[name], theirs[name], _State(name)
        if a.shape != b.shape:
            units = kept.get(f"{name}.weight", {}).get(0)
            axes = [axis for axis in range(min(a.ndim, b.ndim)) if a.shape[axis] != b.shape[axis]]
            if units is None or a.ndim != b.ndim or len(axes) != 1 or a.shape[axes[0]] != len(units):
                continue
            state = _State(name, axes[0], units)
        if float(_relative(a, state.of_dense(b))) < FOLLOWED:
            states.append(state)
    # The ticket's are held with what the backward pass needs of them.
    sizes = (sum(each.nbytes for each in given.values()) for given in (ours, theirs))
    held = next(sizes) * BACKWARD + next(sizes)
    return tuple(states), max(1.0, held / item_count(batch))


def _norms_to_train(ticket: nn.Module, dense: nn.Module, batch: Any) -> list[_BatchNorm]:
    """Return the batch norms, or none where the error with statistics of a batch is much higher."""
    norms = running_norms(ticket) if item_count(batch) >= LEAST_NORM_ITEMS else []
    if not norms:
        return []
    before = output_error(ticket, dense, [batch])
    kept = [buffer.clone() for norm in norms for buffer in norm.buffers(recurse=False)]
    with torch.no_grad(), evaluation_mode(ticket), evaluation_mode(dense):
        for norm in norms:
            norm.train()
        outputs, wanted = (_call(model, batch, ())[0] for model in (ticket, dense))
    _copy(kept, [buffer for norm in norms for buffer in norm.buffers(recurse=False)])
    errors = [float(_relative(a, b)) for a, b in zip(outputs, wanted, strict=True)]
    return norms if sum(errors) / max(1, len(errors)) < WORSE_WITH_BATCH * before else []


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


def _call(model: nn.Module, batch: Any, names: Sequence[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return a model's outputs, and what each named module gave that was called once and gave one tensor.

    What the model draws at random it draws alike on every call.
    """
    given: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                given.setdefault(name, []).append(out)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        stack.enter_context(fixed_seed())
        outputs = list(item_tensors(call_model(model, batch)))
    return outputs, {
        name: outs[0]
        for name, outs in given.items()
        if len(outs) == 1 and isinstance(outs[0], Tensor) and outs[0].is_floating_point() and outs[0].ndim
    }


def _descend(
    ticket: nn.Module,
    dense: nn.Module,
    batch: Any,
    states: Sequence[_State],
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> float:
    names = [state.module for state in states]
    with torch.no_grad():
        wanted, aims = _call(dense, batch, names)
    with torch.enable_grad(), sound_backward(ticket):
        outputs, given = _call(ticket, batch, names)
        error = torch.stack([_relative(a, b) for a, b in zip(outputs, wanted, strict=True)]).mean()
        inner = [
            _relative(given[state.module], state.of_dense(aims[state.module]))
            for state in states
            if state.module in given and state.module in aims
        ]
        if inner:
            error = error + torch.stack(inner).mean()
        gradients = torch.autograd.grad(error, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if bool(error.isfinite()):
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return float(error.detach())


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squares of the difference over those of what is wanted about its mean over the items."""
    spread = (wanted - wanted.mean(0)).float().square().sum()
    return (found - wanted).float().square().sum() / spread.clamp_min(1e-30)


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for here, there in zip(source, target, strict=True):
        there.copy_(here)


def _samples(fit: Sequence[Any], items: int, seed: int) -> Iterator[Any]:
    """Yield items drawn at random, those of one batch at a time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        batch = fit[int(torch.randint(len(fit), (), generator=generator))]
        yield take_items(batch, torch.randperm(item_count(batch), generator=generator)[:items])


def _few(batch: Any) -> Any:
    return take_items(batch, torch.arange(min(FIRST_ITEMS, item_count(batch))))
