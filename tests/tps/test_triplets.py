from __future__ import annotations

from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from tpsprune.data.permutations import all_permutations, composition_table
from tpsprune.numerics.coherence import character_scale, fourier_coherence, unit_coherence
from tpsprune.records import TaskFacts
from tpsprune.tps.fourier import Fourier
from tpsprune.tps.labels import Labels
from tpsprune.tps.triplets import TripletVariant

Addition = tuple[Tensor, Tensor]


class Build(Protocol):
    def __call__(
        self, model: nn.Module, facts: TaskFacts, tokens: Tensor, labels: Tensor
    ) -> TripletVariant: ...


def fourier(model: nn.Module, facts: TaskFacts, tokens: Tensor, labels: Tensor) -> TripletVariant:
    return Fourier(model, facts, tokens, labels)


@pytest.mark.parametrize("build", [fourier, Labels])
def test_energy_is_one_minus_the_mean_coherence_of_the_units(
    build: Build, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    variant = build(pair_net, cyclic_facts, *addition)
    coherence_m = variant.coherences()
    assert coherence_m.shape == (9,)
    torch.testing.assert_close(variant.energy(), 1.0 - coherence_m.mean())
    assert [(group.name, group.oscillators) for group in variant.groups] == [("", 9)]


def test_labels_divides_the_units_coherence_by_the_character_scale(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    tokens_i2, label_i = addition
    factors = pair_net.unit_triplets(tokens_i2)
    expected_m = unit_coherence(*factors, tokens_i2[:, 0], tokens_i2[:, 1], label_i)
    variant = Labels(pair_net, cyclic_facts, tokens_i2, label_i)
    torch.testing.assert_close(variant.coherences(), expected_m / character_scale(60, 11, 11))


def test_fourier_reads_the_models_triplets(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    tokens_i2, label_i = addition
    torch.testing.assert_close(
        Fourier(pair_net, cyclic_facts, tokens_i2, label_i).coherences(),
        fourier_coherence(*pair_net.unit_triplets(tokens_i2)),
    )


@pytest.mark.parametrize("build", [fourier, Labels])
def test_gradient_descent_on_the_energy_synchronises_the_triplets(
    build: Build, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    variant = build(pair_net, cyclic_facts, *addition)
    optimizer = torch.optim.Adam(pair_net.parameters(), lr=0.02)
    before = float(variant.energy().detach())
    for _ in range(100):
        optimizer.zero_grad()
        variant.energy().backward()
        optimizer.step()
    assert float(variant.energy().detach()) < before - 0.3


@pytest.mark.parametrize("build", [fourier, Labels])
def test_all_three_factors_of_the_triplet_are_pulled(
    build: Build, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    build(pair_net, cyclic_facts, *addition).energy().backward()
    for name in ("embedding.weight", "hidden.weight", "head.weight"):
        gradient = pair_net.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().max()) > 0.0


@pytest.mark.parametrize("build", [fourier, Labels])
def test_autocast_does_not_reach_the_triplets(
    build: Build, pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    variant = build(pair_net, cyclic_facts, *addition)
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


def test_label_coherence_survives_renaming_and_fourier_coherence_does_not(
    pair_net: nn.Module, cyclic_facts: TaskFacts, addition: Addition
) -> None:
    tokens_i2, label_i = addition
    labels = Labels(pair_net, cyclic_facts, tokens_i2, label_i).coherences()
    by_fourier = Fourier(pair_net, cyclic_facts, tokens_i2, label_i).coherences()
    renamed = torch.randperm(11)
    with torch.no_grad():
        pair_net.embedding.weight.copy_(pair_net.embedding.weight[renamed.argsort()].clone())
    again = Labels(pair_net, cyclic_facts, renamed[tokens_i2], label_i).coherences()
    torch.testing.assert_close(again, labels)
    by_fourier_again = Fourier(pair_net, cyclic_facts, renamed[tokens_i2], label_i).coherences()
    assert not torch.allclose(by_fourier_again, by_fourier, atol=0.01)
