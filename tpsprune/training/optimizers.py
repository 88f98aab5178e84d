"""Optimisers from a recipe, the learning rate as a pure function of the step, and Grokfast's filter.

The optimiser's state is kept by parameter name: what a checkpoint and a pruned model can carry.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.recipe.train import Train
from tpsprune.training.muon import Joined, Muon, hidden_matrices
from tpsprune.training.spread import is_spread

START_SHARE = 1 / 25
END_SHARE = START_SHARE / 10_000
SLOW: Final = "slow_grad"


class AdamW(torch.optim.AdamW):
    """torch's AdamW, called without the wrappers that import the compiler.

    torch wraps these methods for ``torch.compile``, and on their first call the wrappers import
    ``torch._dynamo``: one to two seconds of start. They matter inside compiled code only; an optimiser's step
    is not compiled here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(torch.optim.SGD):
    """torch's SGD without the same wrappers."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the parameters that train.

    Weight decay acts on tensors of two axes and more; biases and normalisation gains are left free, as
    is usual (their shrinking regularises nothing). ``muon`` moves ``hidden_matrices`` and leaves all else to
    AdamW, both at one learning rate. With ``grokfast_gain`` above zero, Grokfast's filter precedes it.
    """
    optimizer = _make_unfiltered(model, settings)
    if settings.grokfast_gain > 0.0:
        Grokfast(optimizer, settings.grokfast_gain, settings.grokfast_memory)
    return optimizer


def _make_unfiltered(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    hidden = set(hidden_matrices(model)) if settings.optimizer == "muon" else set()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [each for each in trainable if each in hidden]
    others = [each for each in trainable if each not in hidden]
    lr, momentum = settings.learning_rate, settings.momentum
    if settings.optimizer == "sgd":
        # torch's fused kernel of SGD takes no weights in parts.
        fused = not is_spread(model) or None
        return SGD(_groups(others, settings), lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(Muon(_groups(matrices, settings), lr=lr, momentum=momentum))
    if others or not parts:
        parts.append(AdamW(_groups(others, settings), lr=lr, betas=settings.betas, fused=True))
    return Joined(parts) if settings.optimizer == "muon" else parts[0]


def _groups(parameters: Sequence[nn.Parameter], settings: Train) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_at(step: int, total_steps: int, settings: Train) -> float:
    """Return the learning rate of step number ``step`` (from 0) of ``total_steps``.

    With w = ``warmup_share``, t = step / total_steps and the peak η = ``learning_rate``:

    - ``one-cycle``: half a cosine from η/25 up to η over w, then half a cosine down to η/250,000.
      Source: Smith and Topin 2018 (Super-convergence), with PyTorch's shape and no momentum cycle;
    - ``cosine``: linear from 0 over w, then half a cosine down to 0. Source: Loshchilov and Hutter 2017;
    - ``constant``: linear from 0 over w, then η.
    """
    warmup_steps = settings.warmup_share * total_steps
    peak = settings.learning_rate
    if step < warmup_steps:
        risen = (step + 1) / (warmup_steps + 1)
        if settings.schedule == "one-cycle":
            return peak * (START_SHARE + (1 - START_SHARE) * (1 - cos(pi * risen)) / 2)
        return peak * risen
    fallen = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    match settings.schedule:
        case "one-cycle":
            return peak * (END_SHARE + (1 - END_SHARE) * (1 + cos(pi * fallen)) / 2)
        case "cosine":
            return peak * (1 + cos(pi * fallen)) / 2
        case "constant":
            return peak


@final
class Grokfast:
    """h ← memory · h + (1 − memory) · g, then g ← g + gain · h, of every parameter before each step.

    h starts at zero; it lies in the optimiser's state as ``slow_grad``, so that it is saved, pruned and
    carried on with the moments. Acts on the optimiser's gradients: after clipping, before weight decay,
    which is decoupled. Cost: one more tensor per parameter and two passes over it.

    Source: Lee et al. 2024, "Grokfast" (arXiv:2405.20233), section 2 and algorithm 1 (EMA).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, gain: float, memory: float) -> None:
        self._gain, self._memory = gain, memory
        self._slow: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                # Not created in the state here: an optimiser takes a state that is not empty for its own.
                slow = optimizer.state[parameter].get(SLOW) if parameter in optimizer.state else None
                if slow is None:
                    slow = torch.zeros_like(parameter)
                slow.lerp_(parameter.grad, 1.0 - self._memory)
                parameter.grad.add_(slow, alpha=self._gain)
                self._slow[parameter] = slow

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        for parameter, slow in self._slow.items():
            optimizer.state[parameter][SLOW] = slow
        self._slow = {}


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's state tensors (moments, step counts) under their parameters' names."""
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Give the optimiser the state tensors of the named parameters; the others begin afresh.

    A fresh start is zero momentum, which must be explicit where others have some: fused SGD takes
    momentum for all parameters or for none. Under Muon a parameter begins afresh too where a cut has moved it
    from one rule to the other, as that of experts opened for good: the moment of one is none of the other's.
    """
    for name, parameter in model.named_parameters():
        if name in state:
            if isinstance(optimizer, Joined) and not optimizer.takes(parameter, state[name]):
                continue
            optimizer.state[parameter] = {
                key: _laid_out_as(parameter, value) for key, value in state[name].items()
            }
        elif state and isinstance(optimizer, torch.optim.SGD) and parameter.requires_grad:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return a copy of ``value`` on the parameter's device, in its memory format if it has its shape.

    Fused kernels traverse memory, not indices: moments in another order than a channels-last weight would
    be those of other elements.
    """
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.detach().clone().to(parameter.device)
