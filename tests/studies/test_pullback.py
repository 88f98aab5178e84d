"""Ratios made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.studies.conftest import Conducted, small_recipe
from tpsprune_studies import pullback
from tpsprune_studies.finding import Ruling
from tpsprune_studies.pullback import (
    CUT_ON_NEW,
    CUT_ON_OLD,
    FROZEN,
    NEW,
    OLD,
    SCRATCH,
    TUNED,
    PullbackTraining,
    PullbackTrial,
)


@pytest.mark.parametrize(
    ("accuracy", "seconds", "ruling"),
    [
        (0.99, 0.5, Ruling.CONFIRMED),
        (0.9, 0.5, Ruling.REFUTED),
        (0.99, 2.0, Ruling.REFUTED),
        (0.978, 0.5, Ruling.UNDECIDED),
        (0.99, 1.0, Ruling.UNDECIDED),
    ],
)
def test_the_ruling_is_on_accuracy_and_time_of_the_frozen_net(
    accuracy: float, seconds: float, ruling: Ruling
) -> None:
    setup = pullback.make_setup(small_recipe(), 3, None)
    done = [
        PullbackTraining(
            trial=PullbackTrial(seed=seed),
            old=1.0,
            accuracies={SCRATCH: 0.9, TUNED: 1.0, FROZEN: accuracy + 0.001 * (seed - 2), CUT_ON_NEW: 0.5},
            cpu_seconds={SCRATCH: 4.0, TUNED: 4.0, FROZEN: seconds * (0.8 + 0.1 * seed), CUT_ON_NEW: 3.0},
            cut_seconds={CUT_ON_NEW: 2.0},
        )
        for seed in (1, 2, 3)
    ]
    found = pullback.conclude(setup, done, {})
    assert found.ruling is ruling
    assert "0.900 (0.900 to 0.900) and 1.00 (1.00 to 1.00) from scratch;" in found.sentence
    assert TUNED not in {each.name.partition(", ")[2] for each in found.quantities}
    assert f"| {CUT_ON_NEW} | 0.500 | 3.00 | 2.00 |" in found.render_page()


def test_the_tasks_are_the_halves_of_the_digits() -> None:
    setup = pullback.make_setup(small_recipe(), 1, None)
    old, new = (pullback._prepare(setup, 1, classes) for classes in (OLD, NEW))
    for task in (old, new):
        for split in (task.dataset.train, task.dataset.validation, task.dataset.test):
            assert split.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert task.model(task.dataset.prepare(task.dataset.train.inputs[:2])).shape == (2, 5)
    parts = ("train", "validation", "test")
    items = sum(len(getattr(each.dataset, part)) for each in (old, new) for part in parts)
    assert items == 1797


def test_a_new_head_leaves_all_else_and_torchs_generator() -> None:
    task = pullback._prepare(pullback.make_setup(small_recipe(), 1, None), 1, OLD)
    state = torch.get_rng_state()
    first, second = (pullback._with_head(task.model, seed).state_dict() for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    differ = {name for name in first if not torch.equal(first[name], second[name])}
    assert differ == {"head.weight", "head.bias"}


def test_tickets_are_charged_their_cut(conducted: Callable[[str], Conducted]) -> None:
    trainings = [
        each for each in conducted("pullback").finding.trainings if isinstance(each, PullbackTraining)
    ]
    assert len(trainings) == 2
    for each in trainings:
        assert list(each.accuracies) == [SCRATCH, TUNED, FROZEN, CUT_ON_NEW, CUT_ON_OLD]
        for arm, cut in each.cut_seconds.items():
            assert each.cpu_seconds[arm] > cut > 0.0
