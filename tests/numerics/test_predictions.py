"""Agreement, divergence, calibration, ROC area and what one model's states explain of another's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tpsprune.numerics.predictions import (
    affine_explained,
    agreement,
    calibration_error,
    divergence,
    explained,
    rank_correlation,
    roc_area,
)


def test_equal_scores_agree_and_a_shift_of_all_changes_nothing() -> None:
    scores = torch.randn(50, 4)
    assert agreement(scores, scores + 3) == 1.0
    assert divergence(scores, scores + 3) == pytest.approx(0.0, abs=1e-12)
    assert agreement(torch.eye(4), torch.eye(4).roll(1, 0)) == 0.0


def test_divergence_of_two_coins_is_the_closed_form() -> None:
    p, q = 0.8, 0.3
    first, second = (torch.tensor([[math.log(each), math.log(1 - each)]]) for each in (p, q))
    wanted = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert divergence(first, second) == pytest.approx(wanted, rel=1e-5)


def test_a_model_that_is_right_as_often_as_it_is_sure_is_calibrated() -> None:
    scores = torch.tensor([[math.log(0.75), math.log(0.25)]]).repeat(100, 1)
    labels = (torch.arange(100) % 4 == 0).long()
    assert calibration_error(scores, labels) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(scores, torch.ones(100).long()) == pytest.approx(0.75, abs=1e-6)
    assert calibration_error(100 * torch.eye(2), torch.tensor([0, 0])) == pytest.approx(0.5)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
)
def test_roc_area_is_scikit_learns(inside: list[int], outside: list[int]) -> None:
    first, second = torch.tensor(inside).double(), torch.tensor(outside).double()
    wanted = roc_auc_score([1] * len(inside) + [0] * len(outside), [*inside, *outside])
    assert roc_area(first, second) == pytest.approx(wanted)


def test_outputs_explain_themselves_their_mean_explains_nothing() -> None:
    wanted = torch.randn(40, 3)
    assert explained(wanted, wanted) == 1.0
    assert explained(wanted.mean(0).expand(40, 3), wanted) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(explained(wanted, torch.ones(40, 3)))


def test_states_that_are_an_affine_map_away_are_explained_and_others_are_not() -> None:
    torch.manual_seed(0)
    source = torch.randn(400, 5)
    target = source @ torch.randn(5, 9) + torch.randn(9)
    assert affine_explained(source, target) == pytest.approx(1.0, abs=1e-9)
    turned = 7 * source @ torch.linalg.qr(torch.randn(5, 5)).Q + 2
    noisy = target + torch.randn(400, 9)
    assert affine_explained(turned, noisy) == pytest.approx(affine_explained(source, noisy), abs=1e-6)
    # Two of five directions hold two fifths of what is spread evenly over five.
    even = torch.linalg.qr(source - source.mean(0)).Q
    assert affine_explained(even[:, :2], even) == pytest.approx(0.4, abs=0.05)
    assert affine_explained(torch.randn(400, 5), target) < 0.05
    assert math.isnan(affine_explained(source[:10], target[:10]))


def test_rank_correlation_sees_the_order_alone() -> None:
    values = [0.1, 0.5, 0.2, 3.0]
    assert rank_correlation(values, [math.exp(each) for each in values]) == pytest.approx(1.0)
    assert rank_correlation(values, [-each for each in values]) == pytest.approx(-1.0)
    assert rank_correlation([1.0, 1.0, 1.0, 1.0], values) == 0.0
    # Ties at their mean rank: (1, 2.5, 2.5, 4) against (1, 2, 3, 4).
    assert rank_correlation([1.0, 2.0, 2.0, 5.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.9486833)


def test_a_class_that_both_rule_out_adds_nothing_and_nan_stays_nan() -> None:
    first, second = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[2.0, 1.0, -torch.inf]])
    assert divergence(first, second) == pytest.approx(divergence(first[:, :2], second[:, :2]))
    assert divergence(torch.tensor([[1.0, 2.0, 0.0]]), second) == math.inf
    assert math.isnan(divergence(torch.tensor([[math.nan, 1.0]]), torch.zeros(1, 2)))


def test_places_of_one_item_stand_on_one_side() -> None:
    torch.manual_seed(0)
    # Two places an item, of two kinds: fitted on one kind and judged on the other nothing would fit.
    source = torch.randn(400, 4)
    source[1::2] = source[1::2].abs() + 5
    target = torch.cat([source[::2] @ torch.randn(4, 3), source[1::2] @ torch.randn(4, 3)])
    target = target.view(2, 200, 3).transpose(0, 1).reshape(400, 3)
    item = torch.arange(200).repeat_interleave(2)
    assert affine_explained(source, source, item) == pytest.approx(1.0, abs=1e-6)
    assert affine_explained(source, target, item) > affine_explained(source, target)
