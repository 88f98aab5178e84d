"""A record comes back from its JSON, and what is none of its kind is refused with its place."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.report.savings_examples import savings
from tpsprune.claims.window_sums import MEANINGS
from tpsprune.errors import RunFolderError
from tpsprune.records import (
    DOCUMENTS,
    Cost,
    EnergyClass,
    EnergyMethod,
    EnergyReport,
    GroupChange,
    InputPart,
    Latency,
    Milestone,
    ModelFigures,
    PhaseEnergy,
    Projection,
    RunResult,
    TaskFacts,
    Unpruned,
    Window,
    dump,
    json_schema,
    load,
)
from tpsprune.report.savings.json_report import report_json
from tpsprune.runs import energy_report_text, read_energy_report, read_result, to_json_text, write_result


def figures(parameters: int) -> ModelFigures:
    latency = Latency(
        median_seconds=0.002, lower_quartile_seconds=0.001, upper_quartile_seconds=0.003, repeats=20
    )
    return ModelFigures(
        accuracy=0.9,
        parameters=parameters,
        macs=10 * parameters,
        bytes=4 * parameters,
        latency_seconds={"batch-64": latency},
    )


def phase(joules: float | None, kind: EnergyClass) -> PhaseEnergy:
    return PhaseEnergy(
        windows=2,
        seconds=3.0,
        cpu_seconds=2.5,
        joules=joules,
        joules_by_component={} if joules is None else {"cpu": joules},
        energy_class=kind,
    )


def outcome() -> RunResult:
    return RunResult(
        name="mnist",
        seed=0,
        device="cpu",
        machine={"cores": 2, "cpu": "some"},
        task=TaskFacts(input_kind="image", input_shape=(1, 28, 28), classes=10),
        dense=figures(1000),
        ticket=figures(250),
        pruned_validation_accuracy=0.85,
        groups=(GroupChange(group="conv1", width_before=32, width_after=8, effective_rank=7.6),),
        unpruned=(Unpruned(name="fc", reason="classes"),),
        drawn_at=Milestone(step=100, epoch=2.0, rule="calm", reason="calm for 3 readings"),
        stopped_at=Milestone(step=300, epoch=6.0, rule="budget", reason="6 epochs"),
        epochs={"train": 2.0, "retrain": 4.0},
        energy={"train": phase(10.0, EnergyClass.MIXED), "prune": phase(None, EnergyClass.NONE)},
        method=EnergyMethod(meter="codecarbon", scope="machine", classes={"cpu": EnergyClass.MODELLED}),
        total=Cost(joules=None, seconds=6.0, cpu_seconds=5.0),
        projected_dense=Projection(joules=30.0, seconds=9.0, cpu_seconds=7.5),
        overhead={"signals_share": 0.01, "tps_share": None},
        attempts=1,
        notes=("a note",),
        versions={"torch": "2.13"},
    )


def report() -> dict[str, Any]:
    return report_json(savings(), {}, ())


def places(raw: dict[str, Any], outer: str = "") -> Iterator[str]:
    for key, value in raw.items():
        yield outer + key
        if isinstance(value, dict):
            yield from places(value, f"{outer}{key}.")


def with_change(place: str, value: Any = ...) -> dict[str, Any]:
    raw = copy.deepcopy(dump(outcome()))
    *path, last = place.split(".")
    inner = raw
    for key in path:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return raw


OPEN = {
    *("machine", "epochs", "energy", "method.classes", "method.details", "overhead", "versions"),
    *("dense.latency_seconds", "ticket.latency_seconds"),
    *("energy.train.joules_by_component", "energy.prune.joules_by_component"),
}
GIVEN_BY_THE_RECORD = {
    *(f"task.{name}" for name in ("vocabulary", "cyclic", "parts", "loss", "quality")),
    *(f"method.{name}" for name in ("classes", "details", "excluded")),
    *("schema", "macs_share", "parameters_share", "notes", "versions", "projected_dense.class"),
    *("energy.train.valid", "energy.prune.valid"),
}
REQUIRED = [
    place
    for place in places(dump(outcome()))
    if place.rpartition(".")[0] not in OPEN and place not in GIVEN_BY_THE_RECORD
]


def test_a_result_comes_back_and_knows_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, outcome())
    found = read_result(path)
    assert found.folder == str(tmp_path)
    assert dump(found) == dump(outcome()) == json.loads(path.read_text(encoding="utf-8"))
    assert list(dump(found)) == list(json.loads(path.read_text(encoding="utf-8")))
    assert found.energy["prune"].joules is None
    assert (found.drawn.kind, found.drawn.epoch, found.stopped.rule) == ("draw", 2.0, "budget")
    assert (found.macs_share, found.parameters_share) == (0.25, 0.25)


@pytest.mark.parametrize("place", REQUIRED)
def test_a_result_without_a_required_field_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match=f"^{place} is missing$"):
        load(RunResult, with_change(place))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("dense.accuracy", 1.5),
        ("ticket.macs", -1),
        ("ticket.parameters", 2.5),
        ("ticket.latency_seconds.batch-64.median", -0.1),
        ("energy.train.class", "guessed"),
        ("energy.train.seconds", None),
        ("total.joules", -1.0),
        ("drawn_at.step", None),
        ("projected_dense.class", "measured"),
        ("surprise", 1),
        ("task.surprise", 1),
    ],
)
def test_a_result_with_a_wrong_value_is_refused_with_its_place(
    tmp_path: Path, place: str, value: Any
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(with_change(place, value)))
    with pytest.raises(RunFolderError, match=f"is not a result this tpsprune can read: {place} "):
        read_result(path)


def test_a_batch_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dense\.latency_seconds\.half"):
        load(RunResult, with_change("dense.latency_seconds.half", {}))


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attempts"):
        write_result(tmp_path / "result.json", replace(outcome(), attempts=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"result\.json is not there"),
        ("{", "is damaged: line 1"),
        ("[]", "is not a result this tpsprune can read: it must be an object"),
        ("3", "is not a result this tpsprune can read"),
        ('{"schema": "somebody.elses/1"}', "is not a result this tpsprune can read: schema must be"),
        (
            '{"schema": "tpsprune.result/2"}',
            r"newer tpsprune: it is tpsprune.result/2, this one reads tpsprune.result/1; upgrade",
        ),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunFolderError, match=words):
        read_result(tmp_path / "result.json")


def test_a_report_becomes_text_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(energy_report_text(report()), encoding="utf-8")
    assert read_energy_report(path) == json.loads(json.dumps(report()))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw.pop("grid"), "grid is missing"),
        (lambda raw: raw.update(surprise=1), "surprise is not known"),
        (lambda raw: raw["claims"].clear(), "claims"),
        (lambda raw: raw["claims"][0].update(standing="BRILLIANT"), r"claims\.0\.standing must be"),
        (lambda raw: raw["claims"][0].update(energy_class="mixed"), r"claims\.0\.energy_class"),
        (lambda raw: raw["runs"][0].update(grams_co2="some"), r"runs\.0\.grams_co2 must be"),
        (lambda raw: raw["design"].pop("recipe_sha256"), r"design\.recipe_sha256 is missing"),
        (lambda raw: raw["quality"].pop("lost_energy_class"), r"quality\.lost_energy_class is missing"),
        (lambda raw: raw["exports"].update(energy_class=None), r"exports\.energy_class must be"),
        (lambda raw: raw["runs"][0].pop("weights_sha256"), r"runs\.0\.weights_sha256 is missing"),
        (lambda raw: raw["provenance"].update(journal_sha256=""), r"provenance\.journal_sha256"),
        (lambda raw: raw.update(grid="none"), "grid must be"),
    ],
)
def test_what_is_no_report_is_no_text_and_not_read(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    raw = report()
    spoil(raw)
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match=words):
        energy_report_text(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"is not an energy report this tpsprune can read: .*{words}"):
        read_energy_report(path)


@pytest.mark.parametrize("letter", MEANINGS)
def test_every_grade_of_an_assessment_can_be_reported(letter: str) -> None:
    raw = report()
    raw["verdict"]["grade"] = raw["grade"]["letter"] = letter
    assert load(EnergyReport, raw).grade.letter == letter


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for each in schema:
            yield from objects(each)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield schema
        for each in schema.values():
            yield from objects(each)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_names_its_version_and_leaves_nothing_open(name: str) -> None:
    schema = json_schema(DOCUMENTS[name])
    found = list(objects(schema))
    assert (
        schema["$id"]
        == DOCUMENTS[name].SCHEMA
        == schema["properties"]["schema"].get("const", "tpsprune.bundle/2")
    )
    assert len(found) > 3
    assert all(each["additionalProperties"] is False for each in found)
    assert all(each["required"] == list(each["properties"]) for each in found)
    assert "folder" not in schema["properties"]
    assert json.loads(to_json_text(schema)) == schema


FACTS = [
    TaskFacts(
        input_kind="tokens", input_shape=(8,), classes=97, vocabulary=97, cyclic=True, loss="next-token"
    ),
    TaskFacts(
        input_kind="parts",
        input_shape=(),
        classes=4,
        parts=(
            InputPart(name="ids", shape=(5,), dtype="int64", lowest=1, highest=19),
            InputPart(name="numbers", shape=(), dtype="float32"),
        ),
        loss="their_module:loss",
    ),
]


@pytest.mark.parametrize("facts", FACTS)
def test_facts_come_back_as_they_were_written(facts: TaskFacts) -> None:
    assert load(TaskFacts, json.loads(json.dumps(dump(facts)))) == facts


def test_facts_of_before_there_were_other_tasks_are_those_of_classes() -> None:
    old = {"input_kind": "vector", "input_shape": [5], "classes": 3, "vocabulary": None, "cyclic": False}
    assert load(TaskFacts, old) == TaskFacts(input_kind="vector", input_shape=(5,), classes=3)
    assert load(TaskFacts, {**old, "quality": "R²"}).quality == "accuracy"


@pytest.mark.parametrize(
    ("loss", "quality", "unit"),
    [
        ("cross-entropy", "accuracy", "nats"),
        ("bce", "label accuracy", "nats"),
        ("next-token", "next-token accuracy", "nats"),
        ("mse", "R²", ""),
        ("their_module:loss", "quality", ""),
    ],
)
def test_the_quality_is_named_for_readers(loss: str, quality: str, unit: str) -> None:
    facts = TaskFacts(input_kind="vector", input_shape=(5,), classes=3, loss=loss)
    assert dump(facts)["quality"] == facts.quality == quality
    assert facts.loss_unit == unit


def test_the_schemas_are_put_into_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    interface = ModuleType("interface")
    vars(interface)["BuildHookInterface"] = object
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    monkeypatch.setattr(sys, "path", list(sys.path))
    hook = runpy.run_path(str(root / "hatch_build.py"))["SchemaHook"]()
    hook.root, data = str(root), {"force_include": {}}
    hook.initialize("standard", data)
    shipped = {
        place: json.loads(Path(file).read_text("utf-8")) for file, place in data["force_include"].items()
    }
    assert shipped == {
        f"tpsprune/schemas/{name}.schema.json": json_schema(kind) for name, kind in DOCUMENTS.items()
    }


def test_a_window_without_a_phase_is_refused_where_it_is_read_and_not_where_it_is_summed() -> None:
    window = {"phase": "", "index": 0, "attempt": 0, "seconds": 1.0, "cpu_seconds": 1.0, "joules": {}}
    with pytest.raises(ValueError, match=r"phase must have at least 1 character"):
        load(Window, window)
