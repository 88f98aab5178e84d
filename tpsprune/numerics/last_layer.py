"""What a model decides by: its outputs, and what the linear layer that is called last reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, first_input


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A batch that went through: the model's output, the linear layer called last, and what it read."""

    output: Any
    layer: nn.Linear | None
    read: Tensor | None


def passes(model: nn.Module, batches: Iterable[Any]) -> Iterator[Pass]:
    """Yield a pass for each batch, in evaluation mode and without gradients.

    A linear layer that is called with no tensor counts as none. Leaving the loop takes the hooks off.
    """
    called: list[tuple[nn.Linear, Tensor | None]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, nn.Linear)
        called[:] = [(module, first_input(args, kwargs))]

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(evaluation_mode(model))
        for batch in batches:
            called.clear()
            with torch.no_grad():
                output = call_model(model, batch)
            layer, read = called[0] if called else (None, None)
            yield Pass(output, layer, read)
