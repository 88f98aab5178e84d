"""Windows once more: what was recorded comes back, and a journal that does not fit is refused in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.recipe.test_read import LEAST
from tpsprune import recipe
from tpsprune.energy import AbstractMeter, build
from tpsprune.errors import MeterError, RecipeError, RunFolderError
from tpsprune.recipe.train import Energy
from tpsprune.records import EnergyClass, Window
from tpsprune.runs import Journal

TRAIN = Window(
    phase="train",
    index=7,
    attempt=3,
    seconds=12.5,
    cpu_seconds=11.0,
    joules={"cpu": 80.0, "gpu": 3000.5},
    classes={"cpu": EnergyClass.MODELLED, "gpu": EnergyClass.MEASURED},
    started="2026-01-02T03:04:05.678Z",
    machine_cpu_seconds=13.0,
    steal_seconds=0.25,
    gpu_celsius=71.0,
    throttled=False,
)
BROKEN = replace(TRAIN, seconds=1.5, joules={}, classes={}, valid=False, fault="energy of cpu is missing")
SAMPLED = replace(TRAIN, phase="evaluate", classes=dict.fromkeys(TRAIN.joules, EnergyClass.MODELLED))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "energy.jsonl"
    Journal(path).append_all(window.to_json() for window in (TRAIN, SAMPLED, BROKEN))
    return path


def replay(path: Path, attempt: int = 0) -> AbstractMeter:
    return build(Energy(meter="replay", replay=str(path)), attempt=attempt)


def window_of(meter: AbstractMeter, phase: str) -> Window:
    with meter.window(phase) as span:
        pass
    return span.window


def test_each_phase_takes_its_own_windows_in_the_order_recorded(journal: Path) -> None:
    meter = replay(journal, attempt=1)
    windows = [window_of(meter, phase) for phase in ("train", "train", "evaluate")]
    assert windows == [
        replace(TRAIN, index=0, attempt=1),
        replace(BROKEN, index=1, attempt=1),
        replace(SAMPLED, index=0, attempt=1),
    ]


def test_the_method_names_the_file_and_the_classes_found_in_it(journal: Path) -> None:
    method = replay(journal).method()
    assert (method.meter, method.scope) == ("replay", "recorded")
    assert method.classes == {"cpu": EnergyClass.MODELLED, "gpu": EnergyClass.MIXED}
    assert method.details == {
        "file": "energy.jsonl",
        "sha256": sha256(journal.read_bytes()).hexdigest(),
        "windows": "3",
    }


def test_a_phase_that_is_used_up_is_told_with_what_would_do(journal: Path) -> None:
    meter = replay(journal)
    window_of(meter, "evaluate")
    words = (
        "records 1 windows of 'evaluate', and this run opens one more: replay the journal of a run of this"
    )
    with pytest.raises(MeterError, match=re.escape(f"energy.replay: {journal} {words}")):
        meter.open("evaluate")
    assert not meter.is_open
    assert window_of(meter, "train").seconds == 12.5


def test_a_phase_that_was_never_recorded_is_told_with_those_that_were(journal: Path) -> None:
    meter = replay(journal)
    with pytest.raises(MeterError, match=r"no window of 'trian' \(did you mean 'train'\?\)"):
        meter.open("trian")
    with pytest.raises(MeterError, match=r"no window of 'prune' \(recorded: evaluate, train\)"):
        meter.open("prune")


def test_a_line_that_a_kill_cut_off_is_left_out(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b'{"phase": "tra')
    assert replay(journal).method().details["windows"] == "3"


def changed(**values: Any) -> str:
    return json.dumps({**TRAIN.to_json(), **values})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"phase": "train"}', "line 2 is no window"),
        (changed(seconds="long"), "line 2 is no window .*seconds and joules are finite numbers"),
        (changed(joules={"cpu": None, "gpu": 1.0}), "line 2 is no window .*finite numbers"),
        (changed(joules={"cpu": 1.0}), "line 2 is no window .*joules and classes are of different parts"),
        (changed(classes={"cpu": "guessed", "gpu": "measured"}), "line 2 is no window .*'guessed'"),
        (changed(phase=""), "line 2 is no window .*phase, started and fault are texts"),
        (changed(joules=[1.0]), "line 2 is no window"),
        (changed(watts=3.0), "line 2 is no window .*watts"),
    ],
)
def test_a_line_that_is_no_window_is_refused_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "energy.jsonl"
    path.write_text(f"{json.dumps(TRAIN.to_json())}\n{line}\n")
    with pytest.raises(MeterError, match=words):
        replay(path)


def test_a_file_that_is_damaged_absent_empty_or_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "energy.jsonl"
    with pytest.raises(MeterError, match="is not there"):
        replay(path)
    with pytest.raises(MeterError, match=f"is a folder; {path} may be meant"):
        replay(tmp_path)
    path.write_text("")
    with pytest.raises(MeterError, match="holds no window"):
        replay(path)
    path.write_text(f"{json.dumps(TRAIN.to_json())}\n{{]\n")
    with pytest.raises(RunFolderError, match="line 2 of 2 is not a JSON object"):
        replay(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["energy.meter=replay"], "energy.replay: is needed by meter 'replay': the energy.jsonl of a run"),
        (["energy.replay=a.jsonl"], r"energy.replay: is read by meter 'replay' only \(here 'codecarbon'\)"),
        (["energy.meter=reply"], "energy.meter: must be .*did you mean 'replay'"),
    ],
)
def test_a_recipe_that_replays_names_the_file_and_no_other_does(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe.parse(LEAST, "x.toml", overrides)
    with pytest.raises(MeterError, match=r"needs the energy\.jsonl of a run"):
        build(Energy(meter="replay"), attempt=0)
