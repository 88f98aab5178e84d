"""``pipeline.family``: sizes measured beside the dense model, written whole, refused by name."""

from __future__ import annotations

import json
import shutil
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
from tpsprune.errors import ArtifactError, PruneError, RunFolderError
from tpsprune.pipeline.family_folder import FamilyFolder
from tpsprune.recipe.prune import Macs, Params
from tpsprune.recipe.within import read_within
from tpsprune.records import (
    FamilyDrawn,
    FamilyFinished,
    FamilyMember,
    FamilyResult,
    Note,
    PhaseStarted,
    Sized,
    load,
)
from tpsprune.runs import Journal, RunFolder

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
        "state",
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


def test_a_further_size_takes_no_second_look_and_lies_between_the_others(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    kept = (out / "0.7" / "ticket.safetensors").read_bytes()

    def look(*_: Any, **__: Any) -> Any:
        raise AssertionError("a second look")

    monkeypatch.setattr("tpsprune.pruning.planning.collect_statistics", look)
    monkeypatch.setattr(import_module("tpsprune.pipeline.family"), "_rival", lambda *_: 0.5)
    events = draw(trained, out, sizes=[Macs(0.5), Macs(0.7)])
    result = events[-1].family
    assert [each.size for each in result.members] == [0.7, 0.5, 0.3]
    assert (out / "0.7" / "ticket.safetensors").read_bytes() == kept
    for group in result.groups:
        assert set(group.kept_by) <= {0, 1, 2, 3}
    plans = [json.loads((out / size / "plan.json").read_text())["groups"] for size in ("0.7", "0.5", "0.3")]
    for groups in zip(*plans, strict=True):
        large, middle, small = (set(each["kept"]) for each in groups)
        assert small <= middle <= large
    before, after = family[0][-1].family, result
    assert after.energy["prune"].windows > before.energy["prune"].windows
    assert after.total.seconds > before.total.seconds
    with pytest.raises(ArtifactError, match="has these sizes already"):
        draw(trained, out, sizes=[Macs(0.3)])


def test_a_further_size_alone_is_the_size_drawn_with_the_others(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    draw(trained, out, sizes=[Macs(0.7)])
    draw(trained, out, sizes=[Macs(0.3)])
    for size in (0.7, 0.3):
        first, second = (tpsprune.load(place, size=size).state_dict() for place in (family[1], out))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("units", ["magnitude", "taylor", "random", "pivoted-cholesky"])
def test_a_family_of_any_choice_of_units_is_drawn(units: str, trained: RunFolder, tmp_path: Path) -> None:
    recipe = make_small("prune.repair_steps=0", f"prune.units='{units}'")
    result = list(pipeline.family(recipe, trained.path, SIZES, tmp_path / "sizes", device="cpu"))[-1].family
    assert len(result.members) == 2


def test_limits_hold_for_sizes_that_a_killed_command_drew(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FamilyFolder, "write_result", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(trained, tmp_path / "sizes", "parameters<=1")
    result = draw(trained, tmp_path / "sizes", "parameters<=1")[-1].family
    assert all(each.refused for each in result.members)


def test_a_kill_between_a_size_and_its_line_costs_that_size_alone(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = Journal.append, 0

    def killed(self: Journal, record: object) -> None:
        nonlocal seen
        seen += isinstance(record, FamilyDrawn)
        if isinstance(record, FamilyDrawn) and seen == 2:
            raise KeyboardInterrupt
        own(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(trained, tmp_path / "sizes")
    assert (tmp_path / "sizes" / "0.3").is_dir()
    result = draw(trained, tmp_path / "sizes")[-1].family
    assert [each.size for each in result.members] == [0.7, 0.3]


def test_without_its_look_a_family_goes_on_nested_and_keeps_its_books(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    (out / "state" / "look.safetensors").unlink()
    (out / "family.json").unlink()
    result = draw(trained, out)[-1].family
    assert [each.size for each in result.members] == [0.7, 0.3]
    result = draw(trained, out, sizes=[Macs(0.5)])[-1].family
    plans = [json.loads((out / size / "plan.json").read_text())["groups"] for size in ("0.7", "0.5", "0.3")]
    for groups in zip(*plans, strict=True):
        large, middle, small = (len(each["kept"]) for each in groups)
        assert small <= middle <= large
    assert result.total.seconds > family[0][-1].family.total.seconds


def test_a_second_command_leaves_the_first_ones_folder_alone(trained: RunFolder, tmp_path: Path) -> None:
    steps = pipeline.family(make_small("prune.repair_steps=4"), trained.path, SIZES, tmp_path / "sizes")
    for event in steps:
        if isinstance(event, PhaseStarted):
            break
    (tmp_path / "sizes" / "state" / "look.safetensors").unlink()
    with pytest.raises(RunFolderError, match="in use"):
        draw(trained, tmp_path / "sizes", sizes=[Macs(0.5)])
    assert (tmp_path / "sizes" / "state" / "job.json").is_file()
    steps.close()  # type: ignore[attr-defined]


def test_sizes_of_one_name_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"0\.3333333 and 0\.3333334 are one to six digits"):
        draw(trained, tmp_path / "sizes", sizes=[Macs(0.3333333), Macs(0.3333334)])
    assert not (tmp_path / "sizes").exists()


def test_an_attempt_that_came_to_nothing_is_charged(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PruneError("out of reach")

    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    before = len((out / "state" / "energy.jsonl").read_text().splitlines())
    monkeypatch.setattr("tpsprune.pruning.plan_sizes", refused)
    with pytest.raises(PruneError, match="out of reach"):
        draw(trained, out, sizes=[Macs(0.5)])
    assert len((out / "state" / "energy.jsonl").read_text().splitlines()) > before


@pytest.mark.parametrize("size", ["0.7", "0.3"])
@pytest.mark.parametrize("written", [True, False])
def test_a_killed_family_goes_on_from_the_sizes_on_disk(
    size: str,
    written: bool,
    trained: RunFolder,
    family: tuple[list[Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = FamilyFolder.write_size

    def killed(self: FamilyFolder, share: float, *more: Any) -> None:
        if written or f"{share:g}" != size:
            own(self, share, *more)
        if f"{share:g}" == size:
            raise KeyboardInterrupt

    out = tmp_path / "small"
    monkeypatch.setattr(FamilyFolder, "write_size", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(trained, out)
    assert not (out / "family.json").exists()
    drawn: list[float] = []
    monkeypatch.setattr(FamilyFolder, "write_size", lambda self, *a: (drawn.append(a[0]), own(self, *a))[1])
    result = draw(trained, out)[-1].family
    assert drawn == [each for each in (0.7, 0.3) if not written or each < float(size)][-len(drawn) :]
    assert len(drawn) == (size == "0.7") + (not written)
    whole = family[0][-1].family
    assert [each.figures.accuracy for each in result.members] == [
        each.figures.accuracy for each in whole.members
    ]
    assert (result.groups, [each.notes for each in result.members]) == (
        whole.groups,
        [each.notes for each in whole.members],
    )
    for each in (0.7, 0.3):
        first, second = (tpsprune.load(place, size=each).state_dict() for place in (family[1], out))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_refused_size_may_be_asked_for_again_and_others_stay(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    # Limits are of what is drawn now: the sizes that are there are not measured against them.
    result = draw(trained, out, "parameters<=1", sizes=[Macs(0.5)])[-1].family
    assert [(each.size, bool(each.refused)) for each in result.members] == [
        (0.7, False),
        (0.5, True),
        (0.3, False),
    ]
    assert sorted(each.name for each in out.iterdir() if each.name[0] == "0") == ["0.3", "0.7"]
    result = draw(trained, out, sizes=[Macs(0.6)])[-1].family
    assert [each.size for each in result.members] == [0.7, 0.6, 0.5, 0.3]
    result = draw(trained, out, sizes=[Macs(0.5)])[-1].family
    assert not any(each.refused for each in result.members)
    assert len(result.members) == 4


def test_a_family_of_something_else_is_left_alone(
    trained: RunFolder, family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=r"a family of other sizes \(--by macs there, params here\)"):
        draw(trained, out, sizes=[Params(0.5)])
    recipe = make_small("prune.repair_steps=4", "prune.round_to=1")
    words = r'a family of other recipe \(round_to = "auto" there, round_to = 1 here\)'
    with pytest.raises(ArtifactError, match=words):
        list(pipeline.family(recipe, trained.path, [Macs(0.5)], out, device="cpu"))
    with pytest.raises(ArtifactError, match="a family of other weights"):
        list(pipeline.family(make_small("prune.repair_steps=4"), out / "0.7", [Macs(0.5)], out, device="cpu"))
    (out / "state" / "look.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"look\.safetensors"):
        draw(trained, out, sizes=[Macs(0.5)])
    (out / "state" / "look.safetensors").write_bytes(before[out / "state" / "look.safetensors"])
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    books = out / "state" / "energy.jsonl"  # An attempt is charged, whatever came of it.
    assert after.pop(books).startswith(before.pop(books))
    assert before == after


def test_limits_of_accuracy_are_held_on_the_validation_split(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = import_module("tpsprune.pipeline.family")
    own = place._figures

    def worse(*given: Any) -> Any:
        return replace(own(*given), accuracy=0.0)

    monkeypatch.setattr(place, "_figures", worse)
    result = draw(trained, tmp_path / "family", "accuracy>=-100pt", "accuracy>=0.01")[-1].family
    assert not any(each.refused for each in result.members)
    assert all(each.validation_accuracy > 0.01 for each in result.members)


def test_the_largest_size_within_limits_leaves_with_a_card_of_its_figures(
    family: tuple[list[Any], Path], tmp_path: Path
) -> None:
    result, out = family[0][-1].family, family[1]
    larger, smaller = result.members
    limit = read_within(f"size<={smaller.figures.bytes}B", "--pick")
    exported = pipeline.export(out, tmp_path / "small", ["safetensors", "torch-export"], pick=[limit])
    assert exported.size == smaller.size
    ours, theirs = tpsprune.load(tmp_path / "small"), tpsprune.load(out, size=0.3)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    text = (tmp_path / "small" / "README.md").read_text()
    assert f"{smaller.figures.accuracy:.4f}" in text
    assert "the energy is that of the whole family" in text
    assert "end of the run" not in text
    assert "at epoch" not in text
    exported = pipeline.export(out, tmp_path / "large", pick=[read_within("accuracy>=-100pt")])
    assert exported.size == larger.size
    with pytest.raises(
        ArtifactError, match=r"no size is within: the smallest, 0\.3, breaks size<=1B \(it has .*B\)"
    ):
        pipeline.export(out, tmp_path / "none", pick=[read_within("size<=1B")])
    with pytest.raises(ArtifactError, match=r"is a family: say which of its sizes \(0\.7, 0\.3\)"):
        pipeline.export(out, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_size_is_exported_by_its_folder_and_has_nothing_to_pick_from(
    family: tuple[list[Any], Path], trained: RunFolder, tmp_path: Path
) -> None:
    half = family[1] / "0.7"
    exported = pipeline.export(half, tmp_path / "half", ["torch-export"])
    assert exported.size is None
    text = (tmp_path / "half" / "README.md").read_text()
    assert "pruned by tpsprune: the ticket." in text
    assert all(note in text for note in family[0][-1].family.members[0].notes)
    assert "at epoch" not in text
    for place in (half, trained.path):
        with pytest.raises(ArtifactError, match="is no family: there is one ticket"):
            pipeline.export(place, tmp_path / "none", pick=[read_within("size<=1MB")])


def test_an_unfinished_family_is_not_exported(family: tuple[list[Any], Path], tmp_path: Path) -> None:
    out = tmp_path / "grown"
    shutil.copytree(family[1], out)
    (out / "family.json").unlink()
    with pytest.raises(ArtifactError, match="a family that is not finished: give its command again"):
        pipeline.export(out, tmp_path / "none", pick=[read_within("size<=1MB")])


def test_a_size_that_another_beats_in_both_is_dominated(family: tuple[list[Any], Path]) -> None:
    result: FamilyResult = family[0][-1].family

    def member(size: float, accuracy: float, macs: int) -> FamilyMember:
        return FamilyMember(size=size, figures=replace(result.dense.figures, accuracy=accuracy, macs=macs))

    best, beaten, small = member(0.5, 0.9, 50), member(0.75, 0.9, 75), member(0.25, 0.8, 25)
    found = replace(result, dense=member(1.0, 0.95, 100), members=(beaten, best, small))
    assert [found.dominated(each) for each in found.members] == [True, False, False]
    assert not replace(found, members=(beaten, replace(best, refused="x"))).dominated(beaten)
