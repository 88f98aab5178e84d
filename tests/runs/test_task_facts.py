"""What a task is goes to JSON and back, and what older versions wrote is still read."""

from __future__ import annotations

import json

import pytest

from tpsprune.records import InputPart, TaskFacts

FACTS = [
    TaskFacts(input_kind="image", input_shape=(3, 8, 8), classes=10),
    TaskFacts(input_kind="tokens", input_shape=(64,), classes=256, vocabulary=256, loss="next-token"),
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
    assert TaskFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_facts_of_before_there_were_other_tasks_are_those_of_classes() -> None:
    old = {"input_kind": "vector", "input_shape": [5], "classes": 3, "vocabulary": None, "cyclic": False}
    assert TaskFacts.from_json(old) == TaskFacts(input_kind="vector", input_shape=(5,), classes=3)
    assert TaskFacts.from_json(old).quality == "accuracy"


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
    assert facts.to_json()["quality"] == facts.quality == quality
    assert facts.loss_unit == unit
