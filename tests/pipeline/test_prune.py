"""A trained model is pruned without training, benchmarked, resumed, exported, and pruned again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tpsprune
from tests.pipeline.conftest import Events, Small, folder_of, outcome_of
from tpsprune import pipeline, pruning, training
from tpsprune.errors import RecipeError, RunFolderError
from tpsprune.pipeline.workbench import set_up
from tpsprune.pruning import Plan
from tpsprune.pruning.observations import hold_out
from tpsprune.recipe import Recipe
from tpsprune.records import (
    Decided,
    Event,
    Finished,
    Note,
    PhaseEnded,
    PhaseStarted,
    Progress,
    Pruned,
)
from tpsprune.runs import RunFolder, read_json, read_result
from tpsprune.runs.tensors import load_tensors


def run(recipe: Recipe, weights: Path, out: Path, *, resume: bool = False) -> list[Event]:
    return list(pipeline.prune(recipe, weights, out, device="cpu", resume=resume))


@pytest.fixture(scope="module")
def pruned(small: Small, trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Events:
    return run(small(), trained.dense, tmp_path_factory.mktemp("pruned"))


def test_a_trained_model_is_pruned_benchmarked_and_not_trained(pruned: Events, trained: RunFolder) -> None:
    assert [type(event) for event in pruned if not isinstance(event, Note | Progress)] == [
        Decided,
        PhaseStarted,
        PhaseEnded,
        Pruned,
        Decided,
        Finished,
    ]
    outcome = outcome_of(pruned)
    assert outcome.was_given
    assert outcome.projected_dense is None
    assert outcome.macs_share <= 0.5
    assert outcome.dense.accuracy == read_result(trained.result).dense.accuracy
    assert outcome.ticket.accuracy > outcome.dense.accuracy - 0.1
    assert outcome.stopped.reason == "no retraining was requested"
    assert list(outcome.energy) == ["setup", "prune", "evaluate", "repair", "benchmark"]
    assert any("200 steps of repair" in each.text for each in pruned if isinstance(each, Note))


def test_without_repair_the_ticket_is_that_of_the_extraction_bit_for_bit(
    small: Small, trained: RunFolder, tmp_path: Path
) -> None:
    outcome = outcome_of(run(small("prune.repair=false"), trained.dense, tmp_path))
    assert "repair" not in outcome.energy
    with set_up(small(), "cpu") as bench:
        model = bench.new_model()
        model.load_state_dict(load_tensors(trained.dense)[0])
        expected = pruning.extract(model, bench.prune_batches, bench.recipe.prune).ticket.state_dict()
    found, _ = load_tensors(RunFolder(Path(outcome.folder)).ticket)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_folder_reads_back_and_exports(pruned: Events, tmp_path: Path) -> None:
    outcome = outcome_of(pruned)
    assert read_result(Path(outcome.folder) / "result.json") == outcome
    exported = pipeline.export(Path(outcome.folder), tmp_path / "bundle")
    assert exported.largest_difference == 0.0
    ticket = tpsprune.load(tmp_path / "bundle")
    assert sum(each.numel() for each in ticket.parameters()) == outcome.ticket.parameters


def test_a_number_of_epochs_retrains_for_that_long(small: Small, trained: RunFolder, tmp_path: Path) -> None:
    outcome = outcome_of(run(small("retrain.epochs=2"), trained.dense, tmp_path))
    assert outcome.epochs == {"budget": 2.0, "trained": 2.0}
    assert "retrain" in set(outcome.energy)
    assert "repair" not in set(outcome.energy)


def test_items_held_out_are_not_repaired_on(
    small: Small, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("prune.repair_steps=3")
    drawn = []

    def shuffled(inputs: Tensor, items: int, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        drawn.append(inputs)
        return training.loop.shuffled(inputs, items, **options)

    monkeypatch.setattr("tpsprune.training.shuffled", shuffled)
    run(recipe, trained.dense, tmp_path)
    with set_up(recipe, "cpu") as bench:
        held = torch.cat(list(hold_out(bench.prune_places)[1]))
        inputs = bench.dataset.train.inputs
        kept = torch.ones(len(inputs), dtype=torch.bool)
        kept[held] = False
    assert 0 < len(held) < len(inputs)
    assert torch.equal(drawn[0], inputs[kept])


def test_a_rewind_is_refused_for_there_was_no_training(
    small: Small, trained: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"retrain.rewind: 'init' needs the training .*retrain.rewind=none"):
        run(small("retrain.rewind=init"), trained.dense, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_weights_are_another_run(
    small: Small, trained: RunFolder, pruned: Events, tmp_path: Path
) -> None:
    used = folder_of(pruned).path.parent
    with pytest.raises(RunFolderError, match=r"holds a finished run of this recipe"):
        run(small(), trained.dense, used)
    other = tmp_path / "other.pt"
    tensors, _ = load_tensors(trained.dense)
    torch.save({name: tensor * 1.01 for name, tensor in tensors.items()}, other)
    with pytest.raises(RunFolderError, match=r"no run of this recipe"):
        run(small(), other, used, resume=True)


def test_a_ticket_is_pruned_further_under_one_plan_from_the_recipes_model(
    small: Small, trained: RunFolder, tmp_path: Path
) -> None:
    pipeline.export(trained.path, tmp_path / "bundle")
    first = read_result(trained.result).ticket
    outcome = outcome_of(run(small(), tmp_path / "bundle", tmp_path / "runs"))
    assert outcome.dense.macs == first.macs
    assert outcome.dense.accuracy == first.accuracy
    assert outcome.macs_share <= 0.5
    plan = Plan.from_json(read_json(Path(outcome.folder) / "plan.json"))
    with set_up(small(), "cpu") as bench:
        ticket = pruning.replay(bench.new_model(), plan)
    ticket.load_state_dict(load_tensors(Path(outcome.folder) / "ticket.safetensors")[0])


def test_a_dry_run_shows_the_pruning_and_writes_nothing(
    small: Small, trained: RunFolder, pruned: Events
) -> None:
    before = {path: path.read_bytes() for path in trained.path.rglob("*") if path.is_file()}
    (shown,) = (
        event
        for event in pipeline.prune_dry(small(), trained.dense, device="cpu")
        if isinstance(event, Pruned)
    )
    outcome = outcome_of(pruned)
    assert shown.groups == outcome.groups
    assert shown.macs_share == pytest.approx(outcome.macs_share)
    assert shown.validation_accuracy_after == outcome.pruned_validation_accuracy
    assert shown.output_error is not None
    assert 0 < shown.output_error < 1
    assert before == {path: path.read_bytes() for path in trained.path.rglob("*") if path.is_file()}
