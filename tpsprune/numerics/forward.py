"""How a model is called and what of its answer counts, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["call_model", "evaluation_mode", "flat_tensors", "item_tensors", "logits_of"]


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a batch: a mapping goes in by keyword, a tuple by position, all else whole."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple):
        return model(*batch)
    return model(batch)


def logits_of(output: Any) -> Tensor:
    """Return the tensor of scores in a model's answer: itself, ``.logits``, ``['logits']``, or the first.

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


def flat_tensors(output: Any) -> Iterator[Tensor]:
    """Yield every floating-point tensor in a model's output, however it is nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in fields(output)]
    for part in parts:
        yield from flat_tensors(part)


def item_tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors that have an axis of items: no loss, no single number."""
    return (tensor for tensor in flat_tensors(output) if tensor.ndim)
