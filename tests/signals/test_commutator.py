from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.records.readings import Status
from tpsprune.signals.commutator import CommutatorDefect, commutator_defect
from tpsprune.signals.signal import Readings, View


def symmetric(size: int) -> Tensor:
    matrix = torch.randn(size, size, dtype=torch.float64)
    return matrix + matrix.T


def test_of_two_quadratic_losses_it_is_the_commutator_of_their_hessians() -> None:
    a, b = symmetric(5), symmetric(5)
    theta = torch.randn(5, dtype=torch.float64)
    found = commutator_defect(theta, lambda p: a @ p, lambda p: b @ p)
    expected = ((a @ b - b @ a) @ theta).norm() / ((a @ theta).norm() * (b @ theta).norm())
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_losses_whose_hessians_commute_have_none() -> None:
    a = symmetric(5)
    theta = torch.randn(5, dtype=torch.float64)
    assert commutator_defect(theta, lambda p: a @ p, lambda p: a @ a @ p) < 1e-8


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def read(model: nn.Module, probe: tuple[Tensor, ...], labels: tuple[Tensor, ...], step: int = 1) -> Readings:
    return CommutatorDefect().step(None, View(model, probe, step, 1.0, {}, labels=labels))[1]


PROBE = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),)
LABELS = (torch.arange(20) % 3,)


def walked(model: nn.Module, batches: list[tuple[Tensor, Tensor]], step_size: float) -> Tensor:
    """Two steps of plain gradient descent, one after the other."""
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    for inputs, labels in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_it_is_what_two_steps_in_either_order_leave_between_them() -> None:
    torch.manual_seed(0)
    model = net().double().eval()
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    inputs, labels = PROBE[0].double(), LABELS[0]
    (reading,) = read(model, (inputs,), (labels,))
    generator, defects = torch.Generator().manual_seed(1), []
    for _ in range(5):
        order = torch.randperm(20, generator=generator)
        a, b = ((inputs[part], labels[part]) for part in (order[:10], order[10:]))
        ends, lengths = [], []
        for batches in ([a, b], [b, a]):
            model.load_state_dict(weights)
            before = torch.cat([each.detach().flatten() for each in model.parameters()])
            lengths.append((walked(model, batches[:1], 1e-3) - before).norm())
            model.load_state_dict(weights)
            ends.append(walked(model, batches, 1e-3))
        defects.append(float((ends[0] - ends[1]).norm() / (lengths[0] * lengths[1])))
    assert reading.value == pytest.approx(sorted(defects)[2], rel=1e-6)


def test_the_model_is_as_it_was_and_the_reading_depends_on_the_step_alone() -> None:
    torch.manual_seed(0)
    model = net()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    readings = [read(model, PROBE, LABELS, step)[0].value for step in (1, 1, 2)]
    assert readings[0] == readings[1] != readings[2]
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert model.training


def test_without_labels_parameters_or_pairs_the_reading_says_so() -> None:
    frozen = net().requires_grad_(False)
    for model, probe, labels, reason in (
        (net(), PROBE, (), "the probe has no labels, or is no tensor"),
        (net(), PROBE, (PROBE[0][:, 0],), "the labels are no classes, one for each item"),
        (frozen, PROBE, LABELS, "no parameter is trained"),
        (net(), (PROBE[0][:1],), (LABELS[0][:1],), "one item makes no pair"),
    ):
        (reading,) = read(model, probe, labels)
        assert (reading.status, reading.reason) == (Status.NOT_APPLICABLE, reason)


def test_weights_that_are_not_finite_say_so() -> None:
    model = net()
    model[0].weight.data[0, 0] = torch.nan
    assert read(model, PROBE, LABELS)[0].status is Status.NOT_FINITE


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_bd: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x_bd)}


def test_logits_are_found_in_a_wrapped_answer_and_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    model = net()
    assert read(Wrapped(model), PROBE, LABELS)[0].value == pytest.approx(read(model, PROBE, LABELS)[0].value)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    tied[2].weight = tied[0].weight
    assert read(tied, PROBE, LABELS)[0].value > 0
