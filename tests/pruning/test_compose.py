from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.pruning.nets_attention import Net, Packed
from tpsprune.errors import PruneError
from tpsprune.pruning.groups import Attribute, PrunedGroup, Slice
from tpsprune.pruning.plan import Plan, signature_of, versions
from tpsprune.pruning.replay import compose, replay


def plan_of(model: nn.Module, groups: tuple[PrunedGroup, ...], **settings: Any) -> Plan:
    return Plan(
        **{
            "target": "widths",
            "groups": groups,
            "new_biases": (),
            "versions": versions(),
            "model": signature_of(model),
            **settings,
        }
    )


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert str(ours) == str(theirs)


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


def test_a_group_cut_twice_is_one_group_in_the_dense_numbering() -> None:
    model = dense()
    first = plan_of(model, (HEADS,))
    ticket = replay(model, first)
    second = plan_of(ticket, (replace(HEADS, width=2, kept=(1,)),))
    both = compose(first, second)
    assert [(cut.width, cut.kept) for cut in both.groups] == [(3, (2,))]
    assert both.groups[0].slices == HEADS.slices
    assert Plan.from_json(both.to_json()) == both
    assert_same(replay(model, both), replay(ticket, second))


def test_a_group_beside_one_that_was_cut_moves_back_to_its_place() -> None:
    model = dense()
    first = plan_of(model, (PrunedGroup("a", 4, (1, 2), (Slice("1.weight", 1, 0, 1),)),))
    ticket = replay(model, first)
    second = plan_of(ticket, (PrunedGroup("b", 4, (0, 3), (Slice("1.weight", 1, 2, 2),)),))
    both = compose(first, second)
    assert both.groups[1] == PrunedGroup("b", 4, (0, 3), (Slice("1.weight", 1, 4, 2),))
    assert_same(replay(model, both), replay(ticket, second))


def test_units_that_the_first_cut_went_through_are_written_out_by_element() -> None:
    model = dense()
    first = plan_of(model, (HEADS,))
    ticket = replay(model, first)
    odd = PrunedGroup("odd", 4, (0, 3), (Slice("0.weight", 0, 2, 1), Slice("0.bias", 0, 2, 1)))
    second = plan_of(ticket, (odd,))
    both = compose(first, second)
    assert [cut.name for cut in both.groups] == ["0", "odd", "odd: 0.weight, axis 0", "odd: 0.bias, axis 0"]
    assert both.groups[2].removed == (3, 8)
    assert Plan.from_json(both.to_json()) == both
    assert_same(replay(model, both), replay(ticket, second))


def test_a_bias_added_in_the_second_round_is_cut_like_its_outputs() -> None:
    model = dense()
    outputs = PrunedGroup(
        "1", 10, tuple(range(3, 9)), (Slice("1.weight", 0, 0, 1), Slice("2.weight", 1, 0, 1))
    )
    first = plan_of(model, (outputs,))
    ticket = replay(model, first)
    wider = (*outputs.slices, Slice("1.bias", 0, 0, 1))
    second = plan_of(ticket, (replace(outputs, width=6, kept=(0, 5), slices=wider),), new_biases=("1",))
    both = compose(first, second)
    assert len(both.groups) == 1
    assert set(both.groups[0].slices) == set(wider)
    assert_same(replay(model, both), replay(ticket, second))


def test_heads_then_their_numbers_are_those_of_the_second_round() -> None:
    torch.manual_seed(0)
    model = Net(Packed())
    slices = tuple(
        Slice(f"attention.attn.{name}", axis, 0, 4)
        for name, axis in (
            *((f"{part}_proj.{tensor}", 0) for part in "qkv" for tensor in ("weight", "bias")),
            ("out_proj.weight", 1),
        )
    )
    heads = PrunedGroup("heads", 3, (0, 2), slices, (Attribute("attention.attn", "num_heads", 1),))
    first = plan_of(model, (heads,), opened=("attention.attn",))
    ticket = replay(model, first)
    second = plan_of(ticket, (replace(heads, width=2, kept=(1,)),))
    both = compose(first, second)
    assert both.opened == ("attention.attn",)
    assert both.groups[0].kept == (2,)
    assert replay(model, both).attention.attn.num_heads == 1
    assert_same(replay(model, both), replay(ticket, second))


def test_a_second_plan_for_something_else_is_refused_naming_the_first_difference() -> None:
    model = dense()
    first = plan_of(model, (HEADS,))
    with pytest.raises(
        PruneError, match=r"not made on the ticket of the first: .*0\.weight \[12, 3\] .*0\.weight \[8, 3\]"
    ):
        compose(first, plan_of(model, ()))
    packed = Net(Packed())
    stream = plan_of(
        packed, (PrunedGroup("s", 12, (1, 2), (Slice("attention.attn.in_proj_weight", 1, 0, 1),)),)
    )
    cut = replace(
        stream,
        model=tuple(
            replace(fact, shape=(36, 2)) if fact.name.endswith("in_proj_weight") else fact
            for fact in stream.model
        ),
    )
    with pytest.raises(
        PruneError, match=r"opens an attention that the first has cut, at 'attention\.attn\.in_"
    ):
        compose(stream, replace(cut, groups=(), opened=("attention.attn",)))


SIZES = (12, 8, 9)


@st.composite
def cuts(draw: st.DrawFn, lengths: dict[tuple[str, int], int], prefix: str) -> tuple[PrunedGroup, ...]:
    """Draw groups that lie on one or two axes each, no axis being in two groups."""
    places = draw(st.permutations(sorted(lengths)))
    answer = []
    while places and len(answer) < 3:
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
        answer.append(PrunedGroup(f"{prefix}{len(answer)}", width, tuple(sorted(kept)), tuple(slices)))
    return tuple(answer)


def lengths_of(model: nn.Module) -> dict[tuple[str, int], int]:
    return {
        (name, axis): length
        for name, tensor in model.state_dict().items()
        for axis, length in enumerate(tensor.shape)
    }


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_two_plans_composed_replay_as_one_after_the_other(data: st.DataObject) -> None:
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(SIZES)]
    model = counted(nn.Sequential(*layers))
    first = plan_of(model, data.draw(cuts(lengths_of(model), "a")))
    ticket = replay(model, first)
    again = tuple(
        PrunedGroup(cut.name, len(cut.kept), kept, tuple(_as_cut(slice_, cut) for slice_ in cut.slices))
        for cut in first.groups
        if (kept := tuple(sorted(data.draw(st.sets(st.integers(0, len(cut.kept) - 1), min_size=1)))))
    )
    for groups in (again, data.draw(cuts(lengths_of(ticket), "b"))):
        second = plan_of(ticket, groups)
        both = compose(first, second)
        assert_same(replay(model, both), replay(ticket, second))
        assert Plan.from_json(both.to_json()) == both
    assert [cut.name for cut in compose(first, plan_of(ticket, again)).groups] == [c.name for c in again]


def _as_cut(slice_: Slice, cut: PrunedGroup) -> Slice:
    """Return the same layout on the ticket, where repeats lie closer together."""
    gone = (cut.width - len(cut.kept)) * slice_.block
    return replace(slice_, stride=slice_.stride - gone if slice_.repeat > 1 else 0)
