"""One triplet per unit, read from the weights: ``labels`` and ``fourier``, and when ``fourier`` does harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.tps.conftest import Pairs
from tpsprune.numerics.coherence import character_scale, fourier_coherence, unit_coherence
from tpsprune.records import TaskFacts
from tpsprune.tps.triplets import Fourier, Labels, TripletVariant, coherence_warning, order_warning
from tpsprune_studies.tasks import all_permutations, composition_table

Build = Callable[[nn.Module, TaskFacts, Tensor, Tensor], TripletVariant]
both = pytest.mark.parametrize("build", [Fourier, Labels])


@both
def test_energy_is_one_minus_the_mean_coherence_of_the_units(build: Build, pairs: Pairs) -> None:
    variant = build(pairs.net, pairs.facts, *pairs.data)
    coherence_m = variant.coherences()
    assert coherence_m.shape == (9,)
    torch.testing.assert_close(variant.energy(), 1.0 - coherence_m.mean())
    assert [(group.name, group.oscillators) for group in variant.groups] == [("", 9)]


def test_labels_divides_the_units_coherence_by_the_character_scale(pairs: Pairs) -> None:
    tokens_i2, label_i = pairs.data
    factors = pairs.net.unit_triplets(tokens_i2)
    expected_m = unit_coherence(*factors, tokens_i2[:, 0], tokens_i2[:, 1], label_i)
    variant = Labels(pairs.net, pairs.facts, tokens_i2, label_i)
    torch.testing.assert_close(variant.coherences(), expected_m / character_scale(60, 11, 11))


def test_fourier_reads_the_models_triplets(pairs: Pairs) -> None:
    tokens_i2, label_i = pairs.data
    torch.testing.assert_close(
        Fourier(pairs.net, pairs.facts, tokens_i2, label_i).coherences(),
        fourier_coherence(*pairs.net.unit_triplets(tokens_i2)),
    )


@both
def test_gradient_descent_on_the_energy_synchronises_the_triplets(build: Build, pairs: Pairs) -> None:
    variant = build(pairs.net, pairs.facts, *pairs.data)
    optimizer = torch.optim.Adam(pairs.net.parameters(), lr=0.02)
    before = float(variant.energy().detach())
    for _ in range(100):
        optimizer.zero_grad()
        variant.energy().backward()
        optimizer.step()
    assert float(variant.energy().detach()) < before - 0.3


@both
def test_all_three_factors_of_the_triplet_are_pulled(build: Build, pairs: Pairs) -> None:
    build(pairs.net, pairs.facts, *pairs.data).energy().backward()
    for name in ("embedding.weight", "hidden.weight", "head.weight"):
        gradient = pairs.net.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().max()) > 0.0


@both
def test_autocast_does_not_reach_the_triplets(build: Build, pairs: Pairs) -> None:
    variant = build(pairs.net, pairs.facts, *pairs.data)
    plain = variant.energy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = variant.energy()
    assert under_autocast.dtype is torch.float32
    assert torch.equal(under_autocast, plain)


def test_a_sign_has_the_square_root_of_two_where_a_wave_has_one() -> None:
    turns = (all_permutations(4)[:, :, None] > all_permutations(4)[:, None]).triu(1).sum((1, 2))
    sign_g1 = (1.0 - 2.0 * (turns % 2))[:, None]
    first, second = torch.cartesian_prod(torch.arange(24), torch.arange(24)).unbind(1)
    coherence = unit_coherence(sign_g1, sign_g1, sign_g1.T, first, second, composition_table(4).flatten())
    assert float(coherence) / character_scale(24 * 24, 24, 24) == pytest.approx(2**0.5)


def test_label_coherence_survives_renaming_and_fourier_coherence_does_not(pairs: Pairs) -> None:
    tokens_i2, label_i = pairs.data
    labels = Labels(pairs.net, pairs.facts, tokens_i2, label_i).coherences()
    by_fourier = Fourier(pairs.net, pairs.facts, tokens_i2, label_i).coherences()
    renamed = torch.randperm(11)
    with torch.no_grad():
        pairs.net.embedding.weight.copy_(pairs.net.embedding.weight[renamed.argsort()].clone())
    again = Labels(pairs.net, pairs.facts, renamed[tokens_i2], label_i).coherences()
    torch.testing.assert_close(again, labels)
    by_fourier_again = Fourier(pairs.net, pairs.facts, renamed[tokens_i2], label_i).coherences()
    assert not torch.allclose(by_fourier_again, by_fourier, atol=0.01)


def test_coherence_that_stays_while_the_loss_falls_is_worth_a_sentence() -> None:
    assert coherence_warning([0.11, 0.12, 0.12], [3.9, 1.2, 0.4]) == (
        "tps: coherence remains at 0.12 while the training loss fell from 3.9 to 0.4: the tokens may not be"
        " in cyclic order; consider variant 'labels' or 'none'"
    )
    assert coherence_warning([0.4, 0.3, 0.2], [3.0, 2.5, 2.0]) is not None


@pytest.mark.parametrize(
    ("coherences", "losses"),
    [
        pytest.param([0.10, 0.11, 0.13], [3.9, 1.2, 0.4], id="coherence rises by enough"),
        pytest.param([0.12, 0.12, 0.12], [3.9, 3.5, 2.7], id="the loss falls by less than a third"),
        pytest.param([0.97, 0.97, 0.97], [3.9, 1.2, 0.4], id="coherence is high already"),
        pytest.param([0.12, 0.12], [3.9, 0.4], id="two readings are too few"),
        pytest.param([], [], id="no readings"),
    ],
)
def test_there_is_no_sentence_where(coherences: list[float], losses: list[float]) -> None:
    assert coherence_warning(coherences, losses) is None


def test_labels_out_of_order_are_worth_a_sentence_and_labels_in_order_are_not() -> None:
    assert order_warning(1.0) is None
    assert order_warning(0.1) == (
        "tps: the training labels follow the tokens' cyclic order to 0.10 only, where 1 is wholly:"
        " consider variant 'labels' or 'none'"
    )
