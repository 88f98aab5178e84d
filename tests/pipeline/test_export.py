"""A ticket leaves its run: whole, equal, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tpsprune
from tests.pipeline.test_train import outcome_of, run
from tpsprune import pipeline
from tpsprune.errors import ArtifactError, RunFolderError
from tpsprune.pipeline.bench import set_up
from tpsprune.recipe import Recipe
from tpsprune.runs import RunFolder

Small = Callable[..., Recipe]


def test_an_exported_ticket_loads_without_its_run_and_answers_equally(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small(), tmp_path / "runs"))
    exported = pipeline.export(Path(outcome.folder), tmp_path / "ticket")
    assert exported.largest_difference == 0.0
    assert exported.files == ("manifest.json", "plan.json", "recipe.toml", "ticket.safetensors")
    state = torch.get_rng_state()
    ticket = tpsprune.load(tmp_path / "ticket")
    assert torch.equal(torch.get_rng_state(), state), "loading draws from nobody's dice"
    with set_up(small(), "cpu") as bench:
        assert bench.score(ticket, bench.dataset.test).accuracy == outcome.ticket.accuracy


def test_a_run_folder_without_its_recipe_is_not_exported(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small(), tmp_path / "runs"))
    folder = RunFolder(Path(outcome.folder))
    for content, words in (
        (None, r"cannot read .*recipe.toml: No such file"),
        (b"\xff", r"is not UTF-8 text"),
    ):
        folder.recipe.unlink()
        if content is not None:
            folder.recipe.write_bytes(content)
        with pytest.raises(RunFolderError, match=words):
            pipeline.export(folder.path, tmp_path / "ticket")
        folder.recipe.write_bytes(content or b"")


def test_a_ticket_that_does_not_fit_its_plan_is_not_exported(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small(), tmp_path / "runs"))
    folder = RunFolder(Path(outcome.folder))
    folder.ticket.write_bytes(folder.dense.read_bytes())
    with pytest.raises(
        ArtifactError, match=r"recipe, plan and tensors do not make one model: .*size mismatch"
    ):
        pipeline.export(folder.path, tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()


def test_an_unfinished_run_is_not_exported(small: Small, tmp_path: Path) -> None:
    events = pipeline.train(small(), tmp_path / "runs", device="cpu")
    next(events)
    events.close()  # type: ignore[attr-defined]
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(RunFolderError, match=r"is not finished: go on with .*--resume"):
        pipeline.export(folder, tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()
