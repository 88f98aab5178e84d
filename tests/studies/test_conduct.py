"""A study on disk: whole, interrupted, grown, refused; by two; and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.studies.conftest import Conducted, made, shortened
from tpsprune.errors import RunFolderError
from tpsprune_studies.catalogue import STUDIES, Study, load_study
from tpsprune_studies.conduct import StudyJournal, conduct, describe_machine
from tpsprune_studies.finding import Bound, Finding, Plan, follow, judge
from tpsprune_studies.tuned_comparison import ArmTraining, ArmTrial, TunedSetup, tune

SPEED_UP = STUDIES["speed-up"]
Conduct = Callable[[str], Conducted]


@pytest.mark.parametrize("name", STUDIES)
def test_the_module_of_a_study_holds_what_a_study_has(name: str) -> None:
    assert isinstance(load_study(name), Study)


def without_times(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line)["training"].items() if "seconds" not in key}


@pytest.mark.parametrize(
    ("name", "trainings", "first", "column"),
    [
        ("speed-up", 8, "1/8 pilot seed 0 none lr 0.01 wd 1: ", "ratio none / arm"),
        (
            "dimension",
            22,
            "1/22 seed 1 modular addition, none: ",
            "dimension over the width, mean of groups",
        ),
        ("draw-time", 22, "1/22 seed 1 dense: drawn at step 0, then ", "ratio of the steps to the level"),
        ("lead-time", 15, "1/15 seed 0 add: ", "lead of the alarm in epochs"),
        (
            "edge-position",
            12,
            "1/12 seed 1 text, adamw: k* ",
            "share of readings with the edge at that place",
        ),
        ("coupling", None, "seed 1 8 units none λ 0: 0.", "exponent of N"),
    ],
)
def test_a_study_runs_writes_its_files_and_is_read_and_not_run_again(
    conducted: Conduct, name: str, trainings: int | None, first: str, column: str
) -> None:
    found = conducted(name)
    assert len(found.lines) == len(found.journal) == (trainings or len(found.journal))
    assert first in found.lines[0]
    assert found.lines[-1].endswith("about 0 s left")
    on_disk = json.loads((found.folder / f"{name}.json").read_text())
    assert on_disk == json.loads(json.dumps(found.finding.to_json()))
    assert (on_disk["schema"], on_disk["verdict"]) == ("tpsprune.study/1", found.finding.ruling.value)
    page = (found.folder / f"{name}.md").read_text()
    assert page == found.finding.render_page()
    assert f"| {column} | predicted | measured | 95 % interval |" in page
    with shortened(name) as setup:
        head = {"study": name, "settings": setup.decisive(), "machine": describe_machine()}
        done = StudyJournal(found.folder / f"{name}.jsonl", head, load_study(name).TRAINING).read()
        (again,) = conduct(STUDIES[name], setup, found.folder)
    written = [json.loads(line)["training"] for line in found.journal]
    assert json.loads(json.dumps([asdict(each) for each in done])) == written
    assert isinstance(again, Finding)
    assert json.loads(json.dumps(again.to_json())) == on_disk
    for path in found.folder.iterdir():
        assert str(found.folder) not in path.read_text()
        assert str(Path.home()) not in path.read_text()


def test_a_study_that_was_broken_off_goes_on_and_ends_as_one_that_was_not(
    tiny: TunedSetup, tmp_path: Path, conducted: Conduct
) -> None:
    begun = conduct(SPEED_UP, tiny, tmp_path)
    for _ in range(5):
        next(begun)
    begun.close()  # type: ignore[attr-defined]
    path = tmp_path / "speed-up.jsonl"
    first = path.read_text().splitlines()
    assert len(first) == 5
    assert not (tmp_path / "speed-up.json").exists()
    with path.open("a") as journal:
        journal.write(first[0][:40])
    lines = list(conduct(SPEED_UP, tiny, tmp_path))
    assert len(lines) == 4
    assert str(lines[0]).startswith("6/8 ")
    journal_lines = path.read_text().splitlines()
    assert journal_lines[:5] == first
    assert [without_times(line) for line in journal_lines] == [
        without_times(line) for line in conducted("speed-up").journal
    ]


@pytest.fixture
def copied(conducted: Conduct, tmp_path: Path) -> Path:
    path = tmp_path / "speed-up.jsonl"
    path.write_text("".join(f"{line}\n" for line in conducted("speed-up").journal))
    return path


def test_more_seeds_go_on_from_fewer(tiny: TunedSetup, copied: Path) -> None:
    lines = list(conduct(SPEED_UP, replace(tiny, seeds=replace(tiny.seeds, seeds=3)), copied.parent))
    assert [str(line)[:16] for line in lines[:-1]] == ["9/10 pair seed 3", "10/10 pair seed "]


def test_trainings_of_another_task_in_the_journal_count_for_nothing(tiny: TunedSetup, copied: Path) -> None:
    harder = replace(tiny, experiments=(replace(tiny.experiments[0], level=0.11),))
    assert str(next(conduct(SPEED_UP, harder, copied.parent))).startswith("1/8 pilot seed 0 none ")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("settings", "pilot_seeds", 2, r"settings\.pilot_seeds is 2 there and 1 here; .* --out"),
        ("machine", "torch", "1.0", r"machine\.torch is '1\.0' there"),
        ("settings", "unheard", 1, r"settings\.unheard is 1 there and None here"),
    ],
)
def test_a_journal_of_another_machine_or_recipe_is_refused_in_words(
    tiny: TunedSetup, copied: Path, section: str, key: str, value: object, message: str
) -> None:
    record = json.loads(copied.read_text().splitlines()[0])
    record[section][key] = value
    copied.write_text(content := json.dumps(record) + "\n")
    with pytest.raises(RunFolderError, match=message):
        next(conduct(SPEED_UP, tiny, copied.parent))
    assert [path.read_text() for path in copied.parent.iterdir()] == [content]


def test_the_machine_is_told_by_kind_and_not_by_name() -> None:
    assert set(describe_machine()) == {"system", "architecture", "logical_cpus", "torch", "python"}


def test_a_study_by_two_does_the_trainings_of_one_by_one(
    tiny: TunedSetup, tmp_path: Path, conducted: Conduct
) -> None:
    *lines, last = conduct(SPEED_UP, tiny, tmp_path, workers=2)
    assert isinstance(last, Finding)
    assert len(lines) == 8
    journals = ((tmp_path / "speed-up.jsonl").read_text().splitlines(), conducted("speed-up").journal)
    found, expected = (
        sorted(json.dumps(without_times(line), sort_keys=True) for line in journal) for journal in journals
    )
    assert found == expected


def test_a_strand_is_followed_as_far_as_it_is_done_and_then_returns_what_it_shows(tiny: TunedSetup) -> None:
    experiment, seeds = tiny.experiments[0], tiny.seeds
    names = [arm.name for arm in experiment.arms]
    first, second = (tune(experiment, arm, seeds) for arm in experiment.arms)
    begun, found = follow(first, {})
    assert (len(begun.trials), found) == (1, None)
    assert begun.later_arms == ("addition, none",) * 3, "one more setting, two seeds of the comparison"
    both = Plan.join([begun, follow(second, {})[0], begun])
    assert [trial.arm for trial in both.trials] == [f"addition, {name}" for name in names]
    assert both.total == 2 + 3 + 3 + 3
    done: dict[Any, ArmTraining] = {}
    while found is None:
        plan, found = follow(tune(experiment, experiment.arms[0], seeds), done)
        done |= {trial: made(trial, 25) for trial in plan.trials if isinstance(trial, ArmTrial)}
    assert (len(done), plan.later_arms) == (2, ())


EXACT, LOWER, UPPER, EITHER = Bound(), Bound(True, False), Bound(False, True), Bound(True, True)


@pytest.mark.parametrize(
    ("low", "high", "bound", "ruling"),
    [
        (2.0, 3.0, EXACT, "confirmed"),
        (6.0, 9.0, EXACT, "confirmed"),
        (1.99, 3.0, EXACT, "undecided"),
        (1.0, 2.0, EXACT, "undecided"),
        (1.0, 1.99, EXACT, "refuted"),
        (2.1, 3.0, LOWER, "confirmed"),
        (1.0, 1.9, LOWER, "undecided"),
        (2.1, 3.0, UPPER, "undecided"),
        (1.0, 1.9, UPPER, "refuted"),
        (2.1, 3.0, EITHER, "undecided"),
        (1.0, 1.0, EITHER, "undecided"),
    ],
)
def test_the_ruling_follows_the_interval_and_which_way_stopped_runs_let_it_move(
    low: float, high: float, bound: Bound, ruling: str
) -> None:
    assert judge(low, high, 2.0, bound) == ruling


def test_a_bound_says_which_way_it_is_open() -> None:
    qualifiers = [bound.qualifier for bound in (EXACT, LOWER, UPPER, EITHER)]
    assert qualifiers == ["", "at least", "at most", "nominally"]
