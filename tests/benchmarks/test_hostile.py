"""A sample of the hostile files: each is read, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hostile import KINDS, Material, run_item
from tests.pipeline.conftest import few_passes  # noqa: F401 -- a quick run

SAMPLE = 200 // len(KINDS) + 1


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material.make(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_read_or_refused_in_words(kind: str, material: Material) -> None:
    found = {seed: run_item(kind, seed, material) for seed in range(SAMPLE)}
    assert {seed: end for seed, end in found.items() if end not in {"read", "refused"}} == {}
    assert "refused" in found.values()


def test_a_reader_that_raises_something_else_is_noticed(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_material: Material, folder: Path, _chance: object) -> str:
        return (folder / "absent").read_text()

    monkeypatch.setitem(KINDS, "recipe", broken)  # type: ignore[arg-type]
    assert run_item("recipe", 0, material).startswith("fault: FileNotFoundError")
