from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.records.readings import Status
from tpsprune.signals.logit_rank import LogitRank, numerical_rank
from tpsprune.signals.signal import Readings, View


def planted(*sigma: float) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64)).Q for n in (20, 6))
    return left * torch.tensor(sigma, dtype=torch.float64) @ right.T


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.1, 2), (0.005, 3), (1e-5, 4)])
def test_singular_values_above_the_share_of_the_largest_are_counted(share: float, rank: int) -> None:
    rows_bc = planted(10.0, 4.0, 0.2, 0.001)
    assert numerical_rank(rows_bc, share) == rank
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert numerical_rank(-300 * rows_bc[torch.randperm(20)] @ turn, share) == rank


def test_zeros_have_no_rank() -> None:
    assert numerical_rank(torch.zeros(4, 3), 0.01) == 0


def read(model: nn.Module, *probe: Any) -> Readings:
    return LogitRank(share=0.01).step(None, View(model, probe, 2, 1.0, {}))[1]


def test_the_answers_to_all_batches_are_one_table() -> None:
    model = nn.Linear(5, 4, bias=False)
    assert read(model, torch.eye(5)[:1])[0].value == 1
    assert read(model, torch.eye(5)[:2], torch.eye(5)[2:])[0].value == 4
    assert model.training


def test_no_table_of_logits_and_no_numbers_say_so() -> None:
    assert read(nn.Flatten(0), torch.ones(2, 2))[0].status is Status.NOT_APPLICABLE
    assert read(nn.Identity(), torch.full((2, 2), torch.inf))[0].status is Status.NOT_FINITE


class Wrapped(nn.Module):
    """Answers as many libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4, bias=False)

    def forward(self, x_bd: Tensor) -> dict[str, Tensor]:
        return {"hidden": x_bd, "logits": self.head(x_bd)}


def test_logits_are_found_in_a_wrapped_answer() -> None:
    assert read(Wrapped(), torch.eye(5))[0].value == 4
