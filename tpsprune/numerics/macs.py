"""Exact multiply-accumulates of a model, module by module, without running it for real."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from tpsprune.numerics.forward import call_model
from tpsprune.numerics.trees import item_count, map_tensors, tensors_of

MOST_FOR_REAL: Final = 4 * 10**9
"""Parameters times numbers of a batch: a bound of the products of convolutions and linear layers."""


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-accumulates of one forward pass for one item.

    ``by_module`` holds every named module that multiplies, its children included, so that the figures of
    leaves add up to ``total`` but for what a parent multiplies itself (attention, for example).
    """

    total: int
    by_module: dict[str, int]


def count_macs(model: nn.Module, batch: Any) -> MacCount:
    """Count the multiply-accumulates of matrix products and convolutions, attention included.

    A convolution counts (output positions) · (weight elements), a linear layer (rows) · (weight
    elements), attention T·T·D for the scores and as many for the weighted sum: padding is counted as
    if it were data, biases, norms, activations and pooling are not counted at all.

    A deep copy on the ``meta`` device is called in evaluation mode, so nothing is computed; a model
    that cannot run there is called once for real. A small one is called on the CPU at once: on ``meta`` torch
    imports its compiler and sympy, which takes longer. The model handed in is not touched.

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
    counts = None
    for device in ("cpu", "meta") if _is_small(model, batch) else ("meta",):
        with suppress(RuntimeError, TypeError, ValueError):
            moved = map_tensors(batch, partial(Tensor.to, device=device))
            counts = _flops(copy.deepcopy(model).to(device), moved)
            break
    if counts is None:
        counts = _flops(copy.deepcopy(model), batch)
    prefix = type(model).__name__ + "."
    return MacCount(
        total=counts["Global"] // (2 * items),
        by_module={
            name.removeprefix(prefix): flops // (2 * items)
            for name, flops in counts.items()
            if name.startswith(prefix)
        },
    )


def _is_small(model: nn.Module, batch: Any) -> bool:
    parameters = sum(each.numel() for each in model.parameters())
    # On the CPU a recurrence is one fused kernel, which escapes the counter.
    recurs = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return not recurs and parameters * sum(each.numel() for each in tensors_of(batch)) <= MOST_FOR_REAL


def _flops(model: nn.Module, batch: Any) -> Counter[str]:
    """Return the floating-point operations of each module that runs, by torch's name for it."""
    counter: Any = _FlopCounter()
    with _plain_kernels(), counter.tracker, counter:
        call_model(model.eval(), batch)
    if counter.has_control_flow:
        with _plain_kernels(), FlopCounterMode(display=False) as of_torch:
            call_model(model, batch)
        return Counter({name: sum(each.values()) for name, each in of_torch.get_flop_counts().items()})
    flops: Counter[str] = counter.flops
    return flops


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Keep off fused kernels of attention, which escape the counter, and leave torch's generator alone."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _CountingDispatch:
    """Adds the operations of each call, by the formulas of ``torch.utils.flop_counter``, to running modules.

    torch's own ``FlopCounterMode`` counts the same, and branches besides, but where a mode defines
    ``__torch_dispatch__`` in its own body torch wraps it in a function that imports ``torch._dynamo``, which
    takes a second: hence two classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tracker = ModuleTracker()
        self.flops: Counter[str] = Counter()
        self.has_control_flow = False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(operation, HigherOrderOperator):
            self.has_control_flow = True
            return NotImplemented
        kwargs = kwargs or {}
        if operation is not torch.ops.prim.device.default:
            mode: Any = self
            with mode:
                composed = operation.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed
        output = operation(*args, **kwargs)
        if formula := flop_registry.get(operation.overloadpacket):
            flops = formula(*args, **kwargs, out_val=output)
            self.flops.update(dict.fromkeys(self.tracker.parents, flops))
        return output


@final
class _FlopCounter(_CountingDispatch, TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True
