"""The panel of fidelity: a model beside itself, beside its ticket, and what is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tpsprune.errors import ModelError
from tpsprune.pruning import Extraction


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    centres = 2 * torch.randn(4, 8)
    labels = torch.arange(600) % 4
    inputs = centres[labels] + torch.randn(600, 8)
    model = nn.Sequential(nn.Linear(8, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), inputs, labels


@pytest.fixture(scope="module")
def ticket(trained: tuple[nn.Module, Tensor, Tensor]) -> Extraction:
    model, inputs, _ = trained
    return tpsprune.extract(model, inputs, tpsprune.Macs(0.5), quality="fast", round_to=1)


def test_a_model_is_wholly_faithful_to_itself(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, labels = trained
    panel = tpsprune.fidelity(model, model, [[inputs, labels]])
    assert (panel.agreement, panel.divergence_nats, panel.outputs_explained) == (1.0, 0.0, 1.0)
    assert panel.states_explained == pytest.approx(1.0, abs=1e-5)
    assert panel.dense == panel.ticket
    assert panel.absent == {"barrier_loss": "the plan of the ticket is not known"}


def test_a_ticket_has_every_figure_and_lies_in_the_dense_models_valley(
    trained: tuple[nn.Module, Tensor, Tensor], ticket: Extraction
) -> None:
    model, inputs, labels = trained
    before = {name: each.clone() for name, each in model.state_dict().items()}
    panel = tpsprune.fidelity(model, ticket, inputs.split(100), labels=labels.split(100), seed=3)
    assert panel.absent == {}
    assert panel.items == 600
    assert panel.agreement is not None
    assert panel.agreement > 0.9
    assert panel.barrier_error is not None
    assert panel.barrier_error < 0.1
    assert panel.dense.quality == pytest.approx(float((model(inputs).argmax(1) == labels).float().mean()))
    assert panel.foreign == "noise through random networks"
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    again = tpsprune.fidelity(model, ticket, inputs.split(100), labels=labels.split(100), seed=3)
    assert replace(again, cpu_seconds=0.0) == replace(panel, cpu_seconds=0.0)


def test_the_path_of_a_broken_ticket_has_a_barrier(
    trained: tuple[nn.Module, Tensor, Tensor], ticket: Extraction
) -> None:
    model, inputs, labels = trained
    torch.manual_seed(5)
    other = tpsprune.replay(model, ticket.plan)
    # The same function with its hidden units in another order: as good, and not on the way.
    hidden, norm, _, head = other.children()
    order = torch.randperm(hidden.out_features)
    with torch.no_grad():
        for tensor in (hidden.weight, hidden.bias, *norm.state_dict().values()):
            if tensor.ndim:
                tensor.copy_(tensor[order].clone())
        head.weight.copy_(head.weight[:, order].clone())
    straight = tpsprune.fidelity(
        model, tpsprune.replay(model, ticket.plan), [[inputs, labels]], plan=ticket.plan
    )
    turned = tpsprune.fidelity(model, other, [[inputs, labels]], plan=ticket.plan)
    assert turned.agreement == straight.agreement
    assert turned.barrier_loss is not None
    assert straight.barrier_loss is not None
    assert turned.barrier_loss > straight.barrier_loss + 0.01


def test_foreign_inputs_far_away_are_told_apart(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, labels = trained
    panel = tpsprune.fidelity(model, model, [[inputs, labels]], foreign=torch.zeros(64, 8))
    assert panel.foreign == "inputs given"
    assert panel.dense.foreign_roc_area is not None
    assert panel.dense.foreign_roc_area > 0.9


def test_without_labels_of_classes_what_needs_them_is_absent_with_the_reason(
    trained: tuple[nn.Module, Tensor, Tensor], ticket: Extraction
) -> None:
    model, inputs, labels = trained
    for given in (None, [labels.float()], [labels[:5]]):
        panel = tpsprune.fidelity(model, ticket, inputs, labels=given)
        assert panel.agreement is None
        assert panel.dense.nc1 is None
        assert set(panel.absent.values()) == {"there are no labels that are classes"}
        assert panel.outputs_explained is not None
        assert panel.states_explained is not None


class Words(nn.Module):
    """A language model of one layer: predictions at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, 11)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(self.embedding(ids)).relu())
        return scores


def test_of_a_language_model_every_labelled_place_counts() -> None:
    torch.manual_seed(0)
    model, ids = Words(), torch.randint(11, (64, 6))
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    panel = tpsprune.fidelity(model, model, ids, labels=labels.split(64))
    assert panel.items == 64
    right = (model(ids).argmax(-1) == labels)[:, :-1].double().mean()
    assert panel.dense.quality == pytest.approx(float(right))
    assert panel.dense.nc3 is not None


def test_a_layer_norm_over_pruned_units_leaves_the_barrier_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    inputs = torch.randn(300, 8)
    found = tpsprune.extract(model, inputs, tpsprune.Macs(0.5), quality="fast", round_to=1)
    panel = tpsprune.fidelity(model, found, [[inputs, model(inputs).argmax(1)]])
    assert panel.absent == {
        "barrier_loss": "a norm runs over pruned units: the ticket has no place in the dense shape"
    }


@pytest.mark.parametrize(
    ("second", "data", "words"),
    [
        (nn.Linear(8, 3), torch.randn(20, 8), "it is no ticket of this model"),
        (None, torch.randn(20, 9), "does not take a batch of data"),
        (None, [], "holds no batch"),
        (None, {"x": torch.randn(4, 8)}, "data is dict"),
    ],
)
def test_what_does_not_fit_is_refused(second: nn.Module | None, data: Any, words: str) -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(ModelError, match=words):
        tpsprune.fidelity(model, second or model, data)


def test_a_model_in_half_precision_is_read_in_single() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).bfloat16()
    inputs = torch.randn(300, 8).bfloat16()
    found = tpsprune.extract(model, inputs, tpsprune.Macs(0.5), quality="fast", round_to=1)
    panel = tpsprune.fidelity(model, found, [[inputs, model(inputs).argmax(1)]])
    assert panel.absent == {}
    assert panel.dense.quality == 1.0


def test_a_split_layer_has_no_place_in_the_dense_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(64, 3) @ torch.randn(3, 64) / 8)
    inputs = torch.randn(400, 32)
    found = tpsprune.extract(model, inputs, tpsprune.Macs(0.5), quality="fast", low_rank=True)
    assert found.plan.factored
    panel = tpsprune.fidelity(model, found, [[inputs, model(inputs).argmax(1)]])
    assert panel.absent["barrier_loss"].startswith("'2' is split in two")
