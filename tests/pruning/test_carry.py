from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.nets_attention import ATTENTIONS, Net, Packed, net, sequences
from tests.pruning.test_replay import head_plan, packed
from tpsprune.errors import PruneError
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.plan import Plan, signature_of
from tpsprune.pruning.replay import carry_state, replay

# The bias of the keys has a gradient of rounding errors alone, which a small eps would blow up.
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
}


def built(name: str) -> nn.Module:
    return packed() if name == "packed" else net(name)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model.eval()(sequences(seed=seed)).square().sum().backward()
    optimizer.step()


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def silenced(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the opened model with its output projection deaf to the heads that go."""
    deaf, _ = open_attention(model)
    (cut,) = plan.groups
    column = cut.slices[-1]
    assert column.axis == 1
    with torch.no_grad():
        for unit in cut.removed:
            start = column.offset + unit * column.block
            deaf.get_parameter(column.tensor)[:, start : start + column.block] = 0.0
    return deaf


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", [*ATTENTIONS, "packed"])
def test_state_is_carried_as_an_index_model_is_cut(name: str, optimizer: str) -> None:
    model = built(name)
    training = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(2):
        step(model, training, seed)
    plan = head_plan(model, (1,))
    index = built(name).double()
    for parameter in index.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    places = dict(replay(index, replace(plan, model=signature_of(index))).named_parameters())
    packed_of = {
        f"attention.attn.{part}_proj.{kind}": f"attention.attn.in_proj_{kind}"
        for part in "qkv"
        for kind in ("weight", "bias")
    }
    state = state_by_name(model, training)
    answer = carry_state(state, plan)
    assert set(answer) <= set(places)
    assert bool(answer) == (optimizer != "plain sgd" or bool(state))
    for key, entries in answer.items():
        source = state[packed_of.get(key, key) if name == "packed" else key]
        assert set(entries) == set(source)
        for kind, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert torch.equal(value, source[kind].flatten()[places[key].long()])
            else:
                assert value == source[kind]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["separate", "fused by part", "grouped queries, rotary", "packed"])
def test_one_step_from_carried_state_is_the_step_of_the_model_with_silent_heads(
    name: str, optimizer: str
) -> None:
    model = built(name)
    training = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(2):
        step(model, training, seed)
    plan = head_plan(model, (1,))
    state = state_by_name(model, training)
    deaf = silenced(model, plan)
    everything = replace(plan, groups=())
    wholes = []
    for subject, its_plan in ((deaf, everything), (replay(model, plan), plan)):
        onward = OPTIMIZERS[optimizer](subject.parameters())
        parameters = dict(subject.named_parameters())
        for key, entries in carry_state(state, its_plan).items():
            onward.state[parameters[key]] = entries
        step(subject, onward, seed=2)
        wholes.append(subject)
    closed = replace(plan, opened=(), model=signature_of(deaf))
    expected = dict(replay(wholes[0], closed).named_parameters())
    for key, value in wholes[1].named_parameters():
        assert torch.allclose(value, expected[key], atol=1e-6), key


def test_trap_2_an_optimizer_that_held_the_old_parameters_trained_nothing_any_more() -> None:
    model = net("separate")
    training = OPTIMIZERS["adam"](model.parameters())
    step(model, training, 0)
    plan = head_plan(model, (0, 2))
    ticket = replay(model, plan)
    parameters = dict(ticket.named_parameters())
    onward = OPTIMIZERS["adam"](ticket.parameters())
    for key, entries in carry_state(state_by_name(model, training), plan).items():
        onward.state[parameters[key]] = entries
    before = copy.deepcopy(ticket.state_dict())
    step(ticket, onward, 1)
    held = {id(p) for group in onward.param_groups for p in group["params"]}
    for key, value in ticket.named_parameters():
        assert id(value) in held
        assert not torch.equal(value, before[key]), key
        assert onward.state[value]["step"] == 2


def test_factored_moments_of_a_packed_weight_are_refused() -> None:
    plan = head_plan(Net(Packed()), (0,))
    name = "attention.attn.in_proj_weight"
    with pytest.raises(
        PruneError, match=r"in_proj_weight', 'row' has shape \[36\], its parameter \[36, 12\]"
    ):
        carry_state({name: {"row": torch.zeros(36)}}, plan)
    with pytest.raises(PruneError, match=r"'attention\.attn\.q_proj\.weight': no such tensor"):
        carry_state({"attention.attn.q_proj.weight": {}}, plan)
