"""The forward pass: how a model is called, in which mode and precision, and what it multiplies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tpsprune.numerics.trees import item_count

__all__ = [
    "MacCount",
    "call_model",
    "count_macs",
    "evaluation_mode",
    "first_input",
    "full_precision",
    "logits_of",
    "observe_inputs",
    "widened",
]


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a batch: a mapping goes in by keyword, a tuple by position, all else whole."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple):
        return model(*batch)
    return model(batch)


def logits_of(output: Any) -> Tensor:
    """Return the tensor of scores in a model's output: itself, ``.logits``, ``['logits']``, or the first.

    Raises:
        TypeError: there is no tensor where one is looked for.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returned {type(output).__name__}, where a tensor of scores is needed")
    return output


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module in evaluation mode, and each back into the mode it was in afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def observe_inputs(
    model: nn.Module, names: Iterable[str], observe: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``observe(name, input)`` whenever a named layer is about to be called."""
    with ExitStack() as stack:
        for name in names:

            def hook(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
            ) -> None:
                if (fed := first_input(args, kwargs)) is not None:
                    observe(name, fed)

            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor that a layer is called with, by position or by name; none if it is empty."""
    fed = next(iter((*args, *kwargs.values())), None)
    return fed.detach() if isinstance(fed, Tensor) and fed.ndim and fed.numel() else None


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, or in float32 where its device has nothing wider (Apple's MPS)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products on a GPU in float32, not in TF32, until the block is left."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


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
