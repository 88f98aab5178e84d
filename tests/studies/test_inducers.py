"""Inducers made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.studies.conftest import Conducted, follow, tiny_setup
from tpsprune.data import load
from tpsprune.recipe.task import CustomData
from tpsprune_studies import inducers
from tpsprune_studies.finding import Ruling
from tpsprune_studies.inducers import HOT, PLAIN, InducerTraining, InducerTrial
from tpsprune_studies.nets import plain_mlp


def make(trial: InducerTrial, *, hot_rank: int = 30, hot_gain: float = 0.1) -> InducerTraining:
    """A training whose best learning rate is the middle one; seeds differ a little, as seeds do."""
    hot = trial.inducer == HOT
    return InducerTraining(
        trial=trial,
        validation_accuracy=0.9 if trial.learning_rate == inducers.LEARNING_RATES[1] else 0.8,
        accuracy=0.9,
        ranks={"0.1": 5, "0.01": hot_rank + trial.seed if hot else 50, "0.001": 90},
        dimension_share=0.3,
        cut_accuracies={"0.25": 0.8, "0.1": 0.6 + (hot_gain + 0.001 * trial.seed if hot else 0.0)},
    )


def test_rates_are_chosen_on_the_pilot_and_judged_on_other_seeds() -> None:
    setup = tiny_setup(inducers, seeds=3)
    done = follow(lambda found: inducers.plan(setup, found), make)
    rates, arms = len(inducers.LEARNING_RATES), len(inducers.list_arms())
    assert len(done) == arms * rates + 3 * (arms - 2 + 2 * rates), "plain training at every rate"
    chosen = {each.trial.learning_rate for each in done if each.trial.seed and each.trial.inducer != PLAIN}
    assert chosen == {inducers.LEARNING_RATES[1]}
    assert inducers.plan(setup, []).total == len(done)
    assert ("batch-norm L1", False) not in inducers.list_arms()


@pytest.mark.parametrize(
    ("rank", "ruling"), [(30, Ruling.CONFIRMED), (70, Ruling.REFUTED), (48, Ruling.UNDECIDED)]
)
def test_the_ruling_is_on_the_rank_at_a_high_temperature(rank: int, ruling: Ruling) -> None:
    setup = tiny_setup(inducers, seeds=3)
    done = follow(lambda found: inducers.plan(setup, found), lambda trial: make(trial, hot_rank=rank))
    assert inducers.conclude(setup, done, {}).ruling is ruling


def test_what_is_better_as_cut_and_no_worse_uncut_is_named() -> None:
    setup = tiny_setup(inducers, seeds=3)
    done = follow(lambda found: inducers.plan(setup, found), make)
    found = inducers.conclude(setup, done, {})
    assert "with batch norm, temperature 10 (+10.2 points, +10.0 to +10.4; uncut +0.0)" in found.sentence
    assert "dropout" not in found.sentence
    page = found.render_page()
    assert (
        "| with batch norm, none, rate 0.003 | 0.003 | 0.900 | 0.800 | 0.600 | 5 | 50 | 90 | 0.30 |" in page
    )


def test_a_rate_that_alone_does_as_much_takes_the_gain_away() -> None:
    def leaning(trial: InducerTrial) -> InducerTraining:
        found = make(trial)
        if trial.inducer == PLAIN and trial.learning_rate == inducers.LEARNING_RATES[2]:
            return replace(found, cut_accuracies={"0.25": 0.8, "0.1": 0.9})
        return found

    setup = tiny_setup(inducers, seeds=3)
    found = inducers.conclude(setup, follow(lambda done: inducers.plan(setup, done), leaning), {})
    assert found.sentence.endswith("and not worse uncut: none.")


def test_every_arm_ends_elsewhere(conducted: Callable[[str], Conducted]) -> None:
    trainings = [
        each for each in conducted("inducers").finding.trainings if isinstance(each, InducerTraining)
    ]
    assert {each.trial.inducer for each in trainings} == {PLAIN, HOT, "init x 0.1"}
    figures = {
        (each.trial.inducer, each.trial.norm): each.dimension_share
        for each in trainings
        if each.trial.seed == 1
    }
    assert len(set(figures.values())) == len(figures) == 6
    assert all(0 < each.dimension_share <= 1 for each in trainings)


def test_pairs_of_digits_write_their_number_and_share_no_image() -> None:
    data = CustomData(
        factory="tpsprune_studies.tasks:digit_pairs",
        data_args={"items": 300, "held_out": 200, "split_seed": 3},
    )
    found = load(data)
    assert found.train.inputs.shape == (300, 1, 8, 16)
    assert found.facts.classes == 100
    images = {
        name: {half.numpy().tobytes() for pair in split.inputs for half in pair.split(8, dim=2)}
        for name, split in (("train", found.train), ("validation", found.validation), ("test", found.test))
    }
    assert not images["train"] & (images["validation"] | images["test"])
    left = found.train.labels[found.train.labels // 10 == 7]
    assert 0 < len(left) < 300


def test_a_net_of_the_studies_is_what_its_arguments_say() -> None:
    torch.manual_seed(0)
    plain = plain_mlp(12, [8, 6], 3, norm=False)
    torch.manual_seed(0)
    small = plain_mlp(12, [8, 6], 3, norm=False, init_scale=0.1)
    assert torch.allclose(small[1].weight, 0.1 * plain[1].weight)
    assert torch.equal(small[1].bias, plain[1].bias)
    kinds = [type(each) for each in plain_mlp(12, [8], 3, dropout=0.5)]
    assert kinds == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
