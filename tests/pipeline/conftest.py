"""A whole run small enough for a test: real digits, a narrow CNN, three epochs, the fake meter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tpsprune import pipeline, recipe
from tpsprune.recipe import Recipe
from tpsprune.records import Finished
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
probe_items = 64
h1_points = 16
edge_window = 4
every_steps = 10
[stop.draw]
rule = "epoch"
epoch = 2.0
[prune]
probe_items = 256
[energy]
meter = "fake"
"""


@pytest.fixture
def small() -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        return recipe.parse(SMALL, "small.toml", overrides)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained_small(tmp_path_factory.mktemp("trained"))


def trained_small(out: Path) -> RunFolder:
    """Run the small recipe to its end: its dense model is somebody's trained model to other tests."""
    *_, last = pipeline.train(recipe.parse(SMALL, "small.toml"), out, device="cpu")
    assert isinstance(last, Finished)
    return RunFolder(Path(last.outcome.folder))
