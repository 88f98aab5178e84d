"""The distance from a teacher: its formula written out, its zero, its temperature, what does not count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.numerics.test_objective import WORDS, drawn
from tpsprune.numerics.distillation import distance
from tpsprune.numerics.objective import IGNORED, Objective

CLASSES = ("cross-entropy", "next-token", "bce")


def other(scores: Tensor) -> Tensor:
    return scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(9))


def by_hand(word: str, ours: Tensor, theirs: Tensor, labels: Tensor, warmth: float, tau: float) -> float:
    """Return the distance by its definition, number after number."""
    if word in ("mse", "reconstruction"):
        return (ours - theirs).square().mean().item()
    found = []
    if word == "bce":
        for pair in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
            q, p = (1 / (1 + math.exp(-each / warmth)) for each in pair)
            found.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    else:
        rows = zip(ours.flatten(0, -2), theirs.flatten(0, -2), labels.flatten().tolist(), strict=True)
        for ours_c, theirs_c, label in rows:
            if label != IGNORED:
                q_c, p_c = (torch.softmax(each / warmth, 0).tolist() for each in (ours_c, theirs_c))
                found.append(sum(p * math.log(p / q) for p, q in zip(p_c, q_c, strict=True)))
    return tau**2 * sum(found) / len(found)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("own", "tau"), [(1.0, 1.0), (1.0, 4.0), (3.0, 2.0)])
def test_it_is_that_of_its_formula(word: str, own: float, tau: float) -> None:
    own = own if word in ("cross-entropy", "next-token") else 1.0  # others have no temperature of their own
    scores, labels = drawn(word)
    found = distance(Objective.of(word, own), other(scores), scores, labels, tau)
    assert found.item() == pytest.approx(
        by_hand(word, other(scores), scores, labels, own * tau, tau), rel=1e-4
    )


@pytest.mark.parametrize("word", WORDS)
def test_it_is_zero_and_flat_where_the_outputs_are_the_teachers(word: str) -> None:
    scores, labels = drawn(word)
    ours = scores.clone().requires_grad_()
    found = distance(Objective.of(word), ours, scores, labels, 2.0)
    (slope,) = torch.autograd.grad(found, ours)
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-7, rtol=0)
    assert distance(Objective.of(word), other(scores), scores, labels).item() > 0.01


@pytest.mark.parametrize("word", CLASSES)
def test_at_a_high_temperature_its_slope_no_longer_depends_on_the_temperature(word: str) -> None:
    """(q − p) τ² / τ tends to differences of centred scores: Hinton et al., equation 4."""
    scores, labels = drawn(word)
    slopes = []
    for tau in (100.0, 1000.0):
        ours = other(scores).requires_grad_()
        found = distance(Objective.of(word), ours, scores, labels, tau)
        slopes.append(torch.autograd.grad(found, ours)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0.02, atol=2e-4)
    assert slopes[0].abs().max() > 1e-4


def test_cross_entropy_and_next_token_do_not_see_a_shift_of_all_scores() -> None:
    for word in ("cross-entropy", "next-token"):
        scores, labels = drawn(word)
        found = [distance(Objective.of(word), other(scores) + shift, scores, labels) for shift in (0.0, 7.0)]
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_places_that_do_not_count_do_not_show_and_a_batch_of_them_has_no_slope() -> None:
    scores, labels = drawn("next-token")
    objective = Objective.of("next-token")
    changed = torch.where((labels == IGNORED)[..., None], torch.randn(scores.shape), other(scores))
    torch.testing.assert_close(
        distance(objective, changed, scores, labels), distance(objective, other(scores), scores, labels)
    )
    ours = other(scores).requires_grad_()
    none = distance(objective, ours, scores, torch.full_like(labels, IGNORED))
    (slope,) = torch.autograd.grad(none, ours)
    assert none.item() == 0.0
    assert not slope.any()


def test_no_gradient_reaches_the_teacher() -> None:
    scores, labels = drawn("cross-entropy")
    wanted = scores.clone().requires_grad_()
    distance(Objective.of("cross-entropy"), other(scores).requires_grad_(), wanted, labels).backward()
    assert wanted.grad is None
