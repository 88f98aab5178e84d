"""Representation collapse: how alike what the last layer is fed looks for different items.

Shape letters: b items, n numbers of an item.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

__all__ = ["Collapse", "mean_cosine"]


def mean_cosine(rows_bn: Tensor) -> float:
    """Return the mean cosine of two different items, in [−1/(b − 1), 1].

    (‖Σ x̂‖² − b) / (b (b − 1)) with x̂ the rows at length one: one pass, no b × b matrix. 1 where all
    point the same way; 0 where directions are spread evenly. Invariant to each row's length and to turning
    all of them. Rows are not centred, as in the source: after a rectifier a cosine of 0.5 is nothing
    special. Rows of zeros point nowhere and count as orthogonal to all.
    """
    unit_bn = functional.normalize(rows_bn.to(torch.float32), dim=1)
    items = len(unit_bn)
    lengths = unit_bn.square().sum()
    return float((unit_bn.sum(0).square().sum() - lengths) / (items * (items - 1)))


@final
class Collapse(AbstractMemoryless):
    """Reads ``collapse``: the mean cosine of what two probe items make the last linear layer be fed.

    Near 1 on a plateau before something is learned: hidden states of all items nearly parallel. Of
    sequences the last place counts, where the layer is fed all of them. It does not see collapse in earlier
    layers. Cost: a forward pass over the probe.

    Source: Gopalani and Hu 2025 (arXiv 2506.13688), there between the places of one sequence.
    """

    name = "collapse"

    def step(self, memory: None, view: View) -> tuple[None, Readings]:
        """Read what the last layer is fed."""
        rows_bn = _fed_to_the_last(view.model, view.probe)
        if rows_bn is None or len(rows_bn) < 2:
            reason = "no linear layer is called" if rows_bn is None else "one item has no other to be like"
            return memory, (view.without(self.name, "cosine", Status.NOT_APPLICABLE, reason),)
        return memory, (view.reading(self.name, mean_cosine(rows_bn), "cosine"),)


def _fed_to_the_last(model: nn.Module, probe: tuple[Any, ...]) -> Tensor | None:
    """Return what the linear layer that is called last is fed, one row an item."""
    fed: list[Tensor] = []
    rows: list[Tensor] = []

    def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            fed[:] = [args[0].detach()]

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(see) for module in linear]
    try:
        with torch.no_grad(), evaluation_mode(model):
            for batch in probe:
                fed.clear()
                call_model(model, batch)
                if not fed:
                    return None
                rows.append(fed[0] if fed[0].ndim == 2 else fed[0].flatten(1, -2)[:, -1])
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(rows)
