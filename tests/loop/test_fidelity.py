"""The panel of fidelity: a model beside itself, beside its ticket, and what is not there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tpsprune
from tpsprune.errors import ModelError
from tpsprune.numerics.neural_collapse import neural_collapse
from tpsprune.pruning import Extraction

NO_FIELD = {"latent_field": "the labels are not the inputs: it is no autoencoder"}


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
    assert panel.absent == {"barrier_loss": "the plan of the ticket is not known", **NO_FIELD}


def test_a_ticket_has_every_figure_and_lies_in_the_dense_models_valley(
    trained: tuple[nn.Module, Tensor, Tensor], ticket: Extraction
) -> None:
    model, inputs, labels = trained
    before = {name: each.clone() for name, each in model.state_dict().items()}
    panel = tpsprune.fidelity(model, ticket, inputs.split(100), labels=labels.split(100), seed=3)
    assert panel.absent == NO_FIELD
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
    batches = inputs.split(300)
    for given, reason in (
        (None, "no labels were given"),
        (labels.float().split(300), "the labels are no classes"),
        (torch.full((600,), -100).split(300), "nothing is labelled"),
    ):
        panel = tpsprune.fidelity(model, ticket, batches, labels=given)
        assert panel.agreement is None
        assert panel.dense.nc1 is None
        assert set(panel.absent.values()) == {reason, *NO_FIELD.values()}
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
        "barrier_loss": "a norm runs over pruned units: the ticket has no place in the dense shape",
        **NO_FIELD,
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
    assert panel.absent == NO_FIELD
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


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.arange(20) % 4, "labels is a tensor for 1 batches"),
        ([torch.arange(5)], "5 labels for predictions of shape"),
        ([torch.arange(20) + 10], "labels go from 10 to 29, and the model gives scores of 4 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, words: str) -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(ModelError, match=words):
        tpsprune.fidelity(model, model, torch.randn(20, 8), labels=labels)


def test_scores_that_are_not_finite_are_no_perfect_scores(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, labels = trained
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.inf
    panel = tpsprune.fidelity(broken, model, [[inputs, labels]])
    assert panel.divergence_nats is None
    assert panel.absent["divergence_nats"] == "a score is not finite"
    assert panel.absent["nc1"] == "a state is not finite"


def test_places_without_a_label_count_nowhere() -> None:
    torch.manual_seed(0)
    model, other, ids = Words(), Words(), torch.randint(1, 11, (64, 6))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embedding.weight[0] += 50.0
    ids[:, 4:] = 0
    labels = ids.clone()
    labels[:, 4:] = -100
    panel = tpsprune.fidelity(model, other, ids, labels=[labels])
    assert (panel.agreement, panel.outputs_explained) == (1.0, 1.0)
    assert panel.states_explained == pytest.approx(1.0, abs=1e-5)


def test_a_temperature_changes_what_is_of_probabilities(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, labels = trained
    plain, hot = (
        tpsprune.fidelity(model, model, [[inputs, labels]], temperature=each) for each in (1.0, 8.0)
    )
    assert hot.dense.calibration_error != plain.dense.calibration_error
    assert hot.dense.quality == plain.dense.quality


class TwoHeads(nn.Module):
    """The outputs are the first head's; a second of as many outputs is called last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)
        self.other = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(self.body(x).relu())
        return scores, self.other(x)


def test_states_are_those_behind_the_outputs_not_those_of_the_layer_called_last() -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    inputs, labels = torch.randn(200, 8), torch.arange(200) % 4
    panel = tpsprune.fidelity(model, model, inputs, labels=[labels])
    wanted = neural_collapse(
        model.body(inputs).relu().detach(), labels, model(inputs)[0].argmax(1), model.head.weight.detach()
    )
    assert panel.dense.nc1 == pytest.approx(wanted.nc1, rel=1e-5)
    assert panel.dense.nc3 == pytest.approx(wanted.nc3, rel=1e-5)
    flipped = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(1))
    assert tpsprune.fidelity(flipped, flipped, inputs, labels=[labels]).dense.nc3 is None


def test_of_maps_the_classes_lie_behind_the_items() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(2, 5, 1)
    inputs = torch.randn(8, 2, 5, 5)
    labels = model(inputs).argmax(1)
    panel = tpsprune.fidelity(model, model, inputs, labels=[labels])
    assert (panel.dense.quality, panel.items) == (1.0, 8)


def test_states_of_one_sequence_are_fitted_or_judged_and_not_both() -> None:
    torch.manual_seed(0)
    model = Words()
    ids = torch.stack([torch.randint(0, 3, (80,)), torch.randint(3, 11, (80,))], dim=1)
    panel = tpsprune.fidelity(model, model, ids, labels=[ids])
    assert panel.states_explained == pytest.approx(1.0, abs=1e-3)


def contraction(share: float) -> nn.Module:
    """An autoencoder of six numbers by four codes, whose Jacobian has the eigenvalues share and 0."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6))[0][:, :4]
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    with torch.no_grad():
        model[0].weight.copy_(basis.T)
        model[1].weight.copy_(share * basis)
    return model


@pytest.mark.parametrize(("share", "is_read"), [(0.5, True), (0.95, False)])
def test_the_field_of_an_autoencoder_is_read_and_basins_only_where_it_contracts(
    share: float, is_read: bool
) -> None:
    model, ticket = contraction(share), contraction(0.9 * share)
    inputs = torch.randn(700, 6)
    panel = tpsprune.fidelity(model, ticket, [[part, part] for part in inputs.split(100)])
    field = panel.latent_field
    assert field is not None
    assert field.items == 512
    assert field.dense_radius == pytest.approx(share, rel=1e-2)
    assert field.ticket_radius == pytest.approx(0.9 * share, rel=1e-2)
    assert list(field.drift) == list(field.shaken_drift) == ["1", "10", "100"]
    assert field.drift["1"] == pytest.approx(field.shaken_drift["1"], rel=0.2)
    assert (field.same_basin is not None) is is_read
    assert ("same_basin" in panel.absent) is not is_read
    assert "latent_field" not in panel.absent
    assert panel.absent["agreement"] == "the labels are no classes"
    again = tpsprune.fidelity(model, ticket, [[part, part] for part in inputs.split(100)])
    assert again.latent_field == field


def test_labels_that_are_almost_the_inputs_make_no_autoencoder() -> None:
    model, inputs = contraction(0.5), torch.randn(50, 6)
    other = inputs.clone()
    other[49, 5] += 1e-6
    panel = tpsprune.fidelity(model, model, [[inputs, other]])
    assert panel.latent_field is None
    assert panel.absent["latent_field"] == NO_FIELD["latent_field"]


def test_an_orbit_that_runs_away_and_outputs_of_another_size_have_no_field() -> None:
    model, inputs = contraction(30.0), torch.randn(50, 6)
    panel = tpsprune.fidelity(model, model, [[inputs, inputs]])
    assert panel.absent["latent_field"] == "an orbit leaves the finite numbers: nothing attracts it"
    shorter = nn.Linear(6, 3)
    panel = tpsprune.fidelity(shorter, shorter, [[inputs, inputs]])
    assert panel.absent["latent_field"] == "the outputs are not as many as the inputs"
