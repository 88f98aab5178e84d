"""Exact multiply-accumulates of a model, product by product, without running it for real."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from tpsprune.numerics.forward import call_model
from tpsprune.numerics.routing import dealt, routed
from tpsprune.numerics.trees import item_count, map_tensors, tensors_of

MOST_FOR_REAL: Final = 4 * 10**9
"""Parameters times numbers of a batch: a bound of the products of convolutions and linear layers."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a forward pass of a batch: the innermost module that runs it, and its lengths.

    Their product is its multiply-accumulates: of (m, k) by (k, n) they are m, k and n; of a convolution the
    items, the output places, the weight's shape.
    """

    module: str
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MacCount:
    """Multiply-accumulates of one forward pass for one item.

    ``by_module`` holds every named module that multiplies, its children included, so that the figures of
    leaves add up to ``total`` but for what a parent multiplies itself (attention, for example).
    ``products`` are those of all ``items`` of the batch in the order of the pass; they are missing where the
    model branches by torch's own control flow. ``uncounted`` names what multiplies in a kernel that has no
    formula.
    """

    total: int
    by_module: dict[str, int]
    uncounted: tuple[str, ...] = ()
    items: int = field(default=1, compare=False)
    products: tuple[Product, ...] = field(default=(), compare=False)


def count_macs(model: nn.Module, batch: Any) -> MacCount:
    """Count the multiply-accumulates of matrix products and convolutions, attention included.

    A convolution counts (output positions) · (weight elements), a linear layer (rows) · (weight
    elements), attention T·T·D for the scores and as many for the weighted sum, a sparse matrix its elements
    that are not zero: padding is counted as if it were data, biases, norms, activations and pooling are not
    counted at all. Not seen: a product written as an elementwise one and a sum, and Fourier transforms.

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
    counted = None
    for device in _devices(model, batch):
        with suppress(RuntimeError, TypeError, ValueError):
            moved = map_tensors(batch, partial(Tensor.to, device=device))
            counted = _count(_fixed_copy(model, device), moved)
            break
    macs, counter = counted or _count(_fixed_copy(model), batch)
    prefix = type(model).__name__ + "."

    def own_name(module: str) -> str:
        return module.removeprefix(prefix) if module.startswith(prefix) else ""

    return MacCount(
        total=macs["Global"] // items,
        by_module={
            name.removeprefix(prefix): own // items for name, own in macs.items() if name.startswith(prefix)
        },
        uncounted=tuple(
            dict.fromkeys(
                f"{operation} in {own_name(module) or 'the model itself'}"
                for module, operation in counter.uncounted
            )
        ),
        items=items,
        products=tuple(Product(own_name(module), lengths) for module, lengths in counter.products),
    )


def _fixed_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    # Under torch.no_grad an expanded parameter that needs a gradient still says so, and torch's module
    # tracker, which asks such a tensor for its gradient function, raises.
    return _copy_on(model, device).requires_grad_(False)


def _copy_on(model: nn.Module, device: str | None) -> nn.Module:
    """Return a deep copy on a device; on ``meta`` no tensor is copied on the way."""
    if device != "meta":
        copied = copy.deepcopy(model)
        return copied if device is None else copied.to(device)
    shells = {
        id(each): nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad)
        for each in model.parameters()
        if type(each) is nn.Parameter
    }
    return copy.deepcopy(model, shells).to("meta")


def countable_copy(model: nn.Module, batch: Any) -> nn.Module:
    """Return a copy to be changed and counted again: without memory where ``count_macs`` needs none.

    Raises:
        RuntimeError: the model cannot be copied.
    """
    if "cpu" not in _devices(model, batch):
        with suppress(RuntimeError, TypeError, ValueError):
            shell = _copy_on(model, "meta")
            count_macs(shell, batch)
            return shell
    return copy.deepcopy(model)


def _is_small(model: nn.Module, batch: Any) -> bool:
    parameters = sum(each.numel() for each in model.parameters())
    # On the CPU a recurrence is one fused kernel, which escapes the counter.
    recurs = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return not recurs and parameters * sum(each.numel() for each in tensors_of(batch)) <= MOST_FOR_REAL


def _devices(model: nn.Module, batch: Any) -> tuple[str, ...]:
    # On meta nobody knows how many elements of a sparse matrix are not zero.
    if any(_is_sparse(each) for each in (*tensors_of(batch), *model.state_dict(keep_vars=True).values())):
        return ("cpu",)
    return ("cpu", "meta") if _is_small(model, batch) else ("meta",)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout != torch.strided


def _count(model: nn.Module, batch: Any) -> tuple[Counter[str], _Counter]:
    """Return the multiply-accumulates of each module that runs, by torch's name for it, and the counter."""
    counter = _Counter()
    with _plain_kernels(), routed(dealt), counter.tracker, counter:
        call_model(model.eval(), batch)
    if counter.has_control_flow:
        with _plain_kernels(), routed(dealt), FlopCounterMode(display=False) as of_torch:
            call_model(model, batch)
        counter.products.clear()
        flops = {name: sum(each.values()) for name, each in of_torch.get_flop_counts().items()}
        return Counter({name: each // 2 for name, each in flops.items()}), counter
    return counter.macs, counter


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


Lengths: TypeAlias = tuple[int, ...]


def _of_matrices(first: Tensor, second: Tensor) -> Lengths:
    """Return the lengths of the product of two matrices, of two batches of them, or of a matrix and a vector.

    Of a grouped product only one side has an axis of groups: each row, or column, meets one of them.
    """
    if _is_sparse(first):
        return (first._nnz(), *second.shape[1:])
    if _is_sparse(second):
        return (second._nnz(), *first.shape[:1])
    own = first.shape if second.ndim >= first.ndim else first.shape[-2:]
    return (*own, *second.shape[-1:]) if second.ndim > 1 else tuple(own)


def _of_convolution(inputs: Tensor, weight: Tensor, out: Tensor, *, transposed: bool) -> Lengths:
    return (len(inputs), *(inputs if transposed else out).shape[2:], *weight.shape)


def _matrices_at(place: int) -> Callable[..., Lengths]:
    return lambda *args, **_: _of_matrices(args[place], args[place + 1])


def _convolution(*args: Any, out: Tensor) -> Lengths:
    transposed = len(args) > 6 and args[6] is True
    return _of_convolution(args[0], args[1], out, transposed=transposed)


_ATEN: Final = torch.ops.aten
_LENGTHS: Final[Mapping[Any, Callable[..., Lengths]]] = {
    **dict.fromkeys(
        (
            *(_ATEN.mm, _ATEN.bmm, _ATEN.mv, _ATEN.dot, _ATEN.vdot, _ATEN._grouped_mm, _ATEN._int_mm),
            *(_ATEN._scaled_mm, _ATEN._scaled_mm_v2, _ATEN._scaled_grouped_mm, _ATEN._sparse_mm),
        ),
        _matrices_at(0),
    ),
    **dict.fromkeys(
        (_ATEN.addmm, _ATEN.baddbmm, _ATEN.addbmm, _ATEN.addmv, _ATEN._addmm_activation, _ATEN._sparse_addmm),
        _matrices_at(1),
    ),
    **dict.fromkeys((_ATEN.convolution, _ATEN.convolution_overrideable, _ATEN._convolution), _convolution),
}
"""The lengths of what is multiplied, by operation."""


class _CountingDispatch:
    """Adds the products of each call to the modules that run.

    torch's own ``FlopCounterMode`` counts the same, and branches besides, but not grouped or sparse products,
    nor with which lengths. And where a mode defines ``__torch_dispatch__`` in its own body torch wraps it in
    a function that imports ``torch._dynamo``, which takes a second: hence two classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tracker = ModuleTracker()
        self.macs: Counter[str] = Counter()
        self.products: list[tuple[str, Lengths]] = []
        self.uncounted: list[tuple[str, str]] = []
        self.has_control_flow = False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if isinstance(operation, HigherOrderOperator):
            self.has_control_flow = True
            return NotImplemented
        kwargs = kwargs or {}
        packet = operation.overloadpacket
        if operation is not torch.ops.prim.device.default and packet not in _LENGTHS:
            mode: Any = self
            with mode:
                composed = operation.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed
        output = operation(*args, **kwargs)
        if lengths_of := _LENGTHS.get(packet):
            self._add(lengths_of(*args, out=output))
        elif formula := flop_registry.get(packet):
            self._add((formula(*args, **kwargs, out_val=output) // 2,))
        elif _may_multiply(operation, args, output):
            self.uncounted.append((self._module(), str(packet)))
        return output

    def _module(self) -> str:
        """Return the innermost module that runs, by torch's name for it."""
        return max(self.tracker.parents - {"Global"}, key=len, default="")

    def _add(self, lengths: Lengths) -> None:
        self.macs.update(dict.fromkeys(self.tracker.parents, prod(lengths)))
        self.products.append((self._module(), lengths))


def _may_multiply(operation: Any, args: tuple[Any, ...], output: Any) -> bool:
    """Return whether an operation is a kernel from elsewhere that makes numbers of several tensors."""
    numbers = [each for each in args if isinstance(each, Tensor) and each.is_floating_point()]
    made = isinstance(output, Tensor) and output.is_floating_point()
    return operation.namespace not in _OF_TORCH and len(numbers) > 1 and made


_OF_TORCH: Final = ("aten", "prim", "prims", "_c10d_functional")


@final
class _Counter(_CountingDispatch, TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True
