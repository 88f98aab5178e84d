from __future__ import annotations

import torch

from tpsprune.numerics.routing import Recorded, as_routed, dealt, dealt_to_all, find_routes, routed

INDEX_TK = torch.tensor([[2, 0], [2, 1], [0, 2]])
WEIGHTS_TK = torch.arange(6.0).reshape(3, 2)


def test_slots_are_those_the_router_names() -> None:
    slots, weights_s = as_routed(INDEX_TK, WEIGHTS_TK, 4)
    assert [each.tolist() for each in slots] == [[1, 4], [3], [0, 2, 5], []]
    assert weights_s.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_sent_to_no_expert_is_dropped() -> None:
    slots, _ = as_routed(torch.tensor([[0, 7], [9, 1]]), torch.ones(2, 2), 2)
    assert [each.tolist() for each in slots] == [[0], [3]]


def test_dealt_out_each_slot_is_one_experts_and_shares_are_equal_but_for_one() -> None:
    slots, _ = dealt(INDEX_TK, WEIGHTS_TK, 4)
    assert sorted(torch.cat(slots).tolist()) == list(range(6))
    assert [len(each) for each in slots] == [2, 2, 1, 1]


def test_every_expert_has_a_slot_where_there_are_fewer_slots_than_experts() -> None:
    slots, _ = dealt_to_all(INDEX_TK[:1], WEIGHTS_TK[:1], 5)
    assert [each.tolist() for each in slots] == [[0], [1], [0], [1], [0]]
    nothing, _ = dealt_to_all(INDEX_TK[:0], WEIGHTS_TK[:0], 5)
    assert [len(each) for each in nothing] == [0] * 5


def test_a_pass_follows_another_call_by_call_and_then_itself() -> None:
    pass_of = Recorded()
    other_tk = torch.tensor([[1, 0]])
    with routed(pass_of.lead):
        led = [find_routes(INDEX_TK, WEIGHTS_TK, 3), find_routes(other_tk, WEIGHTS_TK[:1], 3)]
    with routed(pass_of.follow):
        followed = [find_routes(INDEX_TK.flip(1), -WEIGHTS_TK, 3) for _ in led]
        own, _ = find_routes(INDEX_TK, WEIGHTS_TK, 3)
    for (a, weights_a), (b, weights_b) in zip(led, followed, strict=True):
        assert [each.tolist() for each in a] == [each.tolist() for each in b]
        assert torch.equal(weights_a, weights_b)
    assert [each.tolist() for each in own] == [[1, 4], [3], [0, 2, 5]]


def test_outside_the_block_the_router_decides_again() -> None:
    with routed(dealt):
        pass
    assert [each.tolist() for each in find_routes(INDEX_TK, WEIGHTS_TK, 3)[0]] == [[1, 4], [3], [0, 2, 5]]
