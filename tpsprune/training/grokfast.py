"""Grokfast: the slow part of each gradient, amplified before the optimiser sees it."""

from __future__ import annotations

from typing import Any, Final, final

import torch
from torch import Tensor

__all__ = ["Grokfast"]

SLOW: Final = "slow_grad"


@final
class Grokfast:
    """h ← memory · h + (1 − memory) · g, then g ← g + gain · h, of every parameter before each step.

    h starts at zero; it lies in the optimiser's state as ``slow_grad``, so that it is saved, cut and carried
    on with the moments. Acts on what the optimiser is given: after clipping, before weight decay, which
    is decoupled. Cost: one more tensor per parameter and two passes over it.

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
