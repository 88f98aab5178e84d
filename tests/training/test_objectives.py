"""The loop learns what the objective asks for, of whatever inputs, and evaluation says how well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import DivergedError
from tpsprune.numerics.objective import Objective
from tpsprune.recipe.train import Train
from tpsprune.training import Execution, evaluate, fit, make_optimizer
from tpsprune.training.evaluate import BATCH_ITEMS

CPU = Execution(torch.device("cpu"), None, channels_last=False)
INPUTS = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))


def plain(inputs: Any, generator: torch.Generator | None = None) -> Any:
    return inputs


def net(outputs: int) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, outputs))


class Places(nn.Module):
    """Scores for each of six places, from the sign of the number there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.net(inputs[..., None])
        return scores


class Halves(nn.Module):
    """The same net, its inputs in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        scores: Tensor = self.net(torch.cat((left, right), dim=1))
        return scores


def trained(model: nn.Module, inputs: Any, labels: Tensor, objective: Objective) -> nn.Module:
    settings = Train(epochs=30, batch_size=50, learning_rate=0.02)
    for _ in fit(
        model,
        make_optimizer(model, settings),
        inputs,
        labels,
        prepare=plain,
        settings=settings,
        execution=CPU,
        seed=5,
        first_step=0,
        last_step=180,
        total_steps=180,
        objective=objective,
    ):
        pass
    return model


def score(model: nn.Module, inputs: Any, labels: Tensor, objective: Objective) -> float:
    return evaluate(model, inputs, labels, prepare=plain, execution=CPU, objective=objective).accuracy


@pytest.mark.parametrize(
    ("word", "model", "labels"),
    [
        ("mse", lambda: net(2), torch.stack((INPUTS[:, 0] * 2, INPUTS[:, 1].square()), dim=1)),
        ("mse", lambda: net(1), INPUTS[:, 0] - INPUTS[:, 3]),
        ("bce", lambda: net(3), (INPUTS[:, :3] > 0).float()),
        ("next-token", Places, (INPUTS > 0).long() + (INPUTS > 1).long()),
        ("cross-entropy", lambda: net(2), (INPUTS[:, 0] > 0).long()),
    ],
)
def test_what_can_be_learned_is_learned(word: str, model: Callable[[], nn.Module], labels: Tensor) -> None:
    objective = Objective.of(word)
    made = model()
    before = score(made, INPUTS, labels, objective)
    assert before < 0.8
    assert score(trained(made, INPUTS, labels, objective), INPUTS, labels, objective) > 0.95


@pytest.mark.parametrize("by_name", [True, False])
def test_inputs_of_several_parts_are_learned_from_as_they_would_be_in_one(by_name: bool) -> None:
    labels, objective = (INPUTS[:, 0] > 0).long(), Objective.of("cross-entropy")
    whole = trained(net(2), INPUTS, labels, objective)
    left, right = INPUTS[:, :2], INPUTS[:, 2:]
    parts: Any = {"right": right, "left": left} if by_name else (left, right)
    halves = trained(Halves(), parts, labels, objective)
    for one, two in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, two)
    assert score(halves, parts, labels, objective) == score(whole, INPUTS, labels, objective)


def test_long_sequences_are_evaluated_few_at_a_time() -> None:
    seen: list[int] = []

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            return torch.nn.functional.one_hot(inputs, 5).float() * self.scale

    tokens = torch.randint(5, (9, BATCH_ITEMS // 4))
    assert score(Seen(), tokens, tokens, Objective.of("next-token")) == 1.0
    assert seen == [4, 4, 1]


def test_inputs_that_are_not_finite_are_named_in_any_part() -> None:
    broken = INPUTS[:, 2:].clone()
    broken[:] = torch.inf
    with pytest.raises(DivergedError, match=r"the inputs of that batch hold values that are not finite"):
        trained(Halves(), (INPUTS[:, :2], broken), (INPUTS[:, 0] > 0).long(), Objective.of("cross-entropy"))
