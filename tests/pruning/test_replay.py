"""A plan carried out on other weights and on optimizer state, and two plans composed into one."""

from __future__ import annotations

import copy
import io
import itertools
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.pruning.helpers import assert_same, elements_kept_by, plan_of
from tests.pruning.nets_attention import ATTENTIONS, Net, Packed, net, sequences, the_heads
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.pruning.groups import Group, PrunedGroup, Slice
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.plan import Plan, signature_of
from tpsprune.pruning.replay import carry_state, compose, replay
from tpsprune.pruning.surgery import mask_units, pruned_copy
from tpsprune.training.muon import Muon

NETS = [*ATTENTIONS, "packed"]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(Packed()) if name == "packed" else net(name)


@cache
def heads_of(name: str) -> tuple[Group, tuple[str, ...]]:
    """Return the heads of a net once it is open, and the attention modules that opens."""
    opened, names = open_layers(built(name))
    return the_heads(opened, sequences()), names


def head_plan(name: str, kept: tuple[int, ...]) -> Plan:
    """Return the plan that keeps some heads of the one attention of a net."""
    heads, opened = heads_of(name)
    model = built(name)
    held = {*open_layers(model)[0].state_dict()}
    pruned = PrunedGroup.of(heads, kept)
    slices = tuple(each for each in pruned.slices if each.tensor in held)
    return plan_of(model, (replace(pruned, slices=slices),), opened=opened)


def again(plan: Plan) -> Plan:
    return Plan.from_json(json.loads(json.dumps(plan.to_json())))


@pytest.mark.parametrize("name", NETS)
def test_heads_are_replayed_bit_for_bit_on_other_weights(name: str) -> None:
    plan = again(head_plan(name, (1,)))
    other = built(name)
    for parameter in other.parameters():
        parameter.data.normal_()
    ticket = replay(other, plan)
    expected = pruned_copy(open_layers(other)[0], plan.groups)
    assert_same(ticket, expected)
    assert torch.equal(ticket.eval()(sequences()), expected.eval()(sequences()))
    assert ticket(sequences()).shape == (8, 3)


def test_a_resumed_round_starts_where_the_first_one_ended() -> None:
    model = built("packed")
    first = head_plan("packed", (0, 2))
    ticket = replay(model, first)
    heads = first.groups[0]
    second = plan_of(ticket, (replace(heads, width=2, kept=(1,)),))
    both = compose(first, second)
    assert both.groups[0].kept == (2,)
    assert replay(model, both).attention.attn.num_heads == 1
    assert_same(replay(replay(built("packed"), first), again(second)), replay(built("packed"), both))
    assert_same(replay(ticket, second), replay(built("packed"), both))


def test_a_ticket_is_loaded_without_running_anybodys_code() -> None:
    plan = head_plan("packed", (0, 2))
    ticket = replay(built("packed"), plan)
    file = io.BytesIO()
    torch.save(ticket.state_dict(), file)
    file.seek(0)
    shell = replay(built("packed"), again(plan))
    shell.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(shell.eval()(sequences()), ticket.eval()(sequences()))


def test_a_plan_for_another_attention_is_refused_naming_the_first_difference() -> None:
    plan = head_plan("packed", (0,))
    with pytest.raises(PruneError, match=r"attn\.in_proj_weight \[36, 12\] .*, the model .*to_q\.weight"):
        replay(net("separate"), plan)
    stubborn = built("packed")
    stubborn.attention.attn.add_zero_attn = True
    with pytest.raises(PruneError, match=r"'attention\.attn' cannot be opened: .*add_zero_attn"):
        replay(stubborn, plan)


def test_a_plan_that_opens_what_is_not_closed_is_refused() -> None:
    raw = head_plan("packed", (0,)).to_json() | {"opened": ["attention"]}
    with pytest.raises(ArtifactError, match=r"plan\.opened: 'attention' is no module in plan"):
        Plan.from_json(raw)


# The bias of the keys has a gradient of rounding errors alone, which a small eps would blow up.
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "muon": lambda parameters: Muon(
        [{"params": [each for each in parameters if each.ndim == 2]}], lr=1e-2, momentum=0.9
    ),
    "sgd without momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model.eval()(sequences(seed=seed)).square().sum().backward()
    optimizer.step()


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def resumed(ticket: nn.Module, state: Any, plan: Plan, kind: str) -> torch.optim.Optimizer:
    """Return an optimizer of a ticket that continues from the state of the dense model's."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS[kind](ticket.parameters())
    parameters = dict(ticket.named_parameters())
    optimizer.state.update({parameters[key]: each for key, each in carry_state(state, plan).items()})
    return optimizer


def masked(model: nn.Module, name: str, plan: Plan) -> nn.Module:
    """Return the opened model with the pruned heads masked."""
    opened, _ = open_layers(model)
    mask_units(opened, heads_of(name)[0], plan.groups[0].removed)
    return opened


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "adam") for name in NETS), *(("packed", each) for each in OPTIMIZERS if each != "adam")],
)
def test_state_is_carried_as_an_index_model_is_pruned(name: str, optimizer: str) -> None:
    model = built(name)
    training = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(2):
        step(model, training, seed)
    plan = head_plan(name, (1,))
    elements = elements_kept_by(built(name), plan)
    packed_of = {
        f"attention.attn.{part}_proj.{kind}": f"attention.attn.in_proj_{kind}"
        for part in "qkv"
        for kind in ("weight", "bias")
    }
    state = state_by_name(model, training)
    carried = carry_state(state, plan)
    assert set(carried) <= set(elements)
    assert bool(carried) == (optimizer != "sgd without momentum" or bool(state))
    for key, entries in carried.items():
        source = state[packed_of.get(key, key) if name == "packed" else key]
        assert set(entries) == set(source)
        for kind, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert torch.equal(value, source[kind].flatten()[elements[key]])
            else:
                assert value == source[kind]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["separate", "fused by part", "grouped queries, rotary", "packed"])
def test_one_step_from_carried_state_is_the_step_of_the_model_with_masked_heads(
    name: str, optimizer: str
) -> None:
    model = built(name)
    training = OPTIMIZERS[optimizer](model.parameters())
    for seed in range(2):
        step(model, training, seed)
    plan = head_plan(name, (1,))
    state = state_by_name(model, training)
    opened = masked(model, name, plan)
    everything = replace(plan, groups=())
    wholes = [opened, replay(model, plan)]
    for subject, its_plan in zip(wholes, (everything, plan), strict=True):
        step(subject, resumed(subject, state, its_plan, optimizer), seed=2)
    closed = replace(plan, opened=(), model=signature_of(opened))
    expected = dict(replay(wholes[0], closed).named_parameters())
    for key, value in wholes[1].named_parameters():
        assert torch.allclose(value, expected[key], atol=1e-6), key


def test_an_optimizer_holds_and_trains_the_parameters_of_the_ticket() -> None:
    name = "separate"
    model = net(name)
    training = OPTIMIZERS["adam"](model.parameters())
    step(model, training, 0)
    plan = head_plan(name, (0, 2))
    ticket = replay(model, plan)
    onward = resumed(ticket, state_by_name(model, training), plan, "adam")
    before = copy.deepcopy(ticket.state_dict())
    step(ticket, onward, 1)
    held = {id(p) for group in onward.param_groups for p in group["params"]}
    for key, value in ticket.named_parameters():
        assert id(value) in held
        assert not torch.equal(value, before[key]), key
        assert onward.state[value]["step"] == 2


def test_factored_moments_of_a_packed_weight_are_refused() -> None:
    plan = head_plan("packed", (0,))
    state = {"attention.attn.in_proj_weight": {"row": torch.zeros(36)}}
    with pytest.raises(PruneError, match=r"_weight', 'row' has shape \[36\], its parameter \[36, 12\]"):
        carry_state(state, plan)
    with pytest.raises(PruneError, match=r"'attention\.attn\.q_proj\.weight': no such tensor"):
        carry_state({"attention.attn.q_proj.weight": {}}, plan)


def counted(model: nn.Module) -> nn.Module:
    """Fill every tensor with the numbers of its own elements, so that a wrong slice shows."""
    for rank, parameter in enumerate(model.parameters()):
        parameter.data = (torch.arange(parameter.numel()) + 1000.0 * rank).reshape(parameter.shape)
    return model


def dense() -> nn.Module:
    return counted(nn.Sequential(nn.Linear(3, 12), nn.Linear(12, 10, bias=False), nn.Linear(10, 2)))


HEADS = PrunedGroup(
    "0", 3, (0, 2), (Slice("0.weight", 0, 0, 4), Slice("0.bias", 0, 0, 4), Slice("1.weight", 1, 0, 4)), ()
)


def composed(model: nn.Module, first: Plan, *groups: PrunedGroup, **settings: Any) -> Plan:
    """Return a plan and one of its ticket as one, which replays as they do one after the other."""
    ticket = replay(model, first)
    second = plan_of(ticket, groups, **settings)
    both = compose(first, second)
    assert_same(replay(model, both), replay(ticket, second))
    assert Plan.from_json(both.to_json()) == both
    return both


def test_a_group_pruned_twice_is_one_group_in_the_dense_numbering() -> None:
    both = composed(dense(), plan_of(dense(), (HEADS,)), replace(HEADS, width=2, kept=(1,)))
    assert both.groups == (replace(HEADS, kept=(2,)),)


def test_a_group_next_to_one_that_was_pruned_has_its_dense_offset() -> None:
    first = plan_of(dense(), (PrunedGroup("a", 4, (1, 2), (Slice("1.weight", 1, 0, 1),)),))
    both = composed(dense(), first, PrunedGroup("b", 4, (0, 3), (Slice("1.weight", 1, 2, 2),)))
    assert both.groups[1] == PrunedGroup("b", 4, (0, 3), (Slice("1.weight", 1, 4, 2),))


def test_units_that_the_first_plan_went_through_are_written_out_by_element() -> None:
    odd = PrunedGroup("odd", 4, (0, 3), (Slice("0.weight", 0, 2, 1), Slice("0.bias", 0, 2, 1)))
    both = composed(dense(), plan_of(dense(), (HEADS,)), odd)
    assert [each.name for each in both.groups] == ["0", "odd", "odd: 0.weight, axis 0", "odd: 0.bias, axis 0"]
    assert both.groups[2].removed == (3, 8)


def test_a_bias_added_in_the_second_round_is_pruned_like_its_outputs() -> None:
    slices = (Slice("1.weight", 0, 0, 1), Slice("2.weight", 1, 0, 1))
    outputs = PrunedGroup("1", 10, tuple(range(3, 9)), slices)
    wider = (*slices, Slice("1.bias", 0, 0, 1))
    second = replace(outputs, width=6, kept=(0, 5), slices=wider)
    both = composed(dense(), plan_of(dense(), (outputs,)), second, new_biases=("1",))
    assert [set(each.slices) for each in both.groups] == [set(wider)]


def test_a_second_plan_for_something_else_is_refused_naming_the_first_difference() -> None:
    model = dense()
    first = plan_of(model, (HEADS,))
    with pytest.raises(PruneError, match=r"not made on the ticket of .*0\.weight \[12, 3\] .*\[8, 3\]"):
        compose(first, plan_of(model, ()))
    packed = Net(Packed())
    group = PrunedGroup("s", 12, (1, 2), (Slice("attention.attn.in_proj_weight", 1, 0, 1),))
    stream = plan_of(packed, (group,))
    narrower = replace(stream, model=signature_of(replay(packed, stream)))
    with pytest.raises(PruneError, match=r"opens a module that the first has pruned, at 'attent"):
        compose(stream, replace(narrower, groups=(), opened=("attention.attn",)))


SIZES = (12, 8, 9)


@st.composite
def prunings(draw: st.DrawFn, lengths: dict[tuple[str, int], int], prefix: str) -> tuple[PrunedGroup, ...]:
    """Make groups that lie on one or two axes each, no axis being in two groups."""
    places = draw(st.permutations(sorted(lengths)))
    groups: list[PrunedGroup] = []
    while places and len(groups) < 3:
        taken, places = places[: (size := draw(st.integers(1, 2)))], places[size:]
        width = draw(st.integers(1, min(lengths[place] for place in taken)))
        slices = []
        for place in taken:
            block = draw(st.integers(1, lengths[place] // width))
            repeat = draw(st.integers(1, lengths[place] // (width * block)))
            stride = width * block if repeat > 1 else 0
            offset = draw(st.integers(0, lengths[place] - width * block * repeat))
            slices.append(Slice(*place, offset, block, repeat, stride))
        kept = draw(st.sets(st.integers(0, width - 1), min_size=1))
        groups.append(PrunedGroup(f"{prefix}{len(groups)}", width, tuple(sorted(kept)), tuple(slices)))
    return tuple(groups)


def lengths_of(model: nn.Module) -> dict[tuple[str, int], int]:
    return {
        (name, axis): length
        for name, tensor in model.state_dict().items()
        for axis, length in enumerate(tensor.shape)
    }


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_two_plans_composed_replay_as_one_after_the_other(data: st.DataObject) -> None:
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(SIZES)]
    model = counted(nn.Sequential(*layers))
    first = plan_of(model, data.draw(prunings(lengths_of(model), "a")))
    ticket = replay(model, first)
    same = tuple(
        PrunedGroup(
            group.name, len(group.kept), kept, tuple(_on_ticket(slice_, group) for slice_ in group.slices)
        )
        for group in first.groups
        if (kept := tuple(sorted(data.draw(st.sets(st.integers(0, len(group.kept) - 1), min_size=1)))))
    )
    composed(model, first, *data.draw(prunings(lengths_of(ticket), "b")))
    assert [each.name for each in composed(model, first, *same).groups] == [each.name for each in same]


def _on_ticket(slice_: Slice, group: PrunedGroup) -> Slice:
    """Return the same layout on the ticket, where repeats lie closer together."""
    removed = (group.width - len(group.kept)) * slice_.block
    return replace(slice_, stride=slice_.stride - removed if slice_.repeat > 1 else 0)
