from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.helpers import assert_same, elements_kept_by
from tests.pruning.nets_structure import Cnn, case
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.pruning import Extraction, Plan, carry_state, extract, replay
from tpsprune.recipe.prune import Macs, Prune


@cache
def extraction(name: str = "cnn", *, compensate: bool = True) -> Extraction:
    settings = Prune(
        target=Macs(0.6),
        round_to=1,
        widths="effective-rank",
        compensate=compensate,
        recalibrate=compensate,
    )
    model, batch = case(name)
    return extract(model, [batch], settings)


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"])
def test_a_plan_survives_its_json(name: str) -> None:
    plan = extraction(name).plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.to_json()["schema"] == "tpsprune.plan/2"
    assert set(plan.versions) == {"tpsprune", "torch", "torch-pruning"}


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "transformer"])
def test_replayed_on_the_same_weights_it_gives_the_slices_bit_for_bit(name: str) -> None:
    found = extraction(name, compensate=False)
    assert_same(replay(case(name)[0], found.plan), found.ticket)


def test_replayed_on_initial_weights_it_takes_a_ticket_with_new_biases() -> None:
    found, batch = extraction(), case("cnn")[1]
    ticket, plan = found.ticket, found.plan
    assert plan.new_biases == ("body.3",)
    initial = Cnn()
    before = copy.deepcopy(initial.state_dict())
    again = replay(initial, plan)
    kept = torch.tensor(plan.groups[0].kept)
    assert torch.equal(again.body[0].weight, before["body.0.weight"][kept])
    assert torch.equal(again.body[3].bias, torch.zeros(len(plan.groups[1].kept)))
    assert all(torch.equal(before[key], value) for key, value in initial.state_dict().items())
    again.load_state_dict(ticket.state_dict())
    assert torch.equal(again.eval()(batch), ticket.eval()(batch))


def test_a_plan_for_another_model_is_refused_naming_the_first_difference() -> None:
    plan = extraction().plan
    with pytest.raises(
        PruneError, match=r"the plan has body\.3\.weight \[8, 6, 3, 3\] float32, the model .*\[9, 6"
    ):
        replay(Cnn((6, 9)), plan)
    with pytest.raises(PruneError, match=r"body\.0\.weight .* float32, the model .* float64"):
        replay(Cnn().double(), plan)
    longer = Cnn()
    longer.add_module("tail", nn.Linear(1, 1, bias=False))
    with pytest.raises(
        PruneError, match=r"the plan has nothing more, the model tail\.weight \[1, 1\] float32"
    ):
        replay(longer, plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("schema"), "does not name the schema 'tpsprune.plan/2'"),
        (lambda raw: raw.update(schema="tpsprune.plan/9"), "schema 'tpsprune.plan/9' is unknown"),
        (lambda raw: raw.update(extra=1), "plan.extra is not known"),
        (lambda raw: raw.pop("groups"), "plan.groups is missing"),
        (lambda raw: raw.update(target=5), r"plan\.target must be a valid string \(found 5\)"),
        (lambda raw: raw["groups"][0].update(width=True), r"plan\.groups\.0\.width must be a valid integer"),
        (
            lambda raw: raw["groups"][1].update(kept=[3, 1]),
            r"plan\.groups '.*'\.kept: ascending units below 8",
        ),
        (
            lambda raw: raw["groups"][1].update(kept=[0, 8]),
            r"plan\.groups '.*'\.kept: ascending units below 8",
        ),
        (lambda raw: raw["groups"][1].update(kept=[]), r"plan\.groups '.*'\.kept: ascending units below 8"),
        (lambda raw: raw["groups"][0].update(slices=[3]), r"slices\.0 must be an object \(found 3\)"),
        (lambda raw: raw["groups"][0]["slices"][0].update(axis=4), "its units do not fit axis 4 of"),
        (lambda raw: raw["groups"][0]["slices"][0].update(offset=1), "its units do not fit axis 0 of"),
        (
            lambda raw: raw["model"][0].update(shape=[6, 2, 3, 4]),
            r"plan\.digest: it is not that of the tensors",
        ),
        (lambda raw: raw.update(new_biases=["head"]), r"plan\.new_biases: 'head' is no layer without a bias"),
        (lambda raw: raw.update(versions=[]), r"plan\.versions must be an object"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_place(change: Any, message: str) -> None:
    raw = json.loads(json.dumps(extraction().plan.to_json()))
    change(raw)
    with pytest.raises(ArtifactError, match=message):
        Plan.from_json(raw)


def test_what_is_no_plan_at_all_is_refused_as_that() -> None:
    for raw in (None, [], "plan", {"schema": "other/1"}):
        with pytest.raises(ArtifactError, match="this is not a plan"):
            Plan.from_json(raw)


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "transformer"])
def test_optimizer_state_is_carried_element_by_element(name: str) -> None:
    plan, model = extraction(name).plan, case(name)[0]
    elements = elements_kept_by(case(name)[0], plan)
    state = {
        key: {"exp_avg": torch.randn_like(value), "step": torch.tensor(3.0), "note": "kept"}
        for key, value in model.named_parameters()
    }
    carried = carry_state(state, plan)
    assert set(carried) == set(state)
    for key, entries in carried.items():
        assert torch.equal(entries["exp_avg"], state[key]["exp_avg"].flatten()[elements[key]])
        assert entries["step"] == 3.0
        assert entries["note"] == "kept"


def test_state_that_cannot_be_sliced_is_refused() -> None:
    plan = extraction().plan
    with pytest.raises(
        PruneError, match=r"'body\.0\.weight', 'row' has shape \[6\], its parameter \[6, 2, 3, 3\]"
    ):
        carry_state({"body.0.weight": {"row": torch.zeros(6)}}, plan)
    with pytest.raises(
        PruneError, match=r"'body\.0\.weigt': no such tensor .*did you mean 'body\.0\.weight'"
    ):
        carry_state({"body.0.weigt": {}}, plan)
