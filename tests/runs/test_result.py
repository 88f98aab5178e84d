"""What a run writes at its end fits the schema it ships, and what does not is refused with its place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tpsprune.errors import RunFolderError
from tpsprune.records import (
    Cost,
    Decision,
    EnergyClass,
    EnergyMethod,
    GroupChange,
    Latency,
    LeftAlone,
    ModelFigures,
    Outcome,
    PhaseEnergy,
    Size,
    TaskFacts,
)
from tpsprune.runs import read_result, result_schema, write_result


def figures(parameters: int) -> ModelFigures:
    latency = Latency(
        batch=64,
        median_seconds=0.002,
        lower_quartile_seconds=0.001,
        upper_quartile_seconds=0.003,
        repeats=20,
    )
    return ModelFigures(
        accuracy=0.9,
        size=Size(parameters=parameters, macs=10 * parameters, bytes=4 * parameters),
        latencies=(latency,),
    )


def phase(name: str, joules: float | None, kind: EnergyClass) -> PhaseEnergy:
    return PhaseEnergy(
        phase=name,
        windows=2,
        seconds=3.0,
        cpu_seconds=2.5,
        joules=joules,
        joules_by_component={} if joules is None else {"cpu": joules},
        energy_class=kind,
    )


def outcome() -> Outcome:
    return Outcome(
        name="mnist",
        seed=0,
        device="cpu",
        machine={"cores": 2, "cpu": "some"},
        task=TaskFacts(input_kind="image", input_shape=(1, 28, 28), classes=10),
        dense=figures(1000),
        ticket=figures(250),
        cut_validation_accuracy=0.85,
        groups=(GroupChange(group="conv1", width_before=32, width_after=8, effective_rank=7.6),),
        left_alone=(LeftAlone(name="fc", reason="classes"),),
        drawn=Decision(kind="draw", act=True, step=100, epoch=2.0, rule="calm", reason="calm for 3 readings"),
        stopped=Decision(kind="stop", act=True, step=300, epoch=6.0, rule="budget", reason="6 epochs"),
        epochs={"train": 2.0, "retrain": 4.0},
        energy=(phase("train", 10.0, EnergyClass.MIXED), phase("prune", None, EnergyClass.NONE)),
        method=EnergyMethod(meter="codecarbon", scope="machine", classes={"cpu": EnergyClass.MODELLED}),
        total=Cost(joules=None, seconds=6.0, cpu_seconds=5.0),
        projected_dense=Cost(joules=30.0, seconds=9.0, cpu_seconds=7.5),
        overhead={"signals_share": 0.01, "tps_share": None},
        attempts=1,
        notes=("a note",),
        versions={"torch": "2.13"},
    )


def plain() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(outcome().to_json()))
    return raw


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(result_schema())


def test_an_outcome_fits_the_schema_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, outcome().to_json())
    assert read_result(path) == plain()
    assert list(read_result(path)) == list(outcome().to_json())


def places(raw: dict[str, Any], outer: str = "") -> Iterator[str]:
    for key, value in raw.items():
        yield outer + key
        if isinstance(value, dict):
            yield from places(value, f"{outer}{key}.")


OPEN = {
    *("machine", "epochs", "energy", "method.classes", "method.details", "overhead", "versions"),
    *("dense.latency_seconds", "ticket.latency_seconds"),
    *("energy.train.joules_by_component", "energy.prune.joules_by_component"),
}
OPTIONAL = {f"task.{name}" for name in ("vocabulary", "cyclic", "parts", "loss", "quality")}
REQUIRED = [
    place
    for place in places(outcome().to_json())
    if place.rpartition(".")[0] not in OPEN and place not in OPTIONAL
]


def with_change(place: str, value: Any = ...) -> dict[str, Any]:
    raw = copy.deepcopy(plain())
    *path, last = place.split(".")
    inner = raw
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return raw


@pytest.mark.parametrize("place", REQUIRED)
def test_a_result_without_a_required_field_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(with_change(place)))
    *outer, last = place.split(".")
    words = ".*".join([*outer, f"'{last}' is a required property"])
    with pytest.raises(RunFolderError, match=words):
        read_result(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("dense.accuracy", 1.5),
        ("ticket.macs", -1),
        ("ticket.parameters", 2.5),
        ("ticket.latency_seconds.batch-64.median", -0.1),
        ("dense.latency_seconds.half", {}),
        ("energy.train.class", "guessed"),
        ("energy.train.seconds", None),
        ("total.joules", -1.0),
        ("drawn_at.step", None),
        ("projected_dense.class", "measured"),
        ("surprise", 1),
    ],
)
def test_a_result_with_a_wrong_value_is_refused_with_its_place(
    tmp_path: Path, place: str, value: Any
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(with_change(place, value)))
    with pytest.raises(RunFolderError, match=place.split(".", maxsplit=1)[0]):
        read_result(path)
    with pytest.raises(ValueError, match="does not fit its schema"):
        write_result(tmp_path / "other.json", with_change(place, value))
    assert not (tmp_path / "other.json").exists()


def test_joules_that_are_not_known_are_null(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", plain())
    assert read_result(tmp_path / "result.json")["energy"]["prune"]["joules"] is None


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(with_change("schema", "tpsprune.result/2")))
    with pytest.raises(RunFolderError, match=r"newer tpsprune: it is tpsprune.result/2, this one reads .*/1"):
        read_result(path)


@pytest.mark.parametrize("content", ["[]", "3", '{"schema": "somebody.elses/1"}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RunFolderError, match="is not a result this tpsprune can read"):
        read_result(path)
