"""A study on disk: whole, broken off, grown, refused; and what a pair has in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tpsprune.data import Dataset
from tpsprune.errors import RunFolderError
from tpsprune.recipe import Recipe
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.contest import Trained, Trial
from tpsprune.studies.contest_run import recipe_of, run_trial
from tpsprune.studies.finding import Finding
from tpsprune.studies.page import page
from tpsprune.studies.speed_up import SpeedUp
from tpsprune.studies.trial import begin

SPEED_UP = STUDIES["speed-up"]
TIMES = {"cpu_seconds", "tps_cpu_seconds", "seconds"}


def lines_of(folder: Path) -> list[str]:
    return (folder / "speed-up.jsonl").read_text().splitlines()


def without_times(training: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in training.items() if key not in TIMES}


@pytest.fixture(scope="module")
def whole(tiny: SpeedUp, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Finding]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, list(conduct(SPEED_UP, tiny, folder))


def test_a_line_a_training_and_last_the_finding_that_is_on_disk(
    whole: tuple[Path, list[str | Finding]],
) -> None:
    folder, told = whole
    *lines, found = told
    assert isinstance(found, Finding)
    assert len(lines) == len(lines_of(folder)) == 8
    assert str(lines[0]).startswith("1/8 pilot seed 0 none lr 0.01 wd 1: ")
    assert str(lines[-1]).startswith("8/8 pair seed 2 labels lr 0.01 wd 1 λ ")
    assert str(lines[-1]).endswith("about 0 s left")
    on_disk = json.loads((folder / "speed-up.json").read_text())
    assert on_disk == json.loads(json.dumps(found.to_json()))
    assert on_disk["schema"] == "tpsprune.study/1"
    assert (folder / "speed-up.md").read_text() == page(found)


def test_a_study_that_was_broken_off_goes_on_and_ends_as_one_that_was_not(
    tiny: SpeedUp, tmp_path: Path, whole: tuple[Path, list[str | Finding]]
) -> None:
    begun = conduct(SPEED_UP, tiny, tmp_path)
    for _ in range(5):
        next(begun)
    begun.close()  # type: ignore[attr-defined]
    first = lines_of(tmp_path)
    assert len(first) == 5
    assert not (tmp_path / "speed-up.json").exists()
    with (tmp_path / "speed-up.jsonl").open("a") as journal:
        journal.write(first[0][:40])
    told = list(conduct(SPEED_UP, tiny, tmp_path))
    assert str(told[0]).startswith("6/8 ")
    assert lines_of(tmp_path)[:5] == first
    theirs = [without_times(json.loads(line)["training"]) for line in lines_of(whole[0])]
    assert [without_times(json.loads(line)["training"]) for line in lines_of(tmp_path)] == theirs


def test_more_seeds_go_on_from_fewer(
    tiny: SpeedUp, tmp_path: Path, whole: tuple[Path, list[str | Finding]]
) -> None:
    (tmp_path / "speed-up.jsonl").write_bytes((whole[0] / "speed-up.jsonl").read_bytes())
    told = list(conduct(SPEED_UP, replace(tiny, size=replace(tiny.size, seeds=3)), tmp_path))
    assert [str(line)[:16] for line in told[:-1]] == ["9/10 pair seed 3", "10/10 pair seed "]


def test_a_journal_of_another_number_of_pilot_seeds_is_refused_in_words(
    tiny: SpeedUp, tmp_path: Path, whole: tuple[Path, list[str | Finding]]
) -> None:
    content = (whole[0] / "speed-up.jsonl").read_bytes()
    (tmp_path / "speed-up.jsonl").write_bytes(content)
    more = replace(tiny, size=replace(tiny.size, pilot_seeds=2))
    with pytest.raises(RunFolderError, match=r"settings\.pilot_seeds is 1 there and 2 here; .* --out"):
        next(conduct(SPEED_UP, more, tmp_path))
    assert (tmp_path / "speed-up.jsonl").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["speed-up.jsonl"]


def test_trainings_of_another_task_in_the_journal_count_for_nothing(
    tiny: SpeedUp, tmp_path: Path, whole: tuple[Path, list[str | Finding]]
) -> None:
    (tmp_path / "speed-up.jsonl").write_bytes((whole[0] / "speed-up.jsonl").read_bytes())
    harder = replace(tiny, contest=replace(tiny.contest, level=0.11))
    assert str(next(conduct(SPEED_UP, harder, tmp_path))).startswith("1/8 pilot seed 0 none ")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("machine", "torch", "1.0", r"machine\.torch is '1\.0' there"),
        ("settings", "unheard", 1, r"settings\.unheard is 1 there and None here"),
    ],
)
def test_a_journal_of_another_machine_or_recipe_is_refused_in_words(
    tiny: SpeedUp,
    tmp_path: Path,
    whole: tuple[Path, list[str | Finding]],
    section: str,
    key: str,
    value: object,
    message: str,
) -> None:
    record = json.loads(lines_of(whole[0])[0])
    record[section][key] = value
    (tmp_path / "speed-up.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RunFolderError, match=message):
        next(conduct(SPEED_UP, tiny, tmp_path))


def test_a_journal_names_no_place_of_the_machine(whole: tuple[Path, list[str | Finding]]) -> None:
    for path in whole[0].iterdir():
        text = path.read_text()
        assert str(whole[0]) not in text
        assert str(Path.home()) not in text


def trial_of(setup: SpeedUp, seed: int = 1, name: str = "none", allowed_steps: int = 30) -> Trial:
    return Trial(
        stage="pair",
        task="addition",
        conditions=setup.contest.conditions,
        name=name,
        seed=seed,
        learning_rate=0.01,
        weight_decay=1.0,
        strength=1.0 if name == "labels" else 0.0,
        allowed_steps=allowed_steps,
    )


def test_a_pair_shares_weights_split_and_renaming_and_seeds_do_not(tiny: SpeedUp) -> None:
    trials = [trial_of(tiny), trial_of(tiny, name="labels"), trial_of(tiny, seed=2)]
    (data, net), (same_data, same_net), (other_data, other_net) = (
        begin(recipe_of(tiny.contest, trial)) for trial in trials
    )
    assert torch.equal(data.train.inputs, same_data.train.inputs)
    assert torch.equal(data.train.labels, same_data.train.labels)
    assert not torch.equal(data.train.inputs, other_data.train.inputs)
    for one, same, other in zip(net.parameters(), same_net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(one, same)
        assert one.ndim < 2 or not torch.equal(one, other)


def test_an_ordered_arm_has_the_same_pairs_under_their_own_names(tiny: SpeedUp) -> None:
    renamed, _ = begin(recipe_of(tiny.contest, trial_of(tiny)))
    none, labels = tiny.contest.arms
    contest = replace(tiny.contest, arms=(replace(none, ordered=True), labels))
    ordered, _ = begin(recipe_of(contest, trial_of(tiny)))
    assert torch.equal(ordered.train.inputs.sum(1) % 13, ordered.train.labels)
    # One renaming of tokens takes the one split to the other.
    names = {}
    for old, new in zip(ordered.train.inputs.flatten(), renamed.train.inputs.flatten(), strict=True):
        assert names.setdefault(int(old), int(new)) == int(new)


def test_steps_are_those_of_the_first_reading_at_the_level_and_the_last_is_a_reading(tiny: SpeedUp) -> None:
    at_once = run_trial(replace(tiny.contest, level=0.0), trial_of(tiny, name="labels"))
    never = run_trial(replace(tiny.contest, level=1.1), trial_of(tiny, name="labels", allowed_steps=25))
    assert (at_once.steps, at_once.reached) == (10, True)
    assert (never.steps, never.reached) == (25, False)
    assert 0 < never.tps_cpu_seconds < never.cpu_seconds
    assert Trained.from_json(json.loads(json.dumps(never.to_json()))) == never


def test_the_arms_differ_by_their_regulariser_alone(tiny: SpeedUp) -> None:
    longer = replace(tiny.contest, cap_steps=40, level=1.1)
    none = run_trial(longer, trial_of(tiny, allowed_steps=40))
    coupled = trial_of(tiny, name="labels", allowed_steps=40)
    uncoupled = run_trial(longer, replace(coupled, strength=0.0))
    assert none.validation_accuracy == uncoupled.validation_accuracy
    assert run_trial(longer, coupled).validation_accuracy != none.validation_accuracy


def test_a_training_that_leaves_the_finite_numbers_has_lost(tiny: SpeedUp) -> None:
    lost = run_trial(tiny.contest, replace(trial_of(tiny), learning_rate=1e30))
    assert (lost.steps, lost.reached, lost.validation_accuracy) == (30, False, 0.0)


def test_held_out_answers_cannot_reach_the_weights_of_any_arm(
    tiny: SpeedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets: list[torch.nn.Module] = []

    def with_answers_changed(recipe: Recipe) -> tuple[Dataset, torch.nn.Module]:
        dataset, net = begin(recipe)
        nets.append(net)
        if len(nets) == 1:
            return dataset, net
        held_out = {
            name: replace(split, labels=(split.labels + 1) % 13)
            for name, split in (("validation", dataset.validation), ("test", dataset.test))
        }
        return replace(dataset, **held_out), net

    monkeypatch.setattr("tpsprune.studies.contest_run.begin", with_answers_changed)
    unreachable = replace(tiny.contest, level=1.1)
    for _ in range(2):
        run_trial(unreachable, trial_of(tiny, name="labels", allowed_steps=20))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_pair_held_out_is_trained_on(tiny: SpeedUp) -> None:
    dataset, _ = begin(recipe_of(tiny.contest, trial_of(tiny)))
    splits = [
        {tuple(pair) for pair in split.inputs.tolist()}
        for split in (dataset.train, dataset.validation, dataset.test)
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 13 * 13
