"""A model is looked at, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Assert that a model has the weights, statistics, gradients, modes, flags and hooks that it had."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = _facts_of(model)
    yield
    assert _facts_of(model) == facts
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def _facts_of(model: nn.Module) -> list[Any]:
    modules = [
        (name, str(each), each.training, [*each._forward_hooks], [*each._forward_pre_hooks])
        for name, each in model.named_modules()
    ]
    return [*modules, *((name, each.requires_grad, each.grad) for name, each in model.named_parameters())]
