"""Counts in a context that can be counted by hand, and a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import log2

import pytest
import torch

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import universal
from tpsprune_studies.finding import Ruling
from tpsprune_studies.universal import (
    PRETRAINED,
    SCRATCH,
    UniversalTraining,
    UniversalTrial,
    bits_of_counts,
    in_context,
)


def test_counts_are_those_of_laplace() -> None:
    inputs, labels = torch.tensor([[0, 1, 0, 1, 0]]), torch.tensor([[1, 0, 1, 0, 2]])
    zero = in_context(inputs, labels, (0,), 3, 3.0)
    # Words counted so far are the labels before; 1 is added to each of the three.
    assert torch.allclose(zero, torch.tensor([[1 / 3, 1 / 4, 2 / 5, 2 / 6, 1 / 7]]).double())
    one = in_context(inputs, labels, (1,), 3, 3.0)
    assert torch.allclose(one, torch.tensor([[1 / 3, 1 / 3, 2 / 4, 2 / 4, 1 / 5]]).double())
    backed = in_context(inputs, labels, (0, 1), 3, 3.0)
    wanted = (zero * 3 + torch.tensor([0, 0, 1, 1, 0])) / (3 + torch.tensor([0, 0, 1, 1, 2]))
    assert torch.allclose(backed, wanted)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_counts_are_those_of_a_loop(order: int) -> None:
    generator = torch.Generator().manual_seed(order)
    words = torch.randint(3, (4, 21), generator=generator)
    inputs, labels = words[:, :-1], words[:, 1:]
    found = in_context(inputs, labels, (order,), 3, 0.7)
    for row, place in product(range(4), range(20)):
        read = words[row, : place + 1].tolist()
        context = read[len(read) - order :] if order <= len(read) else None
        seen = followed = 0
        for end in range(max(order, 1), len(read)):
            if context is not None and read[end - order : end] == context:
                seen += 1
                followed += read[end] == int(labels[row, place])
        assert float(found[row, place]) == pytest.approx((followed + 0.7 / 3) / (seen + 0.7))


def test_probabilities_sum_to_one_and_the_future_is_not_seen() -> None:
    words = torch.randint(4, (5, 13), generator=torch.Generator().manual_seed(0))
    inputs, labels = words[:, :-1], words[:, 1:]
    for orders in ((2,), (0, 1, 2)):
        total = torch.zeros(5, dtype=torch.float64)
        for word in range(4):
            last = torch.cat([labels[:, :-1], torch.full((5, 1), word)], 1)
            total += in_context(inputs, last, orders, 4, 0.5)[:, -1]
        assert torch.allclose(total, torch.ones(5).double())
        changed = inputs.clone()
        changed[:, 8:] = 0
        cut = torch.cat([labels[:, :7], torch.zeros(5, 5, dtype=torch.int64)], 1)
        first = in_context(inputs, labels, orders, 4, 0.5)[:, :7]
        assert torch.equal(first, in_context(changed, cut, orders, 4, 0.5)[:, :7])


def test_a_sequence_of_period_three_is_learned_by_order_one_and_not_by_order_zero() -> None:
    words = torch.arange(121).remainder(3).expand(2, -1)
    found = dict(bits_of_counts(words[:, :-1], words[:, 1:], 3))
    assert found["order 0"] == pytest.approx(log2(3), abs=0.06)
    assert found["order 1"] < 0.15
    assert set(found) >= {"order 3", "order 1, backed off"}


def make(zero: float, end: float) -> list[UniversalTraining]:
    setup = universal.make_setup(small_recipe(), 3, 600)
    found = []
    for trial in universal.plan(setup, []).trials:
        assert isinstance(trial, UniversalTrial)
        mine = trial.arm == PRETRAINED
        shift = 0.001 * trial.seed
        bits = {"0": zero + shift, "600": end + shift} if mine else {"0": 8.0, "600": 3.0, "1800": 1.0}
        found.append(
            UniversalTraining(
                trial=trial,
                bits=bits,
                cpu_seconds=1.0,
                charged=900.0 if mine else 0.0,
                random_bits=7.0 if mine else None,
                vocabulary=256,
                counts={"order 0": 5.0, "order 1": 5.5, "order 1, backed off": 4.0},
            )
        )
    return found


@pytest.mark.parametrize(
    ("zero", "end", "ruling"),
    [
        (4.5, 1.0, Ruling.CONFIRMED),
        (7.0, 1.0, Ruling.REFUTED),
        (4.5, 2.0, Ruling.REFUTED),
        (4.5, 1.499, Ruling.UNDECIDED),
    ],
)
def test_it_must_beat_the_best_plain_counts_and_training_from_scratch_at_equal_time(
    zero: float, end: float, ruling: Ruling
) -> None:
    found = universal.conclude(universal.make_setup(small_recipe(), 3, 600), make(zero, end), {})
    # From scratch has 1.5 bits at step 600 + 900, on the line from 3 to 1.
    assert found.quantities[2].measured.mean == pytest.approx(end + 0.002 - 1.5)
    assert found.quantities[1].measured.mean == pytest.approx(zero + 0.002 - 5.0)
    assert found.ruling is ruling


def test_a_step_beyond_the_last_reading_is_no_guess() -> None:
    with pytest.raises(ValueError, match="no reading as late as step 700"):
        make(4.5, 1.0)[0].at(700)


def test_a_small_study_has_both_starts_and_the_same_counts(conducted: Callable[[str], Conducted]) -> None:
    found = [each for each in conducted("universal").finding.trainings if isinstance(each, UniversalTraining)]
    assert [each.trial.arm for each in found] == [PRETRAINED, SCRATCH] * 2
    for each in found:
        mine = each.trial.arm == PRETRAINED
        assert (each.charged > 0) == (each.random_bits is not None) == mine
        assert next(iter(each.bits)) == "0"
        assert each.counts == found[0].counts
        assert each.vocabulary == 256
