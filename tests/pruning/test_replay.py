from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.nets_attention import ATTENTIONS, Net, Packed, net, sequences
from tests.pruning.test_attention import the_heads
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.pruning.groups import PrunedGroup
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.replay import compose, replay
from tpsprune.pruning.surgery import pruned_copy


def head_plan(model: nn.Module, kept: tuple[int, ...], **settings: Any) -> Plan:
    """Return the plan that keeps some heads of the one attention of ``model``."""
    opened, names = open_attention(model)
    cut = PrunedGroup.of(the_heads(opened, sequences()), kept)
    held = {*opened.state_dict()}
    slices = tuple(slice_ for slice_ in cut.slices if slice_.tensor in held)
    return Plan(
        **{
            "target": "heads",
            "groups": (PrunedGroup(cut.name, cut.width, cut.kept, slices, cut.attributes),),
            "new_biases": (),
            "opened": names,
            "versions": versions(),
            "model": signature_of(model),
            **settings,
        }
    )


def packed() -> nn.Module:
    torch.manual_seed(0)
    return Net(Packed())


@pytest.mark.parametrize("name", [*ATTENTIONS, "packed"])
def test_heads_are_replayed_bit_for_bit_on_other_weights(name: str) -> None:
    model = packed() if name == "packed" else net(name)
    plan = Plan.from_json(json.loads(json.dumps(head_plan(model, (1,)).to_json())))
    other = packed() if name == "packed" else net(name)
    for parameter in other.parameters():
        parameter.data.normal_()
    ticket = replay(other, plan)
    expected = pruned_copy(open_attention(other)[0], plan.groups)
    assert str(ticket) == str(expected)
    for key, value in expected.state_dict().items():
        assert torch.equal(value, ticket.state_dict()[key])
    assert torch.equal(ticket.eval()(sequences()), expected.eval()(sequences()))
    assert ticket(sequences()).shape == (8, 3)


def test_trap_4_a_second_round_after_a_stop_goes_on_where_the_first_one_ended() -> None:
    model = packed()
    first = head_plan(model, (0, 2))
    ticket = replay(model, first)
    second = head_plan(ticket, (1,))
    resumed = replay(replay(packed(), first), Plan.from_json(second.to_json()))
    at_once = replay(packed(), compose(first, second))
    assert str(resumed) == str(at_once) == str(replay(ticket, second))
    for key, value in at_once.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert compose(first, second).groups[0].kept == (2,)


def test_trap_8_the_plan_holds_what_was_cut_and_nothing_that_was_only_proposed() -> None:
    model = net("separate")
    proposed = head_plan(model, (0,))
    plan = head_plan(model, (0, 2))
    assert len(plan.groups) == 1
    assert plan.groups[0].removed == (1,)
    assert replay(model, plan).attention.num_heads == 2
    assert replay(model, proposed).attention.num_heads == 1


def test_trap_19_a_ticket_is_loaded_without_running_anybodys_code() -> None:
    model = packed()
    plan = head_plan(model, (0, 2))
    ticket = replay(model, plan)
    file = io.BytesIO()
    torch.save(ticket.state_dict(), file)
    text = json.dumps(plan.to_json())
    file.seek(0)
    shell = replay(packed(), Plan.from_json(json.loads(text)))
    shell.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(shell.eval()(sequences()), ticket.eval()(sequences()))


def test_a_plan_for_another_attention_is_refused_naming_the_first_difference() -> None:
    plan = head_plan(packed(), (0,))
    with pytest.raises(
        PruneError, match=r"attn\.in_proj_weight \[36, 12\] float32, the model .*to_q\.weight"
    ):
        replay(net("separate"), plan)
    stubborn = packed()
    stubborn.attention.attn.add_zero_attn = True
    with pytest.raises(PruneError, match=r"'attention\.attn' cannot be opened: .*add_zero_attn"):
        replay(stubborn, plan)


def test_a_plan_that_opens_what_is_not_closed_is_refused() -> None:
    raw = head_plan(packed(), (0,)).to_json() | {"opened": ["attention"]}
    with pytest.raises(ArtifactError, match=r"plan\.opened: 'attention' is no closed attention module"):
        Plan.from_json(raw)
