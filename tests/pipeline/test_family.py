"""``pipeline.family``: sizes measured beside the dense model, written whole, refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tpsprune
from tests.pipeline.conftest import make_small
from tpsprune import pipeline
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.recipe.prune import Macs
from tpsprune.recipe.within import read_within
from tpsprune.records import FamilyFinished, FamilyMember, FamilyResult, Note, Sized, load
from tpsprune.runs import RunFolder

SIZES = [Macs(0.3), Macs(0.7)]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Time and meter by the fewest passes: no figure of a clock is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        place = import_module("tpsprune.pipeline.family")
        patch.setattr(place, "LATENCY_SECONDS", 0.0)
        patch.setattr(place, "INFERENCE_SECONDS", 0.01)
        yield


def draw(trained: RunFolder, out: Path, *within: str, **more: Any) -> list[Any]:
    recipe = make_small("prune.repair_steps=4")
    limits = [read_within(each) for each in within]
    sizes = more.pop("sizes", SIZES)
    return list(pipeline.family(recipe, trained.path, sizes, out, within=limits, device="cpu", **more))


@pytest.fixture(scope="module")
def family(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    out = tmp_path_factory.mktemp("family") / "small"
    return draw(trained, out), out


def test_all_sizes_are_measured_and_written_whole(family: tuple[list[Any], Path]) -> None:
    events, out = family
    assert isinstance(events[-1], FamilyFinished)
    result = events[-1].family
    assert result == load(FamilyResult, json.loads((out / "family.json").read_text()))
    assert sorted(each.name for each in out.iterdir()) == [
        "0.3",
        "0.7",
        "README.md",
        "family.json",
        "family.png",
    ]
    assert [each.size for each in result.members] == [0.7, 0.3]
    assert [event.number for event in events if isinstance(event, Sized)] == [1, 2]
    for each in result.members:
        assert each.figures.macs <= each.size * result.dense.figures.macs
        ticket = tpsprune.load(out, size=each.size)
        assert sum(part.numel() for part in ticket.parameters()) == each.figures.parameters
        assert each.rival_accuracy is not None
        assert each.joules_per_answer is not None
        assert not each.refused
    assert set(result.energy) >= {"setup", "prune", "repair", "evaluate", "benchmark"}
    assert (out / "family.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_are_nested_and_the_file_says_which_keeps_what(family: tuple[list[Any], Path]) -> None:
    events, out = family
    plans = [json.loads((out / size / "plan.json").read_text()) for size in ("0.7", "0.3")]
    for group, *planned in zip(events[-1].family.groups, *(each["groups"] for each in plans), strict=True):
        larger, smaller = (set(each["kept"]) for each in planned)
        assert smaller <= larger
        assert group.kept_by == tuple(
            (unit in larger) + (unit in smaller) for unit in range(len(group.kept_by))
        )


def test_the_page_has_every_size_and_how_one_is_loaded(family: tuple[list[Any], Path]) -> None:
    events, out = family
    text = (out / "README.md").read_text()
    for member in events[-1].family.members:
        assert f"| {member.size:g} | {member.figures.accuracy:.4f} |" in text
    assert 'tpsprune.load("FOLDER", size=0.7)' in text
    assert 'tpsprune.load("FOLDER")' in (out / "0.7" / "README.md").read_text()
    assert "](family.png)" in text


def test_the_same_family_twice_has_the_same_tickets(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    draw(trained, tmp_path / "again")
    first, second = (tpsprune.load(place, size=0.3) for place in (family[1], tmp_path / "again"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_a_size_outside_a_limit_is_measured_and_not_written(trained: RunFolder, tmp_path: Path) -> None:
    events = draw(trained, tmp_path / "family", "parameters<=1k", "accuracy>=-100pt")
    result = events[-1].family
    assert [bool(each.refused) for each in result.members] == [
        each.figures.parameters > 1000 for each in result.members
    ]
    refused = next(each for each in result.members if each.refused)
    assert refused.refused.startswith("parameters<=1k (it has ")
    assert not (tmp_path / "family" / refused.folder).exists()
    assert f"**{refused.size:g} was refused**" in (tmp_path / "family" / "README.md").read_text()
    if all(each.refused for each in result.members):
        assert any(isinstance(event, Note) and "no size is within" in event.text for event in events)


def test_a_folder_that_is_taken_or_a_size_out_of_reach_leaves_nothing(
    trained: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ArtifactError):
        draw(trained, tmp_path / "taken")
    with pytest.raises(PruneError, match="cannot be reached"):
        draw(trained, tmp_path / "new", sizes=[Macs(0.5), Macs(0.0001)])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["taken"]


def test_a_size_that_another_beats_in_both_is_dominated(family: tuple[list[Any], Path]) -> None:
    result: FamilyResult = family[0][-1].family

    def member(size: float, accuracy: float, macs: int) -> FamilyMember:
        return FamilyMember(size=size, figures=replace(result.dense.figures, accuracy=accuracy, macs=macs))

    best, beaten, small = member(0.5, 0.9, 50), member(0.75, 0.9, 75), member(0.25, 0.8, 25)
    found = replace(result, dense=member(1.0, 0.95, 100), members=(beaten, best, small))
    assert [found.dominated(each) for each in found.members] == [True, False, False]
    assert not replace(found, members=(beaten, replace(best, refused="x"))).dominated(beaten)
