"""The task of moving sums, its readings in closed form, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import plateau
from tpsprune_studies.finding import Finding, Ruling
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


def test_attention_that_is_given_is_heard_and_queries_and_keys_do_nothing() -> None:
    torch.manual_seed(0)
    model = LinearAttention(12, 32)
    plateau.give(model, plateau.RIGHT, {})
    weights = model.attention(model.embed(torch.randint(18, (3, 32))))
    assert attention_progress(weights[:, 16:]) == 1.0
    assert weights[1, 20].nonzero().flatten().tolist() == [3, 4]
    assert not weights[:, :16].any()
    before = model(torch.zeros(1, 32, dtype=torch.long))[0]
    torch.nn.init.normal_(model.q.weight)
    assert torch.equal(model(torch.zeros(1, 32, dtype=torch.long))[0], before)


@pytest.mark.parametrize("part", [each for each in plateau.PARTS if each != plateau.RIGHT])
def test_a_part_is_as_trained_and_frozen_and_the_others_are_not(part: str) -> None:
    torch.manual_seed(0)
    model, other = LinearAttention(12, 32), LinearAttention(12, 32)
    # Norms and biases start alike.
    trained = {name: tensor + 1.0 for name, tensor in other.state_dict().items()}
    plateau.give(model, part, trained)
    for name, parameter in model.named_parameters():
        given = name.partition(".")[0] in plateau.PARTS[part]
        assert torch.equal(parameter, trained[name]) is given
        assert parameter.requires_grad is not given


def test_the_parts_are_modules_and_what_they_leave_learns() -> None:
    modules = {name for name, _ in LinearAttention(12, 32).named_children()}
    assert all(set(part) < modules for part in plateau.PARTS.values())
    assert {*plateau.PARTS["attention"], *plateau.PARTS[plateau.READOUT]} == modules
    assert not {*plateau.PARTS["attention"]} & {*plateau.PARTS[plateau.READOUT]}


def make(on_plateau: float, seed: int, given: str = plateau.NONE) -> PlateauTraining:
    return PlateauTraining(
        trial=PlateauTrial(seed=seed, given=given),
        steps=(0, 20, 40, 60, 80),
        loss=(2.8, 2.7, 2.7, 2.0, 0.1),
        accuracy=(0.06, 0.1, 0.1, 0.5, 1.0),
        repetition=(0.3, 0.6, 0.7, 0.2, 0.06),
        likeness=(0.99, on_plateau, on_plateau, 0.4, 0.3),
        progress=(0.1, 0.1, 0.2, 0.6, 0.9),
    )


def given(part: str, seed: int, steps: int, *, left: bool = True) -> PlateauTraining:
    """A training that left its plateau after so many steps, or was stopped there."""
    training = make(0.97, seed, part)
    return replace(training, steps=(0, steps), accuracy=(0.06, 0.5 if left else 0.1))


def conclude(cosine: float, with_map: int, with_head: int, *, head_left: bool = True) -> Finding:
    """Three seeds whose plain plateau takes 60 steps, and what it takes with a part given."""
    done = [make(cosine, seed) for seed in (1, 2, 3)]
    done += [given(plateau.MAP, seed, with_map) for seed in (1, 2, 3)]
    done += [given(plateau.READOUT, seed, with_head, left=head_left) for seed in (1, 2, 3)]
    return plateau.conclude(plateau.make_setup(small_recipe(), 3, None), done, {})


@pytest.mark.parametrize(("cosine", "ruling"), [(0.97, Ruling.CONFIRMED), (0.8, Ruling.REFUTED)])
def test_hidden_states_must_be_nearly_parallel_on_most_of_it_the_untrained_net_left_out(
    cosine: float, ruling: Ruling
) -> None:
    found = conclude(cosine, 20, 60)
    assert found.ruling is ruling
    assert "repetition is 0.30 untrained, 0.65 on the plateau on average, 0.06 at the end" in found.sentence
    assert "moved 20 steps (20 to 20) before" in found.sentence
    assert "0.33 (0.33 to 0.33) times as long with attention map" in found.sentence


@pytest.mark.parametrize(
    ("with_map", "with_head", "head_left", "ruling"),
    [
        (20, 60, True, Ruling.CONFIRMED),
        (40, 60, True, Ruling.REFUTED),
        (20, 20, True, Ruling.REFUTED),
        # Stopped where it might have gone on: at least as long, so still there is sure and gone is not.
        (20, 60, False, Ruling.CONFIRMED),
        (20, 20, False, Ruling.UNDECIDED),
    ],
)
def test_the_plateau_is_gone_with_the_attention_map_and_stays_with_mlp_and_head(
    with_map: int, with_head: int, head_left: bool, ruling: Ruling
) -> None:
    assert conclude(0.97, with_map, with_head, head_left=head_left).ruling is ruling


def test_parts_are_of_the_seeds_that_learned() -> None:
    done = [make(0.97, seed) for seed in (1, 2, 3)]
    done[0] = replace(done[0], accuracy=(0.06, 0.1, 0.1, 0.5, 0.6))
    done += [given(part, seed, 20) for part in (plateau.MAP, plateau.READOUT) for seed in (1, 2, 3)]
    found = plateau.conclude(plateau.make_setup(small_recipe(), 3, None), done, {})
    counts = {each.name: each.measured.count for each in found.quantities}
    assert counts["plateau with attention map given, over the plain one"] == 2


def test_trainings_that_never_leave_decide_nothing(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("plateau").finding
    assert found.ruling is Ruling.UNDECIDED
    trainings = [each for each in found.trainings if isinstance(each, PlateauTraining)]
    assert {each.trial.given for each in trainings} == {plateau.NONE, *plateau.PARTS}
    assert all(each.left_at is None for each in trainings)
    assert all(len(each.loss) == len(each.steps) == 3 for each in trainings)
