"""A term beside the task's loss: what it is told, and that its gradient is added and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_loop import net, noisy, run, task
from tpsprune.recipe.train import Train
from tpsprune.training import make_optimizer


class SquaredSize:
    """Squared weights, or as a rider the squared scores of the forward pass."""

    def __init__(self, model: nn.Module, *, rides: bool) -> None:
        self.rides = rides
        self._model = model
        self._heard = torch.zeros(())
        self.labels: list[Tensor] = []
        self.losses: list[Tensor | None] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        hook = self._model.register_forward_hook(lambda module, given, scores: self._keep(scores))
        yield
        hook.remove()

    def _keep(self, scores: Tensor) -> None:
        self._heard = scores

    def penalty(self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None) -> Tensor:
        assert label_i is not None
        self.labels.append(label_i)
        self.losses.append(task_loss)
        if self.rides:
            return self._heard.square().sum()
        return sum((p.square().sum() for p in self._model.parameters()), torch.zeros(()))


@pytest.mark.parametrize("rides", [False, True])
def test_the_penalty_adds_its_gradient_and_nothing_else(rides: bool) -> None:
    settings = Train(epochs=1, batch_size="full", optimizer="sgd", momentum=0.0, weight_decay=0.0)
    with_penalty, in_loss = net().eval(), net().eval()
    inputs, labels = task()
    for model in (with_penalty, in_loss):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    penalty = SquaredSize(with_penalty, rides=rides)
    run(with_penalty, make_optimizer(with_penalty, settings), settings, total=1, penalty=penalty)
    from tpsprune.training.randomness import augmentation_generator, epoch_order
    from tpsprune.training.schedule import learning_rate_at

    order = epoch_order(210, 5, 0)
    assert torch.equal(penalty.labels[0], labels[order])
    batch = noisy(inputs[order], augmentation_generator(5, 0))
    scores = in_loss(batch)
    term = scores.square().sum() if rides else SquaredSize(in_loss, rides=False).penalty(0, labels)
    loss = nn.functional.cross_entropy(scores, labels[order])
    assert penalty.losses[0] is not None
    torch.testing.assert_close(penalty.losses[0], loss.detach())
    assert not penalty.losses[0].requires_grad
    (loss + term).backward()
    with torch.no_grad():
        for parameter in in_loss.parameters():
            assert parameter.grad is not None
            parameter.sub_(learning_rate_at(0, 1, settings) * parameter.grad)
    for ours, theirs in zip(with_penalty.parameters(), in_loss.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
