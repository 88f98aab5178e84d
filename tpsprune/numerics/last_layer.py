"""What a model decides by: its outputs, and what the linear layer behind them reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, first_input, flat_tensors
from tpsprune.numerics.trees import take_items

FEW = 2
"""Items on which the layer is found whose outputs are the model's."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A batch that went through: the model's output, the last linear layer, and what it read.

    ``gives_outputs``: whether what the layer writes is among the model's outputs as it is. Else it is merely
    the one that is called last.
    """

    output: Any
    layer: nn.Linear | None
    read: Tensor | None
    gives_outputs: bool


def passes(model: nn.Module, batches: Iterable[Any]) -> Iterator[Pass]:
    """Yield a pass for each batch, in evaluation mode and without gradients.

    The layer is the linear layer whose outputs are the model's first scores, found on two items; without any
    it is the one called last. One that is called with no tensor counts as none. Leaving the loop takes the
    hooks off.
    """
    left = iter(batches)
    first = next(left, None)
    if first is None:
        return
    readout = _find_readout(model, first)
    called: list[tuple[nn.Linear, Tensor | None]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, nn.Linear)
        called[:] = [(module, first_input(args, kwargs))]

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear) and readout in {None, module}:
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(evaluation_mode(model))
        for batch in chain([first], left):
            called.clear()
            with torch.no_grad():
                output = call_model(model, batch)
            layer, read = called[0] if called else (None, None)
            yield Pass(output, layer, read, readout is not None)


def _find_readout(model: nn.Module, batch: Any) -> nn.Linear | None:
    """Return the linear layer that writes the first of the model's outputs; none where none does."""
    written: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, Tensor):
            written.append((module, output))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(evaluation_mode(model))
        with torch.no_grad():
            output = call_model(model, take_items(batch, torch.arange(FEW)))
    scores = next((each for each in flat_tensors(output) if each.ndim > 1), None)
    if scores is None:
        return None
    return next(
        (
            layer
            for layer, each in reversed(written)
            if each.shape == scores.shape and bool((each == scores).all())
        ),
        None,
    )
