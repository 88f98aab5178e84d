"""The heal: what a cut broke is repaired on the probe data, without labels, by matching the dense model.

Shape letters: b items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import item_count, taken
from tpsprune.pruning.trial import item_tensors

__all__ = ["HealStep", "heal", "matching_blocks"]

STEP_ITEMS: Final = 128
HELD_OUT: Final = 4
"""Every batch keeps the last one in four of its items, to see what the repair is worth elsewhere."""
BLOCK_SHARE: Final = 0.3
"""Share of the steps that go to single blocks, before all are fitted together."""
LOOKS: Final = 10
"""How often the items held out are looked at."""
GRADIENT_NORM: Final = 1.0


@dataclass(frozen=True, slots=True)
class HealStep:
    """One optimiser step: what it worked on (a block's name, or empty for the whole) and its error before.

    ``held_error`` is that of the whole on the items held out, where this step looked at them. Errors are
    mean squares of the difference to the dense model over the variance of what that puts out.
    """

    step: int
    steps: int
    block: str
    error: float
    held_error: float | None


def heal(
    ticket: nn.Module,
    dense: nn.Module,
    probe: Sequence[Any],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Iterator[HealStep]:
    """Fit ``ticket`` in place to what ``dense`` puts out, step by step, and leave it at its best.

    First each block by itself, in the order of the forward pass: fed by the ticket as healed so far, it is
    to put out what the dense model's block does. Then all together, to the model's outputs. Each stage is
    Adam with a cosine from ``learning_rate`` to zero, gradients clipped to norm 1. Everything runs in
    evaluation mode: batch-norm statistics stay, dropout is off. The weights that did best on the items held
    out are what the ticket ends with, wherever the caller leaves the loop; those it came with are in
    the race, so that there it never ends worse than it began. A step that is no longer finite ends the
    repair.

    It does not see what the probe does not hold, nor any label: it can make the ticket as right as the
    dense model, not more.

    Args:
        ticket: changed in place, but for what does not require a gradient, and its modes.
        dense: not changed.
        probe: prepared batches on the models' device, a few hundred items or more.
        steps: in all.
        learning_rate: Adam's.
        seed: of the items drawn; torch's own generator is neither read nor moved.

    Raises:
        PruneError: no parameter of the ticket requires a gradient, or the probe is empty.

    Cost: a step is a pass forward and backward of the ticket and a pass forward of the dense model, with up
    to 128 items; a block's step ends at the block. Ten looks at a quarter of the probe. Memory: Adam's two
    moments and a copy of the parameters.

    Source: Romero et al. 2015, "FitNets" (arXiv:1412.6550): stage-wise hints, then the whole; Li et al.
    2021, "BRECQ" (arXiv:2102.05426): blocks as the unit to reconstruct.
    """
    trained = [parameter for parameter in ticket.parameters() if parameter.requires_grad]
    if not trained:
        raise PruneError("heal: every parameter of the ticket is frozen; set requires_grad where it may move")
    if not probe:
        raise PruneError("heal: the probe is empty; at least one batch is needed to match the models on")
    generator = torch.Generator().manual_seed(seed)
    fit, held = zip(*(_halves(batch) for batch in probe), strict=True)
    blocks = matching_blocks(ticket, dense, fit[0])
    best = [parameter.detach().clone() for parameter in trained]
    least = math.inf
    done = 0
    with ExitStack() as stack:
        stack.callback(lambda: _put_back(trained, best))
        stack.enter_context(evaluation_mode(ticket))
        stack.enter_context(evaluation_mode(dense))
        least = _held_error(ticket, dense, held)
        for block, count in _shared_out(steps, blocks):
            part = ticket.get_submodule(block)
            own = [parameter for parameter in part.parameters() if parameter.requires_grad]
            optimizer = torch.optim.Adam(own, lr=learning_rate)
            for step in range(count):
                for each in optimizer.param_groups:
                    each["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / count))
                error = _descend(ticket, dense, _drawn(fit, generator), block, own, optimizer)
                done += 1
                looked = None
                if done % math.ceil(steps / LOOKS) == 0 or done == steps or step == count - 1:
                    looked = _held_error(ticket, dense, held)
                    if looked < least:
                        least = looked
                        for saved, parameter in zip(best, trained, strict=True):
                            saved.copy_(parameter.detach())
                yield HealStep(done, steps, block, error, looked)
                if not math.isfinite(error):
                    return


def matching_blocks(ticket: nn.Module, dense: nn.Module, batch: Any) -> tuple[str, ...]:
    """Return the blocks that can be fitted one by one, by name, in the order in which they answer.

    A block is a module with parts, of which some tensor has lost elements, that is called once and puts out
    one tensor, of the shape that the dense model's has: a residual block that lost inner units, say. Of
    blocks inside one another the innermost count. Where a cut narrowed what every block puts out there
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
        found, aimed = _answers(ticket, batch, names), _answers(dense, batch, names)
    fitting = [
        name
        for name, outs in found.items()
        if [out.shape for out in outs] == [out.shape for out in aimed.get(name, [])] and len(outs) == 1
    ]
    return tuple(name for name in fitting if not any(other.startswith(f"{name}.") for other in fitting))


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
        aims = _said(dense, batch, block)
    with torch.enable_grad():
        error = _error(_said(ticket, batch, block), aims)
        gradients = torch.autograd.grad(error, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if bool(error.isfinite()):
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return float(error.detach())


def _said(model: nn.Module, batch: Any, block: str) -> list[Tensor]:
    """Return what a block puts out, the pass going no further; an empty name is the whole model."""
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


def _answers(model: nn.Module, batch: Any, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return the tensors that each named module puts out, call by call, in the order of its first answer."""
    outs: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                outs.setdefault(name, []).extend(item_tensors(out))

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        call_model(model, batch)
    return outs


def _error(found: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
    wrong = torch.stack([(a - b).float().square().sum() for a, b in zip(found, aims, strict=True)]).sum()
    spread = sum(float((aim - aim.mean(0)).float().square().sum()) for aim in aims)
    return wrong / max(spread, 1e-30)


def _held_error(ticket: nn.Module, dense: nn.Module, held: Sequence[Any]) -> float:
    wrong = spread = 0.0
    with torch.no_grad():
        for batch in held:
            aims = list(item_tensors(call_model(dense, batch)))
            own = sum(float((aim - aim.mean(0)).float().square().sum()) for aim in aims)
            wrong += float(_error(list(item_tensors(call_model(ticket, batch))), aims)) * max(own, 1e-30)
            spread += own
    error = wrong / max(spread, 1e-30)
    return error if math.isfinite(error) else math.inf


def _shared_out(steps: int, blocks: Sequence[str]) -> list[tuple[str, int]]:
    each = int(BLOCK_SHARE * steps / len(blocks)) if blocks else 0
    return [(block, each) for block in blocks if each] + [("", steps - each * len(blocks))]


def _put_back(trained: Sequence[Tensor], best: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, saved in zip(trained, best, strict=True):
            parameter.copy_(saved)


def _drawn(fit: Sequence[Any], generator: torch.Generator) -> Any:
    batch = fit[int(torch.randint(len(fit), (), generator=generator))]
    return taken(batch, torch.randperm(item_count(batch), generator=generator)[:STEP_ITEMS])


def _halves(batch: Any) -> tuple[Any, Any]:
    """Return the items to fit and those held out: the same ones where there are too few to part."""
    items = torch.arange(item_count(batch))
    held = len(items) // HELD_OUT
    return (taken(batch, items[:-held]), taken(batch, items[-held:])) if held else (batch, batch)
