"""A comparison from its first run to its last: interleaved, journalled, taken up again, and never twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.pipeline.conftest import SMALL, harmful_model
from tpsprune import pipeline, recipe
from tpsprune.claims import assess
from tpsprune.errors import PruneError, RecipeError, RunFolderError, TpspruneError
from tpsprune.pipeline.arms import arm_recipe
from tpsprune.pipeline.equal_cost import OTHER_PHASES, TicketFacts, cost_of, fit_epochs, windows_to_match
from tpsprune.pipeline.workbench import set_up
from tpsprune.pruning import Plan
from tpsprune.recipe import Recipe
from tpsprune.recipe.compare import (
    ARMS,
    LEADERS,
    SHORTER_SCHEDULE,
    SIZED,
    SMALLER_NET,
    TRANSFERRED,
    arms_of,
    order_of,
)
from tpsprune.recipe.schema import rule_faults
from tpsprune.records import (
    ArmBegun,
    ArmEnded,
    ArmRun,
    Comparing,
    ComparisonRecord,
    EnergyClass,
    Note,
    Progress,
    Standing,
    StepSpan,
    Window,
    cpu_seconds_of,
)
from tpsprune.runs import ComparisonFolder, exclusive

QUICK = (
    "train.epochs=2",
    "stop.draw.epoch=1.0",
    "watch.signals=['norm']",
    "prune.calibration_items=64",
    "compare.inference_seconds=0.01",
    "compare.idle_seconds=0.01",
    "energy.fake_window_seconds=10",
)
TWO = ("dense", "ticket")


def quick(*overrides: str) -> Recipe:
    return recipe.parse(SMALL, "small.toml", (*QUICK, *overrides))


def compared(folder: Path, arms: tuple[str, ...] = TWO, pairs: int = 1, *overrides: str) -> list[Comparing]:
    return list(
        pipeline.compare(quick(*overrides), ComparisonFolder(folder), arms=arms, pairs=pairs, device="cpu")
    )


def measured(folder: Path) -> ComparisonRecord:
    return ComparisonFolder(folder).read()[0]


@pytest.fixture(scope="session")
def two_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_pairs")
    compared(folder, TWO, 2)
    return folder


@pytest.fixture
def copied(two_pairs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_pairs, tmp_path / "copied"))


def test_each_pair_has_both_arms_on_one_seed_in_an_order_that_turns_round(two_pairs: Path) -> None:
    runs = measured(two_pairs).runs
    order = [(run.pair, run.arm) for run in runs]
    assert [pair for pair, _ in order] == [0, 0, 1, 1]
    assert order[0][1] == order[3][1] != order[1][1] == order[2][1]
    assert all(run.seed == run.pair for run in runs)
    assert [run.position for run in runs] == sorted(run.position for run in runs)


def test_a_run_holds_what_a_claim_needs(two_pairs: Path) -> None:
    found = measured(two_pairs)
    dense, ticket = (found.run_of(arm, 0) for arm in TWO)
    assert dense is not None
    assert ticket is not None
    assert {window.phase for window in ticket.windows} >= {
        "setup",
        "train",
        "watch",
        "prune",
        "retrain",
        "benchmark",
    }
    assert "prune" not in {window.phase for window in dense.windows}
    assert (dense.epochs, dense.drawn_epoch, ticket.drawn_epoch) == (2.0, None, 1.25)
    assert dense.macs is not None
    assert ticket.macs is not None
    assert ticket.macs < 0.6 * dense.macs
    assert len(dense.weights_sha256) == len(ticket.weights_sha256) == 64
    assert [point.epoch for point in ticket.history] == sorted(point.epoch for point in ticket.history)
    assert ticket.history[-1].joules is not None


def test_idling_and_inference_are_metered_for_every_pair(two_pairs: Path) -> None:
    found = measured(two_pairs)
    assert [span.pair for span in found.idle] == [0, 1]
    cells = {(span.pair, span.arm, span.batch) for span in found.inference}
    assert cells == {(pair, arm, batch) for pair in (0, 1) for arm in TWO for batch in (1, 64)}
    assert all(span.items % span.batch == 0 for span in found.inference)


def test_the_warm_up_is_in_the_journal_and_in_no_claim(two_pairs: Path) -> None:
    found = measured(two_pairs)
    assert [(each.arm, each.pair) for each in found.broken_off] == [("warm-up", None)]
    assert found.broken_off[0].windows
    assert all(run.arm in TWO for run in found.runs)


def test_a_comparison_that_is_finished_runs_nothing_again(copied: Path) -> None:
    before = (copied / "journal.jsonl").read_bytes()
    assert compared(copied, TWO, 2) == []
    assert (copied / "journal.jsonl").read_bytes() == before


def test_a_comparison_broken_off_goes_on_with_the_next_missing_run(tmp_path: Path) -> None:
    folder, killed = tmp_path / "left", tmp_path / "killed"
    events = pipeline.compare(quick(), ComparisonFolder(folder), arms=TWO, pairs=1, device="cpu")
    second = (event for event in events if isinstance(event, ArmBegun) and event.number == 2)
    assert next(second).total == 2
    # What lies in the folder while the second run is under way is what a kill would leave.
    progress = sum(isinstance(event, Progress) and event.read for event in islice(events, 4))
    assert progress
    shutil.copytree(folder, killed)
    events.close()  # type: ignore[attr-defined]
    for left in (folder, killed):
        half = measured(left)
        assert len(half.runs) == 1
        assert half.under_way
        assert not assess(half).complete
        assert assess(half).verdict.standing is Standing.INSUFFICIENT_RUNS
        finished = half.runs[0]
        ended = [event for event in compared(left) if isinstance(event, ArmEnded)]
        assert [event.run.arm for event in ended] == [arm for arm in TWO if arm != finished.arm]
        found = measured(left)
        assert found.runs[0] == finished
        assert found.under_way == ""
        (broken,) = [each for each in found.broken_off if each.arm != "warm-up"]
        assert (broken.arm, broken.why) == (ended[0].run.arm, "")
        assert broken.windows, "what it took until then is shown"
        assert len({run.folder for run in found.runs}) == 2


def test_inference_that_was_broken_off_resumes_with_what_is_missing(copied: Path) -> None:
    journal = copied / "journal.jsonl"
    journal.write_text("\n".join(journal.read_text().splitlines()[:-1]) + "\n")
    before = measured(copied).inference
    compared(copied, TWO, 2)
    after = measured(copied).inference
    assert len(after) == len(before) + 1 == 8
    assert after[:-1] == before


def test_a_comparison_under_way_elsewhere_is_left_alone(copied: Path) -> None:
    with exclusive(copied / "runs" / "lock"), pytest.raises(RunFolderError, match=r"in use.*--out"):
        compared(copied, TWO, 2)


@pytest.mark.parametrize(
    ("arms", "override", "words"),
    [
        (("dense", "ticket"), "train.learning_rate=0.5", r"the recipe is .*learning_rate.*0\.5"),
        (
            ("ticket", "dense"),
            "seed=0",
            r"arms is \['dense', 'ticket'\] there and \['ticket', 'dense'\] here",
        ),
        (("dense", "ticket"), "compare.tolerance=0.5", r"tolerance_share is 0\.01 there and 0\.5 here"),
    ],
)
def test_what_was_fixed_beforehand_cannot_be_changed_afterwards(
    copied: Path, arms: tuple[str, ...], override: str, words: str
) -> None:
    with pytest.raises(RunFolderError, match=words):
        compared(copied, arms, 2, override)


def test_pairs_cannot_be_made_fewer(copied: Path) -> None:
    with pytest.raises(RunFolderError, match=r"2 pairs were fixed, and fewer \(--pairs 1\)"):
        compared(copied, TWO, 1)


def test_pairs_added_after_a_look_count_and_make_claims_stricter(copied: Path) -> None:
    ComparisonFolder(copied).append("pairs", {"pairs": 3})
    found = measured(copied)
    assert (found.pairs_asked, found.looks) == (3, 2)
    assert any("tested more strictly, at 0.025" in sentence for sentence in assess(found).may_not_claim)


def test_fewer_pairs_than_can_claim_are_reported_at_once(tmp_path: Path) -> None:
    events = pipeline.compare(quick(), ComparisonFolder(tmp_path), arms=TWO, pairs=5, device="cpu")
    first = next(events)
    events.close()  # type: ignore[attr-defined]
    assert first == Note("no claim can come of 5 pairs: 6 are the fewest")


def test_code_that_the_run_folders_of_a_comparison_name_is_never_called(copied: Path, tmp_path: Path) -> None:
    journal = ComparisonFolder(copied).journal
    journal.truncate_to(lambda line: line["kind"] != "inference")
    for found in copied.glob("runs/*/*/recipe.toml"):
        found.write_text(recipe.dumps(quick(harmful_model(tmp_path / "harm"))))
    compared(copied, TWO, 2)
    assert len(measured(copied).inference) == 8
    assert not (tmp_path / "harm").exists()


def test_a_model_changed_since_its_run_is_not_metered_in_its_name(copied: Path) -> None:
    journal = copied / "journal.jsonl"
    journal.write_text("\n".join(journal.read_text().splitlines()[:-1]) + "\n")
    for weights in (copied / "runs").glob("*/*/*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunFolderError, match=r"is not what the run of '\w+', seed 1, left"):
        compared(copied, TWO, 2)


def test_a_first_line_that_was_cut_off_is_no_comparison_yet(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"schema": "tpsprune.compar')
    events = pipeline.compare(quick(), ComparisonFolder(tmp_path), arms=TWO, pairs=6, device="cpu")
    assert isinstance(next(events), ArmBegun)
    events.close()  # type: ignore[attr-defined]
    assert measured(tmp_path).pairs_asked == 6


def test_inference_is_in_the_order_of_the_runs_and_turned_round_for_the_next_batch(
    two_pairs: Path,
) -> None:
    found = measured(two_pairs)
    for pair in (0, 1):
        order = [run.arm for run in found.runs if run.pair == pair]
        answered = [(span.batch, span.arm) for span in found.inference if span.pair == pair]
        assert answered == [*((1, arm) for arm in order), *((64, arm) for arm in reversed(order))]


def test_a_run_that_leaves_the_finite_numbers_is_an_outcome_and_arms_handed_its_ticket_fail_with_it(
    tmp_path: Path,
) -> None:
    compared(tmp_path, ("dense", "ticket", "random-ticket"), 1, "train.learning_rate=1e30")
    found = measured(tmp_path)
    runs = {run.arm: run for run in found.runs}
    assert all("not finite" in runs[arm].failure and runs[arm].accuracy is None for arm in TWO)
    assert all(runs[arm].windows for arm in TWO)
    assert runs["random-ticket"].failure == "the ticket's run left no ticket"
    assert runs["random-ticket"].windows == ()
    assert assess(found).complete
    assert found.inference == ()


def test_a_scripted_fault_makes_the_measurement_invalid_and_redo_sets_the_pair_aside(tmp_path: Path) -> None:
    faulty = ("energy.fake_fault='zero'", "energy.fake_fault_window=3", "compare.inference_seconds=0.0")
    compared(tmp_path, TWO, 1, *faulty)
    claim = assess(measured(tmp_path)).verdict
    assert claim.standing is Standing.INVALID_MEASUREMENT
    assert claim.reasons[0].code == "INVALID_WINDOW"
    again = pipeline.compare(
        quick(*faulty), ComparisonFolder(tmp_path), arms=TWO, pairs=1, device="cpu", redo=True
    )
    assert [event.run.arm for event in again if isinstance(event, ArmEnded)]
    found = measured(tmp_path)
    aside = [each for each in found.broken_off if each.why.startswith("set aside")]
    assert {each.arm for each in aside} == set(TWO)
    assert len(found.runs) == 2


@pytest.fixture(scope="session")
def many_arms(tmp_path_factory: pytest.TempPathFactory) -> ComparisonRecord:
    folder = tmp_path_factory.mktemp("many_arms")
    others = ("ticket-without-tps", *SIZED, *TRANSFERRED)
    arms = tuple(arm for arm in ARMS if arm not in others)
    compared(folder, arms, 1, "compare.inference_seconds=0.0")
    return measured(folder)


def test_every_arm_runs_and_leaves_the_model_it_should(many_arms: ComparisonRecord) -> None:
    runs = {run.arm: run for run in many_arms.runs}
    assert not any(run.failure for run in runs.values())
    dense, ticket = runs["dense"], runs["ticket"]
    for arm in ("dense-stopped", "dense-patience"):
        assert runs[arm].macs == dense.macs
    for arm in ("shape-scratch", "random-ticket"):
        assert (runs[arm].macs, runs[arm].parameters) == (ticket.macs, ticket.parameters)
        assert runs[arm].given
    assert runs["early-bird"].macs is not None
    assert dense.macs is not None
    assert runs["early-bird"].macs < 0.6 * dense.macs
    assert runs["shape-scratch"].epochs == ticket.epochs


def test_opponents_are_the_dense_model_and_smaller_nets_and_cost_what_the_ticket_did(
    many_arms: ComparisonRecord,
) -> None:
    runs = {run.arm: run for run in many_arms.runs}
    dense, ticket = runs["dense"], runs["ticket"]
    assert (runs["dense-joules"].macs, runs["dense-joules"].parameters) == (dense.macs, dense.parameters)
    assert (runs["scratch-joules"].macs, runs["scratch-joules"].parameters) == (
        ticket.macs,
        ticket.parameters,
    )
    assert runs["uniform-joules"].macs <= ticket.macs  # type: ignore[operator]
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=2.0, macs_share=0.5, cost=many_cost(ticket))
    for arm in (*SHORTER_SCHEDULE, *SMALLER_NET):
        spans = [span for span in many_arms.steps if span.arm == arm]
        assert len(spans) == 2, "by turns, there and back"
        assert runs[arm].epochs == pytest.approx(fit_epochs(arm, spans, facts, steps_per_epoch=16))
        # The whole schedule is run: nothing cut it off.
        assert runs[arm].stopped_by == "deadline"


def many_cost(ticket: ArmRun) -> float:
    return sum(window.total_joules or 0.0 for window in ticket.windows if window.phase not in OTHER_PHASES)


NO_PLAN = Plan(target="", groups=(), new_biases=(), versions={}, model=())


def steps(arm: str, steps: int, joules: float, seconds: float, kind: EnergyClass) -> StepSpan:
    window = Window(
        phase="steps",
        index=0,
        attempt=0,
        seconds=seconds,
        cpu_seconds=seconds,
        joules={"cpu": joules},
        classes={"cpu": kind},
        started="2026-01-02T03:04:05Z",
    )
    return StepSpan(arm=arm, seed=0, pair=0, steps=steps, window=window)


@pytest.mark.parametrize(
    ("kind", "cost"), [(EnergyClass.MEASURED, 300.0), (EnergyClass.CONSTANT, 30.0)], ids=str
)
def test_a_schedule_is_as_long_as_the_ticket_was_dear_in_joules_or_where_they_are_assumed_in_seconds(
    kind: EnergyClass, cost: float
) -> None:
    spans = [steps("dense-joules", 10, 40.0, 2.0, kind), steps("dense-joules", 10, 60.0, 8.0, kind)]
    other = steps("scratch-joules", 10, 1.0, 1.0, kind)
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=9.0, macs_share=0.5, cost=cost)
    # 5 J or 0.5 s a step, ten steps an epoch: 60 steps.
    assert fit_epochs("dense-joules", [*spans, other], facts, 10) == 6.0
    assert cost_of(span.window for span in spans) == (100.0 if kind is EnergyClass.MEASURED else 10.0)


def test_a_cost_may_be_counted_in_processor_seconds() -> None:
    span = steps("dense-joules", 10, 40.0, 2.0, EnergyClass.MEASURED)
    busy = replace(span, window=replace(span.window, cpu_seconds=4.0))
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=9.0, macs_share=0.5, cost=8.0)
    assert fit_epochs("dense-joules", [busy], facts, 10, cpu_seconds_of) == 2.0


def test_the_second_compilation_is_charged_to_the_ticket_and_what_every_run_pays_is_not(
    many_arms: ComparisonRecord,
) -> None:
    ticket = next(run for run in many_arms.runs if run.arm == "ticket")
    compiled = [replace(ticket.windows[0], phase="compile") for _ in range(2)]
    cost = windows_to_match((*ticket.windows, *compiled))
    assert len(cost) == len(windows_to_match(ticket.windows)) + 1
    assert not {window.phase for window in windows_to_match(ticket.windows)} & {"setup", "benchmark"}


def test_an_opponent_whose_shape_is_out_of_reach_says_so() -> None:
    facts = TicketFacts(plan=NO_PLAN, widths={}, epochs=9.0, macs_share=0.01, cost=1.0)
    with pytest.raises(PruneError, match="'uniform-joules' has no shape of the ticket's cost"):
        fit_epochs("uniform-joules", [], facts, 10)


def test_an_opponents_schedule_is_compressed_whole_and_a_shape_from_scratch_has_its_own_seed() -> None:
    read = quick()
    shorter = arm_recipe("dense-joules", read, epochs=1.25)
    assert (shorter.train.epochs, shorter.seed, shorter.train.schedule) == (
        1.25,
        read.seed,
        read.train.schedule,
    )
    assert arm_recipe("uniform-joules", read, epochs=2.5).train.epochs == 2.5
    assert arm_recipe("scratch-joules", read, epochs=2.5).seed != read.seed
    assert rule_faults(shorter) == []


def test_all_arms_compute_in_one_layout_which_no_clock_decides() -> None:
    layouts = set()
    facts = TicketFacts(plan=NO_PLAN, widths={"blocks.0": 8}, epochs=2.0, macs_share=0.5, cost=1.0)
    for arm in ARMS:
        with set_up(arm_recipe(arm, quick(), facts), "cpu", prunes=False) as bench:
            layouts.add(bench.execution)
    assert len(layouts) == 1
    assert layouts.pop().channels_last, "the recipe's model is one of convolutions"


def test_early_birds_patience_is_as_long_in_epochs_as_the_recipes() -> None:
    read = recipe.read("digits")
    assert (read.watch.every_epochs, read.stop.end.patience) == (2, 4)  # type: ignore[union-attr]
    early_bird = arm_recipe("early-bird", read)
    assert (early_bird.watch.every_epochs, early_bird.stop.end.patience) == (1, 8)  # type: ignore[union-attr]


def test_the_dense_baseline_pays_for_nothing_that_pruning_needs(many_arms: ComparisonRecord) -> None:
    windows = [window for run in many_arms.runs if run.arm == "dense" for window in run.windows]
    assert {window.phase for window in windows} == {"setup", "train", "evaluate", "watch", "benchmark"}
    assert sum(window.phase == "evaluate" for window in windows) == 1, "nothing is read that changes nothing"


@pytest.mark.parametrize("arm", ARMS)
def test_every_arms_recipe_is_a_sound_recipe(arm: str) -> None:
    read = recipe.parse(SMALL, "small.toml")
    assert rule_faults(arm_recipe(arm, read)) == []
    assert recipe.parse(recipe.dumps(arm_recipe(arm, read)), arm) == arm_recipe(arm, read)


def test_dense_lacks_every_method_of_the_ticket() -> None:
    read = quick()
    dense = arm_recipe("dense", read)
    assert (dense.tps.variant, dense.watch.signals, dense.stop.draw.rule) == ("none", (), "none")
    assert (dense.train, dense.task) == (read.train, read.task)
    assert arm_recipe("ticket", read) is read


def test_arms_that_depend_on_another_come_after_it_and_all_come_once() -> None:
    arms = tuple(ARMS)
    for pair in range(20):
        order = order_of(arms, 0, pair)
        assert sorted(order) == sorted(arms)
        assert all(order.index(arm) > order.index(leader) for arm, leader in LEADERS.items())


def test_of_two_pairs_one_has_the_order_of_the_other_turned_round() -> None:
    for pair in range(0, 20, 2):
        assert order_of(TWO, 0, pair) == order_of(TWO, 0, pair + 1)[::-1]
    assert {order_of(TWO, 0, pair)[0] for pair in range(0, 20, 2)} == set(TWO)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dense,tickt", r"no arm 'tickt' \(did you mean 'ticket'\?\)"),
        ("dense,zebra", r"no arm 'zebra' \(there are: dense, dense-stopped"),
        ("dense", "at least two arms"),
        ("dense,dense", "names 'dense' more than once"),
        ("dense,random-ticket", "'random-ticket' depends on 'ticket'"),
        ("dense-each,each-joules", "'each-joules' depends on 'family'"),
        ("dense,family", "'family' leaves a model of each size, and 'dense' one model"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        arms_of(words)


def test_all_faults_of_a_list_of_arms_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        arms_of("dens,random-ticket,random-ticket")
    assert len(caught.value.faults) == 4


@pytest.mark.parametrize(
    ("arms", "overrides", "words"),
    [
        (("dense", "ticket-without-tps"), (), "trains without TPS already"),
        (
            ("dense", "early-bird"),
            ("task.data.kind='modular'", "task.model.kind='mlp'", "task.model.widths=[16]"),
            "arm 'early-bird': 'bn-l1' needs a batch norm",
        ),
        (
            ("dense", "early-bird"),
            ("stop.end.rule='patience'", "stop.end.monitor='norm'"),
            "arm 'early-bird': stop.end.monitor: 'norm' is not read",
        ),
    ],
)
def test_an_arm_that_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, arms: tuple[str, ...], overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(TpspruneError, match=words):
        compared(tmp_path / "out", arms, 1, *overrides)
    assert not (tmp_path / "out").exists()


def test_a_comparison_with_layers_of_low_rank_is_refused_at_once(tmp_path: Path) -> None:
    read = recipe.parse(SMALL, "small.toml", ("prune.low_rank=true",))
    with pytest.raises(RecipeError, match=r"prune\.low_rank"):
        list(pipeline.compare(read, ComparisonFolder(tmp_path / "c"), arms=("dense", "ticket")))
    assert not (tmp_path / "c").exists()
