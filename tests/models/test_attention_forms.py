"""Forms of attention against their published formulas, written out, and against softmax attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tpsprune.models.attention_forms import attend, attend_forgetting, attend_in_pairs


def heads(*names: str, items: int = 2, count: int = 3, length: int = 5, width: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(items, count, length, width, dtype=torch.float64) for _ in names]


def test_gates_that_never_close_are_causal_softmax_attention() -> None:
    q, k, v = heads("q", "k", "v")
    gate = torch.full(q.shape[:3], 50.0, dtype=q.dtype)
    assert torch.allclose(attend_forgetting(q, k, v, gate), attend(q, k, v, causal=True))
    last = attend_forgetting(q[:, :, -1:], k, v, gate)
    assert torch.allclose(last, attend(q[:, :, -1:], k, v, causal=False))


def test_a_constant_gate_decays_by_its_log_a_step() -> None:
    q, k, v = heads("q", "k", "v")
    forget = 0.3
    gate = torch.full(q.shape[:3], math.log(forget / (1 - forget)), dtype=q.dtype)
    away = torch.arange(5)[:, None] - torch.arange(5)
    scores = (q @ k.mT / 2 + away * math.log(forget)).masked_fill(away < 0, -torch.inf)
    assert torch.allclose(attend_forgetting(q, k, v, gate), scores.softmax(-1) @ v)


def test_a_closed_gate_hides_all_before_it() -> None:
    q, k, v = heads("q", "k", "v")
    gate = torch.zeros(q.shape[:3], dtype=q.dtype)
    gate[:, :, 3] = -1e4
    changed = v.clone()
    changed[:, :, :3] += 7.0
    first, second = attend_forgetting(q, k, v, gate), attend_forgetting(q, k, changed, gate)
    assert torch.allclose(first[:, :, 3:], second[:, :, 3:])
    assert not torch.allclose(first[:, :, :3], second[:, :, :3])


def test_pairs_with_ones_in_the_second_place_are_causal_softmax_attention() -> None:
    q, k, v = heads("q", "k", "v")
    ones = torch.ones_like(k)
    found = attend_in_pairs(q, k, ones, v, ones, windows=(5, 1))
    assert torch.allclose(found, attend(q, k, v, causal=True))


@pytest.mark.parametrize("windows", [None, (2, 3)])
@pytest.mark.parametrize("asking", [1, 5])
def test_pairs_are_the_sum_over_both_positions_as_published(
    windows: tuple[int, int] | None, asking: int
) -> None:
    q, k, k2, v, v2 = heads("q", "k", "k2", "v", "v2")
    q = q[:, :, -asking:]
    found = attend_in_pairs(q, k, k2, v, v2, windows)
    for item in range(2):
        for head in range(3):
            for row in range(asking):
                place = row + 5 - asking
                total, mixed = 0.0, torch.zeros(4, dtype=q.dtype)
                for j in range(5):
                    for other in range(5):
                        if j > place or other > place:
                            continue
                        if windows and (place - j >= windows[0] or place - other >= windows[1]):
                            continue
                        score = float((q[item, head, row] * k[item, head, j] * k2[item, head, other]).sum())
                        weight = math.exp(score / 2)
                        total += weight
                        mixed += weight * v[item, head, j] * v2[item, head, other]
                assert torch.allclose(found[item, head, row], mixed / total)


def test_pairs_do_not_hang_on_which_of_the_two_is_first() -> None:
    q, k, k2, v, v2 = heads("q", "k", "k2", "v", "v2")
    assert torch.allclose(attend_in_pairs(q, k, k2, v, v2), attend_in_pairs(q, k2, k, v2, v))
