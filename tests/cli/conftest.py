"""A command line in a folder of its own, with a recipe small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.pipeline.conftest import SMALL, few_passes, trained_small  # noqa: F401 -- a fixture for all
from tpsprune.cli import main
from tpsprune.runs import RunFolder


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)

    def call(*words: str) -> Result:
        return CliRunner().invoke(main, list(words))

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained_small(tmp_path_factory.mktemp("trained"))
