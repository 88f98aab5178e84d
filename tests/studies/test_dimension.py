"""Dimensions made up, and one study small enough to run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.studies import dimension, dimension_run
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.dimension_run import Dimensions, DimensionTrial
from tpsprune.studies.finding import Finding
from tpsprune.studies.setup import Setup
from tpsprune.studies.verdict import Ruling


def setup(seeds: int = 2) -> Setup:
    overrides = ("task.data.modulus=13", "task.model.widths=[16]", "task.model.embedding=8")
    return replace(dimension.setup(recipe.read("modular-addition", overrides), seeds, 30), reading_steps=10)


def trained(share_with: float, share_without: float = 0.5, lost_with: float = 0.1) -> list[Dimensions]:
    found = []
    for trial in dimension.plan(setup(), []).trials:
        assert isinstance(trial, DimensionTrial)
        plain = trial.variant == "none"
        # Seeds differ a little, as seeds do.
        share = (share_without if plain else share_with) * (1 + 0.01 * trial.seed)
        lost = 0.2 if plain else lost_with
        found.append(
            Dimensions(
                trial=trial,
                accuracy=0.9,
                shares={"a": 0.5 * share, "b": 1.5 * share},
                cut_accuracies={"0.5": 0.85, "0.25": 0.9 - lost},
                seconds=1.0,
            )
        )
    return found


@pytest.mark.parametrize(
    ("share", "ruling"), [(0.05, Ruling.CONFIRMED), (0.3, Ruling.REFUTED), (0.0985, Ruling.UNDECIDED)]
)
def test_the_ruling_is_on_trainings_with_tps_alone(share: float, ruling: Ruling) -> None:
    assert dimension.finding(setup(), trained(share), {}).ruling is ruling
    assert dimension.finding(setup(), trained(share, share_without=0.01), {}).ruling is ruling


def test_one_task_can_refute_and_every_task_must_confirm() -> None:
    low = [
        replace(each, shares={"a": 0.05 + 0.001 * each.trial.seed})
        if each.trial.task == dimension.PARITY
        else each
        for each in trained(0.3)
    ]
    assert dimension.finding(setup(), low, {}).ruling is Ruling.REFUTED
    wide = [
        replace(each, shares={"a": 0.09 + 0.01 * each.trial.seed})
        if each.trial.task == dimension.PARITY
        else each
        for each in trained(0.05)
    ]
    assert dimension.finding(setup(), wide, {}).ruling is Ruling.UNDECIDED


def test_what_cuts_cost_less_is_paired_by_seed_and_told_in_points() -> None:
    found = dimension.finding(setup(), trained(0.3, lost_with=0.15), {})
    assert "modular addition `labels` +5.0 points (+5.0 to +5.0)" in found.sentence
    assert "is: modular addition 0.30 (0.30 to 0.31, 8 trainings); digits 0.30" in found.sentence
    assert "Without TPS: modular addition 0.51 " in found.sentence
    assert found.tables[0].rows[0] == ("modular addition, none", "0.900", "0.850", "0.700")
    assert found.tables[1].rows[0] == ("modular addition, none", "a", "0.254")
    assert [quantity.predicted for quantity in found.quantities][:2] == ["", "below 0.1"]


@pytest.fixture(scope="module")
def conducted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Finding]]:
    folder = tmp_path_factory.mktemp("dimension")
    read = recipe.read

    def short(name: str, overrides: tuple[str, ...] = ()) -> recipe.Recipe:
        return read(name, ("train.epochs=2", "task.model.widths=[8, 8]", *overrides))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dimension_run.recipe, "read", short)
        return folder, list(conduct(STUDIES["dimension"], setup(), folder))


def test_the_study_runs_and_its_journal_reads_as_it_was_written(
    conducted: tuple[Path, list[str | Finding]],
) -> None:
    folder, told = conducted
    *lines, found = told
    assert isinstance(found, Finding)
    assert len(lines) == 22
    assert str(lines[0]).startswith("1/22 seed 1 modular addition, none: accuracy ")
    on_disk = json.loads((folder / "dimension.json").read_text())
    for raw in on_disk["trainings"]:
        back = Dimensions.from_json(raw)
        assert json.loads(json.dumps(back.to_json())) == raw
        assert all(0 < share <= 1 for share in back.shares.values())
        assert min(back.cut_accuracies.values()) >= 0
    assert "| d_eff over the width, mean of groups | predicted |" in (folder / "dimension.md").read_text()


def test_every_variant_ends_elsewhere(conducted: tuple[Path, list[str | Finding]]) -> None:
    found = conducted[1][-1]
    assert isinstance(found, Finding)
    shares = {each.trial.arm: each.shares for each in found.trainings if isinstance(each, Dimensions)}
    assert len({tuple(each.values()) for each in shares.values()}) == len(shares), (
        "every variant does something"
    )
