"""Coherence: closed forms, slow twins, invariances, and gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpsprune.numerics.coherence import (
    character_agreement,
    character_scale,
    fourier_coherence,
    moment_coherence,
    order_parameters,
    triadic_energy,
    triadic_force,
    unit_coherence,
)

MODULUS = 23
phases = st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def energy_over_all_triplets(phases_n: Tensor) -> Tensor:
    triads = [
        1.0 - torch.cos(phases_n[i] + phases_n[j] - 2.0 * phases_n[k])
        for i, j, k in product(range(len(phases_n)), repeat=3)
    ]
    return torch.stack(triads).mean()


def characters(
    frequencies: list[int], first: Tensor, second: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.arange(MODULUS, dtype=torch.float64)[:, None]
    turns = 2.0 * pi * tokens * torch.tensor(frequencies, dtype=torch.float64) / MODULUS
    return torch.cos(turns + first), torch.cos(turns + second), torch.cos(turns + last).T


def addition_table() -> tuple[Tensor, Tensor, Tensor]:
    first_i, second_i = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS)).unbind(1)
    return first_i.contiguous(), second_i.contiguous(), (first_i + second_i) % MODULUS


def planted(units: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    first, second = torch.rand(2, units, dtype=torch.float64).mul(2.0 * pi)
    return characters(list(range(1, units + 1)), first, second, first + second)


def noise(units: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    u_am, v_bm = torch.randn(2, MODULUS, units, dtype=torch.float64)
    return u_am, v_bm, torch.randn(units, MODULUS, dtype=torch.float64)


@pytest.mark.parametrize("oscillators", [1, 2, 5, 12])
def test_energy_and_gradient_equal_the_mean_over_all_triplets(oscillators: int) -> None:
    quick_n = torch.randn(oscillators, dtype=torch.float64).mul(3.0).requires_grad_()
    slow_n = quick_n.detach().clone().requires_grad_()
    quick, slow = triadic_energy(quick_n), energy_over_all_triplets(slow_n)
    torch.testing.assert_close(quick, slow, rtol=0, atol=1e-12)
    quick.backward()
    slow.backward()
    torch.testing.assert_close(quick_n.grad, slow_n.grad, rtol=0, atol=1e-12)


def test_groups_on_leading_axes_are_apart() -> None:
    phases_gn = torch.randn(3, 8, dtype=torch.float64)
    for quantity in (triadic_energy, triadic_force, lambda phases_n: order_parameters(phases_n)[1]):
        one_by_one = torch.stack([quantity(phases_n) for phases_n in phases_gn])
        torch.testing.assert_close(quantity(phases_gn), one_by_one)


def test_following_the_force_synchronises_phases_that_are_near_one_another() -> None:
    phases_n = torch.rand(50, dtype=torch.float64)
    for _ in range(200):
        phases_n = phases_n + 0.05 * triadic_force(phases_n)
    assert float(triadic_energy(phases_n)) < 1e-6


def test_no_unit_is_more_coherent_on_the_whole_table_than_a_character() -> None:
    factors = [factor.requires_grad_() for factor in noise(3)]
    optimizer = torch.optim.Adam(factors, lr=0.1)
    scale = character_scale(MODULUS**2, MODULUS, MODULUS)
    for _ in range(400):
        optimizer.zero_grad()
        (-unit_coherence(*factors, *addition_table()).mean()).backward()
        optimizer.step()
    coherence_m = unit_coherence(*factors, *addition_table()).detach() / scale
    assert float(coherence_m.max()) <= 1.0 + 1e-9
    assert float(coherence_m.min()) > 0.99


def test_renaming_tokens_and_classes_leaves_label_coherence_alone() -> None:
    u_am, v_bm, o_mc = noise()
    first_i, second_i, label_i = addition_table()
    for_first, for_second, for_label = (torch.randperm(MODULUS) for _ in range(3))
    renamed_m = unit_coherence(
        u_am[for_first.argsort()],
        v_bm[for_second.argsort()],
        o_mc[:, for_label.argsort()],
        for_first[first_i],
        for_second[second_i],
        for_label[label_i],
    )
    torch.testing.assert_close(renamed_m, unit_coherence(u_am, v_bm, o_mc, first_i, second_i, label_i))


def test_label_coherence_equals_a_sum_over_pairs_one_by_one() -> None:
    u_am, v_bm, o_mc = noise(2)
    chosen_i = torch.randperm(MODULUS**2)[:40]
    pairs = tuple(column_i[chosen_i] for column_i in addition_table())
    for m, coherence in enumerate(unit_coherence(u_am, v_bm, o_mc, *pairs)):
        u_a, v_b, o_c = (x - x.mean() for x in (u_am[:, m], v_bm[:, m], o_mc[m]))
        triplet = sum(u_a[a] * v_b[b] * o_c[c] for a, b, c in zip(*pairs, strict=True))
        assert float(coherence) == pytest.approx(float(triplet / (u_a.norm() * v_b.norm() * o_c.norm())))


@pytest.mark.parametrize("last_sign", [1, -1])
@pytest.mark.parametrize("second_sign", [1, -1])
def test_locked_phases_are_fully_coherent_under_each_sign_pattern(second_sign: int, last_sign: int) -> None:
    first, second = torch.rand(2, 5, dtype=torch.float64).mul(2.0 * pi)
    last = last_sign * (first + second_sign * second)
    coherence_m = fourier_coherence(*characters([1, 2, 5, 7, 11], first, second, last))
    torch.testing.assert_close(coherence_m, torch.ones_like(coherence_m), rtol=0, atol=1e-9)


def test_fourier_coherence_of_one_frequency_is_the_cosine_of_the_best_mismatch() -> None:
    first, second, last = torch.rand(3, 6, dtype=torch.float64).mul(2.0 * pi)
    mismatches_sm = torch.stack(
        [first + second - last, first + second + last, second - first - last, second - first + last]
    )
    coherence_m = fourier_coherence(*characters([1, 2, 3, 4, 5, 6], first, second, last))
    torch.testing.assert_close(coherence_m, mismatches_sm.cos().max(0).values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("label_of", [lambda a, b: a + b, lambda a, b: b - a + 4, lambda a, b: -a - b])
def test_labels_in_cyclic_order_agree_with_a_character_wholly(
    label_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    first_i, second_i, _ = addition_table()
    label_i = label_of(first_i, second_i) % MODULUS
    assert character_agreement(first_i, second_i, label_i, MODULUS) == pytest.approx(1.0)


def test_character_agreement_equals_the_slow_maximum_over_frequencies() -> None:
    first_i, second_i, label_i = (torch.randint(MODULUS, (50,)) for _ in range(3))
    slow = max(
        float(torch.exp(2j * pi * k * (first_i + s * second_i + t * label_i) / MODULUS).mean().abs())
        for k in range(1, MODULUS)
        for s in (1, -1)
        for t in (1, -1)
    )
    assert character_agreement(first_i, second_i, label_i, MODULUS) == pytest.approx(slow, abs=1e-5)


PRIME = 59


def table() -> tuple[Tensor, Tensor]:
    return torch.cartesian_prod(torch.arange(PRIME), torch.arange(PRIME)).double().unbind(1)


def waves(frequency: int) -> tuple[Tensor, Tensor, Tensor]:
    first_i, second_i = table()
    turn = 2 * torch.pi * frequency / PRIME
    label_i = ((first_i + second_i) % PRIME).long()
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
    chance = (PRIME - 1) / (PRIME**2 - 1)
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


def test_equal_phases_have_full_order_and_evenly_spread_ones_none() -> None:
    equal_n, spread_n = torch.full((7,), 1.3).double(), torch.arange(9).double() * 2.0 * pi / 9
    for phases_n, order, energy in ((equal_n, 1.0, 0.0), (spread_n, 0.0, 1.0)):
        first, second = order_parameters(phases_n)
        assert abs(first) == pytest.approx(order, abs=1e-12)
        assert abs(second) == pytest.approx(order, abs=1e-12)
        assert float(triadic_energy(phases_n)) == pytest.approx(energy, abs=1e-12)
    assert order_parameters(equal_n)[1].angle() == pytest.approx(2.6)


@given(phases, st.floats(-10.0, 10.0))
@settings(max_examples=40, deadline=None)
def test_the_force_is_minus_n_times_the_gradient_sums_to_zero_and_sees_no_shift(
    phases_n: Tensor, shift: float
) -> None:
    leaf_n = phases_n.clone().requires_grad_()
    energy = triadic_energy(leaf_n)
    energy.backward()
    assert leaf_n.grad is not None
    force_n = triadic_force(phases_n)
    assert -1e-12 <= float(energy.detach()) < 2.0
    assert float(force_n.sum()) == pytest.approx(0.0, abs=1e-11)
    assert float(force_n.abs().max()) <= 4.0
    torch.testing.assert_close(force_n, -len(phases_n) * leaf_n.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(triadic_force(phases_n + shift), force_n, rtol=0, atol=1e-11)
    torch.testing.assert_close(triadic_energy(phases_n + shift), energy.detach(), rtol=0, atol=1e-12)


def test_characters_on_the_whole_addition_table_have_the_character_scale() -> None:
    coherence_m = unit_coherence(*planted(), *addition_table())
    expected = character_scale(MODULUS**2, MODULUS, MODULUS)
    assert expected == pytest.approx(sqrt(MODULUS / 2))
    torch.testing.assert_close(coherence_m, torch.full_like(coherence_m, expected), rtol=1e-12, atol=0)
    tokens, classes = 24, 6  # Classes may be a quotient of the tokens.
    first_i, second_i = torch.cartesian_prod(torch.arange(tokens), torch.arange(tokens)).unbind(1)
    factor_am = torch.cos(torch.arange(tokens).double()[:, None] * 2.0 * pi / classes)
    label_i = (first_i + second_i) % classes
    quotient = unit_coherence(factor_am, factor_am, factor_am[:classes].T, first_i, second_i, label_i)
    assert float(quotient) == pytest.approx(character_scale(tokens**2, tokens, classes))


COHERENCES = [fourier_coherence, lambda *factors: unit_coherence(*factors, *addition_table())]


@pytest.mark.parametrize("coherence", COHERENCES, ids=["fourier", "label"])
def test_both_coherences_see_neither_scale_nor_shift_and_have_the_right_gradients(
    coherence: Callable[..., Tensor],
) -> None:
    u_am, v_bm, o_mc = noise(2)
    for scale in (1e-3, 1.0, 1e3):
        moved_m = coherence(u_am * scale + 1.0, v_bm / scale, o_mc * 2.0 - 3.0)
        torch.testing.assert_close(moved_m, coherence(u_am, v_bm, o_mc))
    factors = [factor.clone().requires_grad_() for factor in (u_am, v_bm, o_mc)]
    assert torch.autograd.gradcheck(coherence, factors)
    u_am[:, 0] = 0.0  # A dead unit.
    factors = [factor.clone().requires_grad_() for factor in (u_am, v_bm, o_mc)]
    coherence_m = coherence(*factors)
    assert float(coherence_m[0].detach()) == 0.0
    assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(coherence_m.sum(), factors))


def test_label_coherence_and_its_gradient_do_not_depend_on_how_pairs_are_sliced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factors = [factor.requires_grad_() for factor in noise(3)]
    found = []
    for elements in (1, 37, 10**9):
        monkeypatch.setattr("tpsprune.numerics.coherence._SLICE_ON_CPU", elements)
        coherence_m = unit_coherence(*factors, *addition_table())
        found.append((coherence_m.detach(), *torch.autograd.grad(coherence_m.square().sum(), factors)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
