"""One training and its cuts beside a training of every size: what runs, what it is charged, what is left."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import pytest

from tests.pipeline.conftest import SMALL
from tests.pipeline.test_compare import NO_PLAN, QUICK, measured, steps
from tpsprune import pipeline, recipe
from tpsprune.claims import assess
from tpsprune.errors import RecipeError, RunFolderError
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.pipeline.equal_cost import TicketFacts, fit_epochs, windows_to_match
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.compare import SIZED
from tpsprune.recipe.prune import Macs
from tpsprune.records import ArmBegun, ArmEnded, Comparing, ComparisonRecord, EnergyClass, Progress, Standing
from tpsprune.runs import ComparisonFolder, RunFolder, read_json

ARMS = ("dense-each", *(arm for arm in SIZED if arm != "dense-each"))
SIZES = (0.75, 0.5)


def quick(*overrides: str) -> Recipe:
    short = ("compare.sizes=[0.5, 0.75]", "prune.repair_steps=3", "train.epochs=1", "stop.draw.epoch=0.5")
    return recipe.parse(SMALL, "small.toml", (*QUICK, *short, *overrides))


def compared(folder: Path, arms: tuple[str, ...] = ARMS, *overrides: str) -> list[Comparing]:
    return list(
        pipeline.compare(quick(*overrides), ComparisonFolder(folder), arms=arms, pairs=1, device="cpu")
    )


@pytest.fixture(scope="session")
def one_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sized")
    compared(folder)
    return folder


@pytest.fixture
def copied(one_pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one_pair, tmp_path / "copied"))


@pytest.fixture
def found(one_pair: Path) -> ComparisonRecord:
    return measured(one_pair)


def test_every_arm_leaves_a_model_of_each_size_and_all_have_the_familys_shapes(
    found: ComparisonRecord,
) -> None:
    runs = {run.arm: run for run in found.runs}
    assert next(run.arm for run in found.runs) == "family", "its shapes are needed first"
    assert not any(run.failure for run in runs.values())
    shapes = [[(each.size, each.macs, each.parameters) for each in runs[arm].sizes] for arm in ARMS]
    assert shapes[0] == shapes[1] == shapes[2]
    assert tuple(size for size, _, _ in shapes[0]) == SIZES, "the largest first, however they were given"
    assert shapes[0][0][1] > shapes[0][1][1]
    for run in runs.values():
        assert run.accuracy == pytest.approx(sum(each.accuracy for each in run.sizes) / len(SIZES))
        assert (run.macs, run.parameters, run.history) == (None, None, ())
    assert (runs["family"].given, runs["dense-each"].given) == (
        "",
        "the shape of each size that the family's run found",
    )


def test_the_family_is_charged_one_training_and_every_phase_of_its_cuts(found: ComparisonRecord) -> None:
    runs = {run.arm: run for run in found.runs}
    family, each = (
        {phase: sum(window.phase == phase for window in runs[arm].windows) for phase in PHASES}
        for arm in ("family", "dense-each")
    )
    assert all(family[phase] for phase in PHASES)
    assert family["setup"] == 1
    assert (runs["family"].epochs, runs["dense-each"].epochs) == (1.0, 2.0)
    assert each["setup"] == len(SIZES)
    assert (each["prune"], each["repair"]) == (0, 0), "finding the shapes is charged to no opponent"


PHASES = ("setup", "train", "evaluate", "prune", "repair", "benchmark")


def test_nested_sizes_and_their_plans_are_in_folders_of_their_own(
    one_pair: Path, found: ComparisonRecord
) -> None:
    family = found.run_of("family", 0)
    assert family is not None
    plans = [Plan.from_json(read_json(RunFolder(one_pair / each.folder).plan)) for each in family.sizes]
    for large, small in zip(plans[0].groups, plans[1].groups, strict=True):
        assert set(small.kept) <= set(large.kept)
    assert len({each.weights_sha256 for run in found.runs for each in run.sizes}) == len(ARMS) * len(SIZES)


def test_the_shorter_trainings_cost_together_what_the_family_did(found: ComparisonRecord) -> None:
    family, short = found.run_of("family", 0), found.run_of("each-joules", 0)
    assert family is not None
    assert short is not None
    spans = [span.arm for span in found.steps]
    assert spans == ["each-joules/0.75"] * 2 + ["each-joules/0.5"] * 2, "there and back"
    cost = sum(window.total_joules or 0.0 for window in windows_to_match(family.windows))
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=1.0, macs_share=0.5, cost=cost)
    alone = fit_epochs("each-joules", found.steps, facts, steps_per_epoch=16)
    assert short.epochs == pytest.approx(len(SIZES) * alone)


def test_a_step_of_several_shapes_is_one_of_each() -> None:
    spans = [
        steps(f"each-joules/{size}", 10, joules, 1.0, EnergyClass.MEASURED)
        for size, joules in ((0.75, 30.0), (0.75, 50.0), (0.5, 20.0))
    ]
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=9.0, macs_share=0.5, cost=300.0)
    # 4 J and 2 J: 50 steps of both, ten an epoch.
    assert fit_epochs("each-joules", spans, facts, 10) == 5.0


def test_no_inference_is_metered_where_the_arms_leave_the_same_shapes(found: ComparisonRecord) -> None:
    assert found.design.inference_batches == found.inference == ()
    assert assess(found).complete


def test_a_comparison_that_is_finished_runs_nothing_again(copied: Path) -> None:
    before = (copied / "journal.jsonl").read_bytes()
    assert compared(copied) == []
    assert (copied / "journal.jsonl").read_bytes() == before


def test_one_broken_off_in_its_second_training_goes_on_with_that_arm(tmp_path: Path) -> None:
    folder, killed = tmp_path / "left", tmp_path / "killed"
    two = ARMS[:2]
    events = pipeline.compare(quick(), ComparisonFolder(folder), arms=two, pairs=1, device="cpu")
    assert next(event for event in events if isinstance(event, ArmBegun) and event.number == 2)
    in_second = (event for event in events if isinstance(event, Progress) and event.read)
    assert len(list(islice(in_second, len(SIZES)))) == len(SIZES)
    # What lies in the folder is what a kill would leave.
    shutil.copytree(folder, killed)
    events.close()  # type: ignore[attr-defined]
    family = measured(killed).runs
    assert [run.arm for run in family] == ["family"]
    ended = [event.run.arm for event in compared(killed, two) if isinstance(event, ArmEnded)]
    assert ended == ["dense-each"]
    after = measured(killed)
    assert after.runs[0] == family[0]
    (broken,) = [each for each in after.broken_off if each.arm != "warm-up"]
    setups = sum(window.phase == "setup" for window in broken.windows)
    assert setups == len(SIZES), "what both trainings took until then is shown"


def test_other_sizes_are_another_comparison(copied: Path) -> None:
    with pytest.raises(RunFolderError, match=r"the recipe is 'sizes = \[0\.75, 0\.5\]' there"):
        compared(copied, ARMS, "compare.sizes=[0.5, 0.25]")


def test_shapes_that_are_gone_are_missed_before_a_run_that_needs_them(copied: Path) -> None:
    journal = copied / "journal.jsonl"
    lines = journal.read_text().splitlines()
    ended = next(number for number, line in enumerate(lines, 1) if '"kind": "run"' in line)
    journal.write_text("\n".join(lines[:ended]) + "\n")
    for run in (copied / "runs").glob("*-family-*"):
        shutil.rmtree(run)
    with pytest.raises(RunFolderError, match=r"size-1 is missing, and arms of pair 1 need the family in it"):
        compared(copied)


def test_a_family_that_leaves_no_model_leaves_the_others_no_shapes(tmp_path: Path) -> None:
    compared(tmp_path, ARMS[:2], "train.learning_rate=1e30")
    runs = {run.arm: run for run in measured(tmp_path).runs}
    assert "not finite" in runs["family"].failure
    assert runs["dense-each"].failure == "the family's run left no family"
    assert runs["family"].windows
    assert runs["dense-each"].windows == ()


def test_a_size_out_of_reach_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"macs"):
        compared(tmp_path / "out", ARMS, "compare.sizes=[0.5, 0.0001]")
    assert not (tmp_path / "out").exists()


def test_layers_of_low_rank_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prune\.low_rank"):
        compared(tmp_path / "out", ARMS, "prune.low_rank=true")
    assert not (tmp_path / "out").exists()


def test_a_size_twice_is_refused_at_its_place() -> None:
    with pytest.raises(RecipeError, match=r"compare\.sizes: must be shares that differ"):
        quick("compare.sizes=[0.5, 0.5]")


def test_without_sizes_there_are_three_and_the_recipe_that_is_kept_names_them(tmp_path: Path) -> None:
    read = recipe.parse(SMALL, "small.toml", QUICK)
    assert "sizes" not in recipe.dumps(read), "no other run gets another name by it"
    events = pipeline.compare(read, ComparisonFolder(tmp_path), arms=ARMS, pairs=1, device="cpu")
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert "sizes = [0.75, 0.5, 0.25]" in measured(tmp_path).design.recipe_text


def test_the_dense_model_of_the_family_trains_as_the_recipe_says_and_its_target_is_the_least_size() -> None:
    read = quick("prune.rounds=2")
    family = arm_recipe("family", read)
    assert (family.train, family.task, family.watch.signals) == (read.train, read.task, ())
    assert (family.prune.target, family.prune.rounds) == (Macs(0.5), 1)
    each = arm_recipe("dense-each", read)
    assert each.train == read.train
    assert each.seed != read.seed


def test_one_pair_claims_nothing(found: ComparisonRecord) -> None:
    assert assess(found).verdict.standing in {Standing.INSUFFICIENT_RUNS, Standing.INVALID_MEASUREMENT}
    assert assess(found).verdict.arm == "family"
