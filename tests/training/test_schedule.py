"""The learning rate is a closed form of the step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpsprune.recipe.train import Train
from tpsprune.training.schedule import learning_rate_at


def rates(schedule: str, total: int, warmup: float = 0.0) -> list[float]:
    settings = Train(epochs=1, schedule=schedule, learning_rate=2.0, warmup_share=warmup)  # type: ignore[arg-type]
    return [learning_rate_at(step, total, settings) for step in range(total)]


def test_cosine_without_warm_up_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    theirs = []
    for _ in range(50):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates("cosine", 50) == pytest.approx(theirs)


def test_constant_stays_at_its_peak_after_the_warm_up() -> None:
    values = rates("constant", 100, warmup=0.1)
    assert values[:10] == pytest.approx([2.0 * (k + 1) / 11 for k in range(10)])
    assert set(values[10:]) == {2.0}


def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_nothing() -> None:
    values = rates("one-cycle", 1000, warmup=0.3)
    assert values[0] == pytest.approx(2.0 / 25, rel=1e-3)
    assert max(values) == values[300] == 2.0
    assert values[-1] < 1e-4


@given(
    schedule=st.sampled_from(["one-cycle", "cosine", "constant"]),
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
)
def test_every_rate_is_positive_and_at_most_the_peak(schedule: str, total: int, warmup: float) -> None:
    assert all(0.0 < value <= 2.0 for value in rates(schedule, total, warmup))
