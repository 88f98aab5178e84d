"""A whole run small enough for a test: real digits, a narrow CNN, three epochs, the fake meter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tpsprune import pipeline, recipe
from tpsprune.recipe import Recipe
from tpsprune.records import Finished, RunResult
from tpsprune.runs import RunFolder

SMALL = """
name = "small"
[task.data]
kind = "digits"
[task.model]
kind = "cnn"
widths = [12, 16]
[train]
epochs = 4
batch_size = 64
learning_rate = 2e-2
threads = 1
checkpoint_seconds = 0
[watch]
calibration_items = 64
h1_points = 16
edge_window = 4
every_steps = 10
[stop.draw]
rule = "epoch"
epoch = 2.0
[prune]
calibration_items = 256
[energy]
meter = "fake"
"""
Events = list[Any]
Small = Callable[..., Recipe]


def make_small(*overrides: str) -> Recipe:
    return recipe.parse(SMALL, "small.toml", overrides)


def harmful_model(harm: Path) -> str:
    """Return an override by which building the model makes the folder ``harm``."""
    return f"task.model={{kind='custom', factory='os:mkdir', model_args={{path='{harm}'}}}}"


def outcome_of(events: Sequence[object]) -> RunResult:
    assert isinstance(events[-1], Finished)
    return events[-1].outcome


def folder_of(events: Sequence[object]) -> RunFolder:
    return RunFolder(Path(outcome_of(events).folder))


@pytest.fixture(scope="session", autouse=True)
def few_passes() -> Iterator[None]:
    """Time models by their fewest passes: a second of every run saved, where no figure is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tpsprune.pipeline.benchmark"), "LATENCY_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def small() -> Small:
    return make_small


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Events:
    """Return the events of the small recipe's run: for every test that only looks at it."""
    return list(pipeline.train(make_small(), tmp_path_factory.mktemp("trained"), device="cpu"))


@pytest.fixture(scope="session")
def trained(small_run: Events) -> RunFolder:
    return folder_of(small_run)


def trained_small(out: Path) -> RunFolder:
    """Run the small recipe to its end: its dense model is somebody's trained model to other tests."""
    return folder_of(list(pipeline.train(make_small(), out, device="cpu")))
