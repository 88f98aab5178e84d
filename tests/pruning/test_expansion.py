"""A ticket set into the dense shape computes what it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import tpsprune
from tpsprune import pruning
from tpsprune.errors import PruneError


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


class Attending(nn.Module):
    """Self-attention of packed weights, which is opened; without norms over what is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.outside = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.inside(x)
        scores: torch.Tensor = self.outside(
            self.attention(states, states, states, need_weights=False)[0].mean(1)
        )
        return scores


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (conv_net, (128, 1, 8, 8)),
        (Attending, (128, 7, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 5)), (128, 6)),
    ],
)
def test_at_the_dense_shape_the_ticket_gives_what_it_gave(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    dense, inputs = make().eval(), torch.randn(shape)
    found = tpsprune.extract(dense, inputs, tpsprune.Macs(0.5), quality="fast", round_to=1)
    assert any(len(group.kept) < group.width for group in found.plan.groups)
    whole, filled = pruning.expand(dense, found.ticket, found.plan)
    assert torch.allclose(whole.eval()(inputs), dense(inputs), atol=1e-5)
    assert torch.allclose(filled.eval()(inputs), found.ticket.eval()(inputs), atol=1e-5)
    first, second = whole.state_dict(), filled.state_dict()
    assert {name: each.shape for name, each in first.items()} == {
        name: each.shape for name, each in second.items()
    }
    assert all(bool(each.isfinite().all()) for each in second.values())


def test_a_ticket_that_is_split_or_of_another_model_is_refused() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5))
    found = tpsprune.extract(dense, torch.randn(256, 6), tpsprune.Macs(0.5), quality="fast")
    with pytest.raises(PruneError, match="for another model"):
        pruning.expand(nn.Linear(6, 5), found.ticket, found.plan)
    with pytest.raises(PruneError, match="not as its plan left it"):
        pruning.expand(dense, dense, found.plan)
