"""What the linear layer that is called last reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpsprune.numerics.last_layer import passes


class Backwards(nn.Module):
    """Its layers are called in another order than they are made, and one by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.body = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.body(x).relu()
        scores: Tensor = self.head(input=states)
        return scores


def test_the_last_is_the_one_called_last_not_the_one_made_last() -> None:
    model = Backwards().train()
    batches = [torch.randn(3, 4), torch.randn(5, 4)]
    found = list(passes(model, batches))
    for each, batch in zip(found, batches, strict=True):
        assert each.layer is model.head
        assert each.read is not None
        assert torch.equal(each.read, model.body(batch).relu())
        assert torch.equal(each.output, model.head(each.read))
        assert not each.output.requires_grad
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_a_linear_layer_there_is_none_and_leaving_takes_the_hooks_off() -> None:
    (only,) = passes(nn.Conv1d(2, 3, 1), [torch.randn(1, 2, 4)])
    assert only.layer is None
    assert only.read is None
    model = Backwards()
    steps = passes(model, [torch.randn(3, 4)] * 2)
    next(steps)
    steps.close()
    assert not any(module._forward_pre_hooks for module in model.modules())
