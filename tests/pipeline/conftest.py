"""A whole run small enough for a test: real digits, a narrow CNN, three epochs, the fake meter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tpsprune import recipe
from tpsprune.recipe import Recipe

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
[energy]
meter = "fake"
"""


@pytest.fixture
def small() -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        return recipe.parse(SMALL, "small.toml", overrides)

    return make
