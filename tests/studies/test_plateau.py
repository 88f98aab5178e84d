"""The task of moving sums, its readings in closed form, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import plateau
from tpsprune_studies.finding import Ruling
from tpsprune_studies.plateau import (
    LinearAttention,
    PlateauTraining,
    PlateauTrial,
    attention_progress,
    draw_sums,
    likeness_of_places,
    repetition,
)


def test_sums_are_of_two_neighbours_behind_the_separator() -> None:
    rows = draw_sums(50, torch.Generator().manual_seed(0))
    assert rows.shape == (50, 33)
    for row in rows.tolist():
        assert row[16] == 17
        assert all(1 <= each <= 16 for each in row[:16])
        assert row[17] == row[0]
        assert row[18:] == [(a + b) % 17 for a, b in pairwise(row[:16])]


def test_readings_of_what_is_known() -> None:
    assert repetition(torch.tensor([[1, 1, 2, 2], [3, 3, 3, 3]])) == pytest.approx(5 / 6)
    same = torch.randn(1, 1, 8).expand(3, 5, 8)
    assert likeness_of_places(same) == pytest.approx(1.0)
    apart = torch.eye(5)[None]
    assert likeness_of_places(apart) == pytest.approx(0.0)
    right = torch.zeros(2, 3, 6)
    for place in range(3):
        right[:, place, max(0, place - 1) : place + 1] = -0.7
    assert attention_progress(right) == pytest.approx(1.0)
    even = torch.ones(1, 3, 6)
    assert attention_progress(even) == pytest.approx(5 / 18)


def test_attention_is_causal_and_has_no_softmax() -> None:
    torch.manual_seed(0)
    model = LinearAttention(12, 7)
    tokens = torch.randint(18, (2, 7))
    stream = model.embed(tokens)
    weights = model.attention(stream)
    assert not weights.triu(1).any()
    normed = model.before(stream)
    assert torch.allclose(weights[0, 4, 2], model.q(normed)[0, 4] @ model.k(normed)[0, 2] / 12**0.5)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 18
    assert torch.allclose(model(tokens)[0][:, :5], model(changed)[0][:, :5], atol=1e-6)


def make(on_plateau: float, seed: int) -> PlateauTraining:
    return PlateauTraining(
        trial=PlateauTrial(seed=seed),
        steps=(0, 20, 40, 60, 80),
        loss=(2.8, 2.7, 2.7, 2.0, 0.1),
        accuracy=(0.06, 0.1, 0.1, 0.5, 1.0),
        repetition=(0.3, 0.6, 0.7, 0.2, 0.06),
        likeness=(0.99, on_plateau, on_plateau, 0.4, 0.3),
        progress=(0.1, 0.1, 0.2, 0.6, 0.9),
    )


@pytest.mark.parametrize(("cosine", "ruling"), [(0.97, Ruling.CONFIRMED), (0.8, Ruling.REFUTED)])
def test_hidden_states_must_be_nearly_parallel_on_most_of_it_the_untrained_net_left_out(
    cosine: float, ruling: Ruling
) -> None:
    setup = plateau.make_setup(small_recipe(), 3, None)
    found = plateau.conclude(setup, [make(cosine, seed) for seed in (1, 2, 3)], {})
    assert found.ruling is ruling
    assert "repetition is 0.30 untrained, 0.65 on the plateau on average, 0.06 at the end" in found.sentence
    assert "moved 20 steps (20 to 20) before" in found.sentence


def test_trainings_that_never_leave_decide_nothing(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("plateau").finding
    assert found.ruling is Ruling.UNDECIDED
    trainings = [each for each in found.trainings if isinstance(each, PlateauTraining)]
    assert all(each.left_at is None for each in trainings)
    assert all(len(each.loss) == len(each.steps) == 3 for each in trainings)
