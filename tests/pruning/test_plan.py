from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tpsprune.errors import ArtifactError, PruneError
from tpsprune.pruning import Plan, carry_state, extract, replay
from tpsprune.pruning.plan import signature_of
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs


def drawn(zoo: SimpleNamespace, name: str = "cnn", **settings: Any) -> tuple[nn.Module, Any, nn.Module, Plan]:
    model, batch = zoo.case(name)
    found = extract(model, [batch], Prune(**{"target": Macs(0.6), "widths": "effective-rank", **settings}))
    return model, batch, found.ticket, found.plan


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"])
def test_a_plan_survives_its_json(zoo: SimpleNamespace, name: str) -> None:
    *_, plan = drawn(zoo, name)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.to_json()["schema"] == "tpsprune.plan/2"
    assert set(plan.versions) == {"tpsprune", "torch", "torch-pruning"}


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "transformer"])
def test_replayed_on_the_same_weights_it_gives_the_slices_bit_for_bit(
    zoo: SimpleNamespace, name: str
) -> None:
    model, _, ticket, plan = drawn(zoo, name, fold=False, recalibrate=False)
    again = replay(model, plan)
    assert str(again) == str(ticket)
    for key, value in again.state_dict().items():
        assert torch.equal(value, ticket.state_dict()[key])


def test_replayed_on_initial_weights_it_takes_a_ticket_with_new_biases(zoo: SimpleNamespace) -> None:
    _, batch, ticket, plan = drawn(zoo)
    assert plan.new_biases == ("body.3",)
    initial = zoo.Cnn()
    before = copy.deepcopy(initial.state_dict())
    again = replay(initial, plan)
    kept = torch.tensor(plan.groups[0].kept)
    assert torch.equal(again.body[0].weight, before["body.0.weight"][kept])
    assert torch.equal(again.body[3].bias, torch.zeros(len(plan.groups[1].kept)))
    assert all(torch.equal(before[key], value) for key, value in initial.state_dict().items())
    again.load_state_dict(ticket.state_dict())
    assert torch.equal(again.eval()(batch), ticket.eval()(batch))


def test_a_plan_for_another_model_is_refused_naming_the_first_difference(zoo: SimpleNamespace) -> None:
    *_, plan = drawn(zoo)
    with pytest.raises(
        PruneError, match=r"the plan has body\.3\.weight \[8, 6, 3, 3\] float32, the model .*\[9, 6"
    ):
        replay(zoo.Cnn((6, 9)), plan)
    with pytest.raises(PruneError, match=r"body\.0\.weight .* float32, the model .* float64"):
        replay(zoo.Cnn().double(), plan)
    longer = zoo.Cnn()
    longer.add_module("tail", nn.Linear(1, 1, bias=False))
    with pytest.raises(
        PruneError, match=r"the plan has nothing more, the model tail\.weight \[1, 1\] float32"
    ):
        replay(longer, plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("schema"), "does not name the schema 'tpsprune.plan/2'"),
        (lambda raw: raw.update(schema="tpsprune.plan/9"), "schema 'tpsprune.plan/9' is not known here"),
        (lambda raw: raw.update(extra=1), "plan: 'extra' is not known"),
        (lambda raw: raw.pop("groups"), "plan: 'groups' is missing"),
        (lambda raw: raw.update(target=5), r"plan\.target: a text is needed, found 5"),
        (lambda raw: raw["groups"][0].update(width=True), r"plan\.groups\[0\]\.width: a whole number"),
        (
            lambda raw: raw["groups"][1].update(kept=[3, 1]),
            r"plan\.groups\[1\]\.kept: ascending units below 8",
        ),
        (
            lambda raw: raw["groups"][1].update(kept=[0, 8]),
            r"plan\.groups\[1\]\.kept: ascending units below 8",
        ),
        (lambda raw: raw["groups"][1].update(kept=[]), r"plan\.groups\[1\]\.kept: ascending units below 8"),
        (lambda raw: raw["groups"][0].update(slices=[3]), r"slices\[0\]: an object is needed, found int"),
        (lambda raw: raw["groups"][0]["slices"][0].update(axis=4), "its units do not fit axis 4 of"),
        (lambda raw: raw["groups"][0]["slices"][0].update(offset=1), "its units do not fit axis 0 of"),
        (
            lambda raw: raw["model"][0].update(shape=[6, 2, 3, 4]),
            r"plan\.digest: it is not that of the tensors",
        ),
        (lambda raw: raw.update(new_biases=["head"]), r"plan\.new_biases: 'head' is no layer without a bias"),
        (lambda raw: raw.update(versions=[]), r"plan\.versions: an object of texts"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_place(zoo: SimpleNamespace, change: Any, message: str) -> None:
    raw = json.loads(json.dumps(drawn(zoo)[3].to_json()))
    change(raw)
    with pytest.raises(ArtifactError, match=message):
        Plan.from_json(raw)


def test_what_is_no_plan_at_all_is_said_so() -> None:
    for raw in (None, [], "plan", {"schema": "other/1"}):
        with pytest.raises(ArtifactError, match="this is not a plan"):
            Plan.from_json(raw)


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "transformer"])
def test_optimizer_state_is_carried_element_by_element(zoo: SimpleNamespace, name: str) -> None:
    model, _, _, plan = drawn(zoo, name)
    index = zoo.case(name)[0].double()
    for parameter in index.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    slices = dict(replay(index, replace(plan, model=signature_of(index))).named_parameters())
    state = {
        key: {"exp_avg": torch.randn_like(value), "step": torch.tensor(3.0), "note": "kept"}
        for key, value in model.named_parameters()
    }
    answer = carry_state(state, plan)
    assert set(answer) == set(state)
    for key, entries in answer.items():
        expected = state[key]["exp_avg"].flatten()[slices[key].long()]
        assert torch.equal(entries["exp_avg"], expected)
        assert entries["step"] == 3.0
        assert entries["note"] == "kept"


def test_training_goes_on_from_carried_state_as_if_the_units_had_been_silent(zoo: SimpleNamespace) -> None:
    model, batch, _, plan = drawn(zoo, "mlp", fold=False)
    labels = torch.arange(len(batch)) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {names[parameter]: entries for parameter, entries in optimizer.state.items()}
    ticket = replay(model, plan)
    parameters = dict(ticket.named_parameters())
    onward = torch.optim.AdamW(ticket.parameters(), lr=1e-2)
    onward.state.update({parameters[name]: entries for name, entries in carry_state(state, plan).items()})
    losses = []
    for _ in range(5):
        onward.zero_grad()
        loss = nn.functional.cross_entropy(ticket(batch), labels)
        loss.backward()
        losses.append(loss.item())
        onward.step()
    assert losses[-1] < losses[0]
    assert onward.state[parameters["0.weight"]]["step"] == 8
    assert onward.state[parameters["0.weight"]]["exp_avg"].shape == parameters["0.weight"].shape


def test_state_that_cannot_be_sliced_is_refused(zoo: SimpleNamespace) -> None:
    *_, plan = drawn(zoo)
    with pytest.raises(
        PruneError, match=r"'body\.0\.weight', 'row' has shape \[6\], its parameter \[6, 2, 3, 3\]"
    ):
        carry_state({"body.0.weight": {"row": torch.zeros(6)}}, plan)
    with pytest.raises(
        PruneError, match=r"'body\.0\.weigt': no such tensor .*did you mean 'body\.0\.weight'"
    ):
        carry_state({"body.0.weigt": {}}, plan)
