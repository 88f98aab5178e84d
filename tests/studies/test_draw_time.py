"""Tickets made up, and one study small enough to run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.studies import draw_time, draw_time_run
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.draw_time_run import Drawn, DrawTrial
from tpsprune.studies.finding import Finding
from tpsprune.studies.setup import Setup
from tpsprune.studies.verdict import Ruling


def setup(seeds: int = 2) -> Setup:
    overrides = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")
    small = draw_time.setup(recipe.read("modular-addition", overrides), seeds, 40)
    return replace(small, level=0.06, reading_steps=10)


def made(steps: dict[str, int], *, missing: str = "") -> list[Drawn]:
    """Every training of the plan; a negative number of steps never got there."""
    found = []
    for trial in draw_time.plan(setup(), []).trials:
        assert isinstance(trial, DrawTrial)
        taken = steps.get(trial.moment, 1000)
        found.append(
            Drawn(
                trial=trial,
                drawn_step=None if trial.moment == missing else 300,
                steps=abs(taken) + trial.seed,
                reached=taken > 0,
                accuracy=0.9 + 0.01 * trial.seed,
                macs_share=0.5,
                seconds=1.0,
            )
        )
    return found


@pytest.mark.parametrize(
    ("steps", "ruling"),
    [
        ({"after": 300}, Ruling.CONFIRMED),
        ({"after": 300, "init": -2000}, Ruling.CONFIRMED),
        ({"after": 300, "memorising": 100}, Ruling.REFUTED),
        ({"after": 300, "memorising": -100}, Ruling.UNDECIDED),
        ({"after": -300}, Ruling.UNDECIDED),
    ],
)
def test_the_last_ticket_must_be_faster_than_every_other(steps: dict[str, int], ruling: Ruling) -> None:
    assert draw_time.finding(setup(), made(steps), {}).ruling is ruling


def test_a_moment_that_never_came_decides_nothing() -> None:
    found = draw_time.finding(setup(), made({"after": 300}, missing="transition"), {})
    assert found.ruling is Ruling.UNDECIDED
    assert "transition / after" not in [quantity.name for quantity in found.quantities]
    row = next(row for row in found.tables[0].rows if row[0] == "transition")
    assert row == ("transition", "", "never drawn", "never drawn")


def test_ratios_are_told_with_what_bounds_them() -> None:
    found = draw_time.finding(setup(), made({"after": 500, "dense": -2000}), {})
    assert "dense at least 3.99 (" in found.sentence
    assert "random 2.00 (" in found.sentence
    assert found.tables[1].rows[0][:2] == ("0", "0.9150")


@pytest.fixture(scope="module")
def conducted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Finding]]:
    folder = tmp_path_factory.mktemp("draw")
    read = recipe.read

    def short(name: str, overrides: tuple[str, ...] = ()) -> recipe.Recipe:
        return read(name, ("train.epochs=3", "task.model.widths=[8, 8]", *overrides))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_time_run.recipe, "read", short)
        patch.setattr(draw_time_run, "TRANSITION", 0.06)
        patch.setattr(draw_time_run, "MEMORISED", 0.06)
        patch.setattr(draw_time_run, "AFTER_STEPS", 5)
        return folder, list(conduct(STUDIES["draw-time"], setup(), folder))


def test_the_study_runs_and_its_journal_reads_as_it_was_written(
    conducted: tuple[Path, list[str | Finding]],
) -> None:
    folder, told = conducted
    *lines, found = told
    assert isinstance(found, Finding)
    assert len(lines) == 22
    assert str(lines[0]).startswith("1/22 seed 1 dense: drawn at step 0, then ")
    on_disk = json.loads((folder / "draw-time.json").read_text())
    for raw in on_disk["trainings"]:
        assert json.loads(json.dumps(Drawn.from_json(raw).to_json())) == raw
    assert "| ratio of the steps to the level | predicted |" in (folder / "draw-time.md").read_text()


def test_tickets_are_drawn_in_order_and_cost_half(conducted: tuple[Path, list[str | Finding]]) -> None:
    found = conducted[1][-1]
    assert isinstance(found, Finding)
    drawn = {each.trial.arm: each for each in found.trainings if isinstance(each, Drawn)}
    assert drawn["dense"].macs_share == 1.0
    assert all(each.macs_share <= 0.5 for name, each in drawn.items() if name != "dense")
    assert drawn["init"].drawn_step == 0
    after, transition = drawn["after"].drawn_step, drawn["transition"].drawn_step
    assert (after or 0) > (transition or 0) > 0
    assert (drawn["digits, epoch 1"].drawn_step or 0) * 3 == drawn["digits, epoch 3"].drawn_step
