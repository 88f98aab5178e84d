from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.numerics.moment_coherence import moment_coherence

MODULUS = 59


def table() -> tuple[Tensor, Tensor]:
    return torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS)).double().unbind(1)


def waves(frequency: int) -> tuple[Tensor, Tensor, Tensor]:
    first_i, second_i = table()
    turn = 2 * torch.pi * frequency / MODULUS
    label_i = ((first_i + second_i) % MODULUS).long()
    return (turn * first_i).cos()[:, None, None], (turn * second_i).cos()[:, None, None], label_i


def slowly(products_im: Tensor, label_i: Tensor) -> Tensor:
    """One-way analysis of variance, unit by unit and class by class."""
    found = []
    classes = label_i.unique().tolist()
    for product_i in products_im.T:
        within = sum(
            float((product_i[label_i == c] - product_i[label_i == c].mean()).square().sum()) for c in classes
        )
        explained = 1 - within / float((product_i - product_i.mean()).square().sum())
        chance = (len(classes) - 1) / (len(label_i) - 1)
        found.append((explained - chance) / (1 - chance))
    return torch.tensor(found, dtype=products_im.dtype)


@pytest.mark.parametrize("frequency", [1, 3, 29])
def test_a_gated_unit_of_two_waves_explains_half_and_a_squared_sum_two_fifths(frequency: int) -> None:
    # cos α cos β = (cos(α + β) + cos(α − β)) / 2, and of those only the first hangs on the label;
    # (cos α + cos β)² has variances 1/8, 1/8, 1/2 and 1/2, of which one half is the label's.
    first, second, label_i = waves(frequency)
    chance = (MODULUS - 1) / (MODULUS**2 - 1)
    gated = moment_coherence(first, second, label_i)
    squared = moment_coherence(first + second, None, label_i)
    assert float(gated) == pytest.approx((0.5 - chance) / (1 - chance), abs=1e-9)
    assert float(squared) == pytest.approx((0.4 - chance) / (1 - chance), abs=1e-9)


def test_the_parity_of_two_bits_takes_degree_two_and_of_three_bits_degree_three() -> None:
    bits_id = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    pair = (bits_id[:, :2].prod(1) > 0).long()
    triple = (bits_id.prod(1) > 0).long()
    of_two, of_three = bits_id[:, :2].sum(1)[:, None, None], bits_id.sum(1)[:, None, None]
    assert float(moment_coherence(of_two, None, pair, 2)) == pytest.approx(1.0)
    assert float(moment_coherence(of_three, None, triple, 2)) < 0.0
    # (x + y + z)³ = 7 (x + y + z) + 6 xyz on ±1: of variance 3 · 49 + 36 the label has 36.
    chance = 1 / 7
    assert float(moment_coherence(of_three, None, triple, 3)) == pytest.approx(
        (36 / 183 - chance) / (1 - chance)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["square", "cube", "gated"]))
def test_it_is_the_slow_analysis_of_variance(seed: int, positions: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate, up = torch.randn(2, 30, positions, 4, generator=generator, dtype=torch.float64)
    label_i = torch.randint(0, 5, (30,), generator=generator)
    centred, other = gate - gate.mean((0, 1)), up - up.mean((0, 1))
    products = {"square": centred**2, "cube": centred**3, "gated": centred * other}[kind].mean(1)
    degree = 3 if kind == "cube" else 2
    found = moment_coherence(gate, up if kind == "gated" else None, label_i, degree)
    torch.testing.assert_close(found, slowly(products, label_i))


@pytest.mark.parametrize("degree", [2, 3])
def test_gradients_are_those_of_finite_differences(degree: int) -> None:
    torch.manual_seed(1)
    gate, up = torch.randn(2, 12, 2, 3, dtype=torch.float64).requires_grad_()
    label_i = torch.randint(0, 3, (12,))
    assert torch.autograd.gradcheck(lambda g: moment_coherence(g, None, label_i, degree), gate)
    assert torch.autograd.gradcheck(lambda g, u: moment_coherence(g, u, label_i), (gate, up))


def test_names_of_classes_order_of_items_shift_and_scale_do_not_matter() -> None:
    torch.manual_seed(1)
    gate = torch.randn(40, 2, 3, dtype=torch.float64)
    label_i = torch.randint(0, 4, (40,))
    expected = moment_coherence(gate, None, label_i)
    order = torch.randperm(40)
    torch.testing.assert_close(moment_coherence(gate[order], None, label_i[order]), expected)
    torch.testing.assert_close(moment_coherence(gate, None, torch.tensor([7, 0, 3, 1])[label_i]), expected)
    torch.testing.assert_close(moment_coherence(5.0 - 3.0 * gate, None, label_i), expected)


def test_random_labels_explain_nothing_on_average() -> None:
    torch.manual_seed(1)
    found = moment_coherence(torch.randn(200, 1, 2000), None, torch.randint(0, 20, (200,)))
    assert abs(float(found.mean())) < 0.005


@pytest.mark.parametrize(
    ("gate", "label_i"),
    [
        (torch.ones(6, 1, 2), torch.tensor([0, 1, 0, 1, 0, 1])),
        (torch.randn(6, 1, 2), torch.zeros(6, dtype=torch.int64)),
        (torch.randn(6, 1, 2), torch.arange(6)),
    ],
    ids=["a unit that never varies", "one class", "an item per class"],
)
def test_where_there_is_nothing_to_tell_it_is_zero_without_gradient(gate: Tensor, label_i: Tensor) -> None:
    gate = gate.clone().requires_grad_()
    found = moment_coherence(gate, None, label_i)
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert gate.grad is not None
    assert not gate.grad.any()
