"""Tuning: who wins, what a training is allowed, where an interrupted experiment resumes; and pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.studies.conftest import LABELS, NONE, follow, longer, made, small_recipe
from tpsprune.data import Dataset
from tpsprune.recipe import Recipe
from tpsprune_studies import tuned_comparison
from tpsprune_studies.finding import by_trial
from tpsprune_studies.finding import follow as follow_strand
from tpsprune_studies.setup import Prepared, prepare
from tpsprune_studies.speed_up import make_setup
from tpsprune_studies.tuned_comparison import (
    Arm,
    ArmTraining,
    ArmTrial,
    Experiment,
    Hyperparameters,
    Seeds,
    TunedSetup,
    learn,
    make_recipe,
    run_trial,
    tune,
)

ONE = Seeds(pilot_seeds=1, seeds=2)
GRID = Arm(
    name="grid", variant="labels", learning_rates=(1.0, 2.0), weight_decays=(1.0, 2.0), strengths=(5.0, 7.0)
)


def tuned(
    experiment: Experiment, arm: Arm, seeds: Seeds, outcome: dict[tuple[float, float, float], int]
) -> list[ArmTraining]:
    def make(trial: ArmTrial) -> ArmTraining:
        return made(trial, outcome[(trial.learning_rate, trial.weight_decay, trial.strength)])

    return follow(lambda done: follow_strand(tune(experiment, arm, seeds), by_trial(done))[0], make)


OUTCOME = {
    (1.0, 1.0, 5.0): 900,
    (1.0, 2.0, 5.0): 700,
    (2.0, 1.0, 5.0): 800,
    (2.0, 2.0, 5.0): -5000,
    (1.0, 2.0, 7.0): 300,
}


def test_the_fewest_steps_win_and_a_training_is_allowed_only_what_would_still_win(tiny: TunedSetup) -> None:
    experiment = longer(tiny).experiments[0]
    done = tuned(experiment, GRID, ONE, OUTCOME)
    tried = [(t.trial.learning_rate, t.trial.weight_decay, t.trial.strength) for t in done]
    assert tried == list(OUTCOME), "other strengths at the first round's best"
    assert [t.trial.allowed_steps for t in done] == [5000, 890, 690, 690, 690]
    assert [t.reached for t in done] == [True, True, False, False, True]
    plan, found = follow_strand(tune(experiment, GRID, ONE), by_trial(done))
    assert found == (Hyperparameters(learning_rate=1.0, weight_decay=2.0, strength=7.0), 300)
    assert not plan.later_arms


def test_over_two_seeds_the_sum_counts_and_the_second_is_allowed_the_rest(tiny: TunedSetup) -> None:
    done = tuned(longer(tiny).experiments[0], GRID, Seeds(pilot_seeds=2, seeds=2), OUTCOME)
    first_round = [(0, 5000), (1, 5000), (0, 1790), (1, 1090), (0, 1390), (1, 590), (0, 1390)]
    assert [(t.trial.seed, t.trial.allowed_steps) for t in done] == [*first_round, (0, 1390), (1, 1090)]


def test_where_none_reaches_the_level_the_most_accurate_wins(tiny: TunedSetup) -> None:
    experiment = longer(tiny).experiments[0]
    outcome = dict.fromkeys([*OUTCOME, (1.0, 1.0, 7.0)], -5000)
    done = by_trial(tuned(experiment, GRID, ONE, outcome))
    better = next(trial for trial in done if trial.weight_decay == 1.0 and trial.learning_rate == 2.0)
    done[better] = replace(done[better], validation_accuracy=0.5)
    plan, found = follow_strand(tune(experiment, GRID, ONE), done)
    # The second round starts from the new leader, and is due.
    due = plan.trials[-1]
    assert isinstance(due, ArmTrial)
    assert due.settings == Hyperparameters(learning_rate=2.0, weight_decay=1.0, strength=7.0)
    assert found is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5000, 5000).filter(bool), min_size=7, max_size=7))
def test_stopping_early_never_changes_who_wins(steps: list[int]) -> None:
    experiment = Experiment(
        task="t", recipe=small_recipe(), arms=(GRID,), level=0.9, cap_steps=5000, reading_steps=10
    )
    rates = [(a, b, c) for a in (1.0, 2.0) for b in (1.0, 2.0) for c in (5.0, 7.0)]
    outcome = {
        key: 10 * (abs(value) // 10 or 1) * (1 if value > 0 else -1)
        for key, value in zip(rates, [*steps, 1], strict=True)
    }
    done = tuned(experiment, GRID, ONE, outcome)
    _, tuned_to = follow_strand(tune(experiment, GRID, ONE), by_trial(done))
    assert tuned_to is not None
    chosen, _ = tuned_to
    first = {key: value for key, value in outcome.items() if key[2] == 5.0 and value > 0}
    if first:
        leader = min(first, key=lambda key: first[key])
        second = outcome[(*leader[:2], 7.0)]
        expected = (*leader[:2], 7.0) if 0 < second < first[leader] else leader
        assert (chosen.learning_rate, chosen.weight_decay, chosen.strength) == expected


def test_settings_at_the_end_of_a_list_are_reported() -> None:
    at_ends = Hyperparameters(learning_rate=1.0, weight_decay=2.0, strength=7.0)
    assert GRID.edges(at_ends) == ("learning rate", "weight decay", "strength")
    assert not NONE.edges(Hyperparameters(learning_rate=0.02, weight_decay=1.0))


def test_pairs_begin_only_when_every_arm_is_tuned(tiny: TunedSetup) -> None:
    experiment, seeds = tiny.experiments[0], tiny.seeds
    first, _ = learn(experiment, seeds, {})
    assert [trial.arm for trial in first.trials] == ["addition, none", "addition, labels"]
    assert first.total == 2 + 2 + 2 * 2
    done = follow(lambda done: learn(experiment, seeds, by_trial(done))[0], lambda trial: made(trial, 10))
    stages = [training.trial.stage for training in done]
    assert stages == ["pilot"] * (len(stages) - 4) + ["pair"] * 4
    assert [(t.trial.seed, t.trial.name, t.trial.allowed_steps) for t in done[-4:]] == [
        (1, "none", 30),
        (1, "labels", 30),
        (2, "none", 30),
        (2, "labels", 30),
    ]


def test_a_change_of_task_level_or_cap_is_another_training(tiny: TunedSetup) -> None:
    experiment = tiny.experiments[0]
    task = experiment.recipe.task
    others = [
        replace(experiment, level=0.2),
        replace(experiment, cap_steps=31),
        replace(experiment, recipe=replace(experiment.recipe, task=replace(task, required_accuracy=0.5))),
    ]
    assert len({each.conditions for each in (experiment, *others)}) == 4
    seeded = replace(task, data=replace(task.data, split_seed=9))
    same = replace(experiment, recipe=replace(experiment.recipe, task=seeded))
    assert same.conditions == experiment.conditions


def test_without_tps_as_many_settings_are_tried_as_with_any_variant() -> None:
    (experiment,) = make_setup(small_recipe(), None, None).experiments
    sizes = {arm.name: arm.size for arm in experiment.arms}
    assert min(sizes["none"], sizes["grokfast"]) >= max(sizes.values()) - 3
    assert sizes["none"] >= max(size for name, size in sizes.items() if name != "grokfast")


@pytest.mark.parametrize("arm", [NONE, LABELS])
def test_tuning_tries_every_setting_once(tiny: TunedSetup, arm: Arm) -> None:
    outcome = dict.fromkeys([(a, 1.0, c) for a in (0.01, 0.03) for c in (0.0, 1.0, 3.0)], 500)
    done = tuned(longer(tiny).experiments[0], arm, ONE, outcome)
    assert len({t.trial.settings for t in done}) == len(done) == arm.size


def trial_of(setup: TunedSetup, seed: int = 1, name: str = "none", allowed_steps: int = 30) -> ArmTrial:
    return ArmTrial(
        stage="pair",
        task="addition",
        conditions=setup.experiments[0].conditions,
        name=name,
        seed=seed,
        learning_rate=0.01,
        weight_decay=1.0,
        strength=1.0 if name == "labels" else 0.0,
        allowed_steps=allowed_steps,
    )


def recipe_of(setup: TunedSetup, seed: int = 1, name: str = "none") -> Recipe:
    return make_recipe(setup.experiments[0], trial_of(setup, seed, name))


def data_of(setup: TunedSetup) -> Dataset:
    return prepare(recipe_of(setup)).dataset


def test_a_pair_shares_weights_split_and_renaming_and_seeds_do_not(tiny: TunedSetup) -> None:
    one, same, other = (
        prepare(recipe_of(tiny, seed, name)) for seed, name in ((1, "none"), (1, "labels"), (2, "none"))
    )
    assert torch.equal(one.dataset.train.inputs, same.dataset.train.inputs)
    assert torch.equal(one.dataset.train.labels, same.dataset.train.labels)
    assert not torch.equal(one.dataset.train.inputs, other.dataset.train.inputs)
    for a, b, c in zip(*(each.model.parameters() for each in (one, same, other)), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


def test_an_ordered_arm_has_the_same_pairs_under_their_own_names(tiny: TunedSetup) -> None:
    none, labels = tiny.experiments[0].arms
    arms = (replace(none, ordered=True), labels)
    renamed = data_of(tiny).train
    ordered = data_of(replace(tiny, experiments=(replace(tiny.experiments[0], arms=arms),))).train
    assert torch.equal(ordered.inputs.sum(1) % 13, ordered.labels)
    # One renaming of tokens takes the one split to the other.
    names: dict[int, int] = {}
    for old, new in zip(ordered.inputs.flatten().tolist(), renamed.inputs.flatten().tolist(), strict=True):
        assert names.setdefault(old, new) == new


def test_held_out_labels_cannot_reach_the_weights_of_any_arm(
    tiny: TunedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets: list[torch.nn.Module] = []

    def prepare_with_changed_labels(recipe: Recipe) -> Prepared:
        prepared = prepare(recipe)
        nets.append(prepared.model)
        dataset = prepared.dataset
        held_out = {
            name: replace(split, labels=(split.labels + len(nets)) % 13)
            for name, split in (("validation", dataset.validation), ("test", dataset.test))
        }
        return replace(prepared, dataset=replace(dataset, **held_out))

    monkeypatch.setattr(tuned_comparison, "prepare", prepare_with_changed_labels)
    for _ in range(2):
        run_trial(replace(tiny.experiments[0], level=1.1), trial_of(tiny, name="labels", allowed_steps=20))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_are_those_of_the_first_reading_at_the_level_or_of_the_last(tiny: TunedSetup) -> None:
    at_once = run_trial(replace(tiny.experiments[0], level=0.0), trial_of(tiny, name="labels"))
    never = run_trial(
        replace(tiny.experiments[0], level=1.1), trial_of(tiny, name="labels", allowed_steps=25)
    )
    assert (at_once.steps, at_once.reached) == (10, True)
    assert (never.steps, never.reached) == (25, False)
    assert 0 < never.tps_cpu_seconds < never.cpu_seconds


def test_the_arms_differ_by_their_regulariser_alone(tiny: TunedSetup) -> None:
    experiment = replace(tiny.experiments[0], cap_steps=40, level=1.1)
    coupled = trial_of(tiny, name="labels", allowed_steps=40)
    none = run_trial(experiment, trial_of(tiny, allowed_steps=40))
    assert (
        none.validation_accuracy == run_trial(experiment, replace(coupled, strength=0.0)).validation_accuracy
    )
    assert none.validation_accuracy != run_trial(experiment, coupled).validation_accuracy


def test_a_training_that_diverges_has_lost(tiny: TunedSetup) -> None:
    lost = run_trial(tiny.experiments[0], replace(trial_of(tiny), learning_rate=1e30))
    assert (lost.steps, lost.reached, lost.validation_accuracy) == (30, False, 0.0)
