"""Exact multiply-accumulates of a model, module by module, without running it for real."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tpsprune.numerics.forward import call_model
from tpsprune.numerics.trees import item_count

__all__ = ["MacCount", "count_macs"]


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-accumulates of one forward pass for one item.

    ``by_module`` holds every named module that multiplies, its children included, so that the figures
    of leaves add up to ``total`` but for what a parent multiplies itself (attention, say).
    """

    total: int
    by_module: dict[str, int]


def count_macs(model: nn.Module, batch: Any) -> MacCount:
    """Count the multiply-accumulates of matrix products and convolutions, attention included.

    A convolution counts (output positions) · (weight elements), a linear layer (rows) · (weight
    elements), attention T·T·D for the scores and as many for the weighted sum: padding is counted as
    if it were data, biases, norms, activations and pooling are not counted at all.

    A deep copy on the ``meta`` device is called in evaluation mode, so nothing is computed; a model
    that cannot run there is called once for real. The model handed in is not touched.

    Args:
        model: any module.
        batch: one prepared batch; the count is divided by its number of items, the leading length of
            the first tensor in it.

    Raises:
        ValueError: there is no tensor in the batch, or it holds no item.
    """
    items = item_count(batch)
    if not items:
        raise ValueError("a batch with at least one item is needed to count multiply-accumulates")
    try:
        counts = _flops(copy.deepcopy(model).to("meta"), _to_meta(batch))
    except (RuntimeError, TypeError, ValueError):
        counts = _flops(copy.deepcopy(model), batch)
    prefix = type(model).__name__ + "."
    return MacCount(
        total=sum(counts.get("Global", {}).values()) // (2 * items),
        by_module={
            name.removeprefix(prefix): sum(by_operation.values()) // (2 * items)
            for name, by_operation in counts.items()
            if name.startswith(prefix)
        },
    )


def _flops(model: nn.Module, batch: Any) -> dict[str, dict[Any, int]]:
    # Fused attention kernels escape the counter on some devices; the plain one is made of products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call_model(model.eval(), batch)
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    return counts


def _to_meta(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.to("meta")
    if isinstance(batch, Mapping):
        return {name: _to_meta(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_to_meta(part) for part in batch)
    return batch
