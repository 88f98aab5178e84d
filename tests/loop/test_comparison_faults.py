"""What no comparison begins with and what is no run of one: reported at once, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tpsprune
from tests.loop.conftest import ARMS, at_the_wall
from tpsprune.errors import DeviceError, RecipeError
from tpsprune.records import Window

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def window(start_seconds: float, seconds: float = 10.0, **changes: Any) -> Window:
    started = (NOON + timedelta(seconds=start_seconds)).isoformat(timespec="milliseconds")
    changed = {"started": started, "seconds": seconds, "index": int(start_seconds)} | changes
    return replace(at_the_wall().windows[0], **changed)


def of(*windows: Window) -> tpsprune.EnergyUse:
    return replace(at_the_wall(), windows=windows)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ("dense",)}, r"arms: two different names or more are needed"),
        ({"arms": ("dense", "dense")}, r"arms: two different names"),
        ({"arms": ("dense", "My Net")}, r"arms: 'My Net' is no name; use lower-case"),
        ({"arms": ("dense", ["ticket"])}, r"arms: \['ticket'\] is no name; use lower-case"),
        ({"arms": "dense"}, r"arms: two different names"),
        ({"arms": 3}, r"arms: must be a list of names, the baseline first \(found 3\)"),
        ({"arms": {"dense", "ticket"}}, r"arms: must be a list of names, the baseline first"),
        ({"pairs": 0}, r"pairs: must be a whole number from 1 \(found 0\)"),
        ({"pairs": True}, r"pairs: must be a whole number from 1 \(found True\)"),
        ({"first_seed": -1}, r"first_seed: must be a whole number from 0 \(found -1\)"),
        ({"first_seed": 1.0}, r"first_seed: must be a whole number from 0 \(found 1\.0\)"),
        ({"name": 3}, r"name: must be text \(found 3\)"),
        ({"tolerance": 1.5}, r"tolerance: must be less than 1 \(found 1\.5\)"),
        ({"tolerance": float("nan")}, r"tolerance: must be"),
        ({"foreign_load": 0}, r"foreign_load: must be greater than 0 \(found 0\)"),
        ({"required_accuracy": 91}, r"required_accuracy: must be a share from 0 to 1 \(found 91\)"),
        ({"required_accuracy": True}, r"required_accuracy: must be a share from 0 to 1 \(found True\)"),
        ({"device": "gpu"}, r"device: must be one of auto, cpu, cuda, mps \(found 'gpu'\)"),
        ({"device": 3}, r"device: must be one of auto, cpu, cuda, mps \(found 3\)"),
        ({"settings": 3}, r"settings: must be a dict of JSON values \(found 3\)"),
        ({"settings": {3: "x"}}, r"settings: has a name that is no text \(found 3\)"),
        ({"settings": {"x": {"y": {1}}}}, r"settings\.x\.y: is a set; use text, finite numbers, True"),
        ({"settings": {"x": [0, torch.ones(2)]}}, r"settings\.x\[1\]: is a Tensor; use text"),
        ({"settings": {"x": np.int64(3)}}, r"settings\.x: is a int64; use text"),
        ({"settings": {"x": float("nan")}}, r"settings\.x: must be finite \(found nan\)"),
    ],
)
def test_a_setting_that_cannot_be_is_reported_and_nothing_is_written(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        tpsprune.Comparison(tmp_path / "new", **({"arms": ARMS} | settings))
    assert not (tmp_path / "new").exists()


def test_every_fault_of_the_settings_is_reported_at_once(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "arms": 3,
        "pairs": 0,
        "name": None,
        "first_seed": "one",
        "tolerance": 2,
        "foreign_load": 2,
        "required_accuracy": 2,
        "settings": {"x": {1}},
        "device": "gpu",
    }
    with pytest.raises(RecipeError, match="Comparison has 9 faults") as raised:
        tpsprune.Comparison(tmp_path, **wrong)
    assert sorted(fault.place.partition(".")[0] for fault in raised.value.faults) == sorted(wrong)


def test_settings_of_json_values_are_in_the_design_as_they_are(tmp_path: Path) -> None:
    settings = {"lr": 0.1, "sizes": (8, 4), "data": {"name": "digits", "seed": None}, "clip": True}
    record = tpsprune.Comparison(tmp_path, arms=list(ARMS), settings=settings, device="cpu")
    assert json.loads(record.record.design.recipe_text) == settings | {"sizes": [8, 4]}


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_may_be_numbered_or_one_of_torch(device: Any, tmp_path: Path) -> None:
    assert tpsprune.Comparison(tmp_path, arms=ARMS, device=device).record.design.device == "cpu"


def test_a_numbered_device_that_is_not_here_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA device is available"):
        tpsprune.Comparison(tmp_path / "new", arms=ARMS, device="cuda:0")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"accuracy": 91.2}, r"accuracy: must be a share from 0 to 1 \(found 91\.2\)"),
        ({"accuracy": True}, r"accuracy: must be a share from 0 to 1 \(found True\)"),
        ({"accuracy": None}, r"accuracy: is needed, or a failure as text"),
        ({"seed": "0"}, r"seed: must be a whole number from 0 \(found '0'\)"),
        ({"seed": False}, r"seed: must be a whole number from 0 \(found False\)"),
        ({"failure": ValueError("x")}, r"failure: must be text \(found ValueError\('x'\)\)"),
        ({"failure": np.ones(2), "accuracy": None}, r"failure: must be text"),
        ({"stopped_by": 3}, r"stopped_by: must be text \(found 3\)"),
        ({"notes": "slow"}, r"notes: must be a list of texts \(found 'slow'\)"),
        ({"notes": ["slow", 3]}, r"notes: must be a list of texts \(found \['slow', 3\]\)"),
        ({"epochs": float("nan")}, r"epochs: must be a number from 0 \(found nan\)"),
        ({"epochs": -1}, r"epochs: must be a number from 0 \(found -1\)"),
        ({"epochs": 10**400}, r"epochs: must be a number from 0"),
        ({"parameters": "many"}, r"parameters: must be a whole number from 0 \(found 'many'\)"),
        ({"parameters": -5}, r"parameters: must be a whole number from 0 \(found -5\)"),
        ({"macs": 1.5}, r"macs: must be a whole number from 0 \(found 1\.5\)"),
        ({"energy_use": 5.0}, r"energy_use: must be what Meter\.take\(\) or EnergyUse\.of_numbers\(\)"),
        ({"energy_use": of()}, r"energy_use: must be what"),
        ({"energy_use": replace(at_the_wall(), windows=(3,))}, r"energy_use: must be what"),
    ],
)
def test_a_run_that_cannot_be_is_reported_and_not_written(
    figures: dict[str, Any], words: str, tmp_path: Path
) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    arm, seed = next(record.due())
    with pytest.raises(RecipeError, match=words):
        record.add(arm, **({"seed": seed, "energy_use": at_the_wall(), "accuracy": 0.9} | figures))
    assert record.record.runs == ()


def test_every_fault_of_a_run_is_reported_at_once(tmp_path: Path) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    arm, _ = next(record.due())
    wrong: dict[str, Any] = {
        "seed": None,
        "energy_use": None,
        "accuracy": 2,
        "parameters": -1,
        "macs": "",
        "epochs": "",
        "stopped_by": None,
        "failure": None,
        "notes": None,
    }
    with pytest.raises(RecipeError, match="Comparison has 9 faults") as raised:
        record.add(arm, **wrong)
    assert sorted(fault.place for fault in raised.value.faults) == sorted(wrong)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    record = tpsprune.Comparison(
        tmp_path, arms=ARMS, pairs=np.int64(1), first_seed=np.int64(3), required_accuracy=np.float32(0.5)
    )
    for arm, seed in record.due():
        energy_use = tpsprune.EnergyUse.of_numbers(joules=np.float32(2.0), seconds=np.int64(3), source="wall")  # type: ignore[arg-type]
        record.add(
            arm,
            seed=np.int64(seed),  # type: ignore[arg-type]
            energy_use=energy_use,
            accuracy=np.float32(0.5),  # type: ignore[arg-type]
            parameters=np.int64(12),  # type: ignore[arg-type]
            macs=np.int32(7),  # type: ignore[arg-type]
            epochs=np.float32(1.5),  # type: ignore[arg-type]
        )
    run = record.record.runs[0]
    assert (run.seed, run.pair, run.accuracy, run.parameters, run.macs, run.epochs) == (3, 0, 0.5, 12, 7, 1.5)
    assert run.windows[0].total_joules == 2.0


WRONG: dict[str, tuple[tpsprune.EnergyUse, str]] = {
    "joules below 0": (
        of(window(0), window(10, joules={"wall": -1.0})),
        r"not below 0; 1 of 2 windows have others \(the first, of phase .train.: 10\.0 s, \{.wall.: -1",
    ),
    "joules that are none": (of(window(0, joules={"wall": float("nan")})), r"figures must be finite"),
    "joules as text": (of(window(0, joules={"wall": "3"})), r"figures must be finite"),
    "seconds below 0": (of(window(0, seconds=-1.0)), r"joules and seconds not below 0; 1 of 1"),
    "endless seconds": (of(window(0, seconds=float("inf"))), r"figures must be finite"),
    "processor seconds that are none": (of(window(0, cpu_seconds=float("nan"))), r"figures must be finite"),
    "twice the same": (of(*[window(0), window(10)] * 2), r"2 of 4 windows are there twice, or began within"),
    "twice the same and short": (of(*[window(0, seconds=0.1)] * 2), r"1 of 2 windows are there twice"),
    "one within another": (
        of(window(20), window(0), window(5)),
        r"1 of 3 windows are there twice, or began within another \(the first at 2024-01-01T12:00:05\.000",
    ),
    "a figure of the user's own twice": (of(*at_the_wall().windows * 2), r"without a start.* counted twice"),
    "a figure of the user's own beside windows": (
        of(window(0), *at_the_wall().windows),
        r"without a start, as of EnergyUse\.of_numbers\(\), is a whole run's",
    ),
    "no time": (of(window(0, started="noon"), window(10)), r"a window has no start time \(.*'noon'"),
}


@pytest.mark.parametrize(("energy_use", "words"), WRONG.values(), ids=WRONG)
def test_windows_that_no_meter_gives_are_refused(
    energy_use: tpsprune.EnergyUse, words: str, tmp_path: Path
) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    arm, seed = next(record.due())
    with pytest.raises(RecipeError, match=rf"energy_use: .*{words}"):
        record.add(arm, seed=seed, energy_use=energy_use, accuracy=0.9)
    assert record.record.runs == ()


RIGHT: dict[str, Callable[[], tpsprune.EnergyUse]] = {
    "in any order": lambda: of(window(20), window(0), window(10)),
    "on a clock that was set back a little": lambda: of(window(0), window(9.2)),
    # The verdict refuses these, with the meter's fault; a run that was made can always be added.
    "below 0 and invalid by the meter": lambda: of(
        window(0, joules={"wall": -1.0}, valid=False, fault="it ran backwards")
    ),
}


@pytest.mark.parametrize("made", RIGHT.values(), ids=RIGHT)
def test_windows_that_a_meter_may_give_are_taken(
    made: Callable[[], tpsprune.EnergyUse], tmp_path: Path
) -> None:
    record = tpsprune.Comparison(tmp_path, arms=ARMS)
    arm, seed = next(record.due())
    record.add(arm, seed=seed, energy_use=made(), accuracy=0.9)
    assert len(record.record.runs) == 1


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"source": ["wall"]},
            r"source: must be one of wall, counters, model, constant \(found \['wall'\]\)",
        ),
        ({"joules": True}, r"joules: must be a number above 0 \(found True\)"),
        ({"joules": -1, "seconds": 0, "source": "sun"}, r"EnergyUse has 3 faults"),
    ],
)
def test_numbers_of_the_users_own_that_cannot_be_are_reported(figures: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        tpsprune.EnergyUse.of_numbers(**({"joules": 1.0, "seconds": 1.0, "source": "wall"} | figures))
