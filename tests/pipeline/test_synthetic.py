"""``prune.calibration = "synthetic"``: the cut reads no training item, and says what it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.conftest import make_small
from tpsprune import data, pipeline
from tpsprune.errors import RecipeError
from tpsprune.numerics.trees import map_tensors
from tpsprune.recipe.prune import Macs
from tpsprune.records import Note, PhaseStarted, Pruned
from tpsprune.runs import RunFolder

SYNTHETIC = ("prune.calibration='synthetic'", "prune.calibration_items=32", "retrain.epochs=0")


def cut(trained: RunFolder, *more: str) -> list[Any]:
    return list(pipeline.prune_dry(make_small(*SYNTHETIC, *more), trained.path, device="cpu"))


def test_a_cut_is_the_same_whatever_the_training_items_hold(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = cut(trained)
    own = data.load

    def poisoned(*given: Any) -> Any:
        found = own(*given)
        inputs = map_tensors(found.train.inputs, lambda each: torch.full_like(each, 255))
        return replace(found, train=replace(found.train, inputs=inputs))

    monkeypatch.setattr(data, "load", poisoned)
    again = cut(trained)
    (first,), (second,) = ([each for each in found if isinstance(each, Pruned)] for found in (events, again))
    assert first == second
    notes = [each.text for each in events if isinstance(each, Note)]
    assert any("calibrated on 32 items made up" in note and "no data used" in note for note in notes)
    assert [each.title for each in events if isinstance(each, PhaseStarted)] == ["calibration data made up"]


def test_a_repair_that_is_asked_for_reads_the_same_items_alone(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*_: Any, **__: Any) -> Any:
        raise AssertionError("training items are read")

    monkeypatch.setattr("tpsprune.training.shuffled", shuffled)
    notes = [each.text for each in cut(trained, "prune.repair_steps=3") if isinstance(each, Note)]
    assert any("repair" in note for note in notes)


def test_widths_are_checked_and_a_family_is_drawn_without_data(trained: RunFolder, tmp_path: Path) -> None:
    recipe = make_small(*SYNTHETIC)
    checked = pipeline.check(recipe, "cpu", weights=trained.path)
    assert checked.cost_share is not None
    assert checked.cost_share <= 0.5
    sizes = [Macs(0.7), Macs(0.4)]
    result = list(pipeline.family(recipe, trained.path, sizes, tmp_path / "sizes", device="cpu"))[-1].family
    assert all(any("made up" in note for note in each.notes) for each in result.members)


def test_labels_that_are_not_there_are_refused_with_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"prune\.units: 'taylor' reads labels"):
        make_small(*SYNTHETIC, "prune.units='taylor'")
