"""Several cuts on the way to one target: each the same share of what is left, one plan for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.pipeline.conftest import Small, outcome_of
from tpsprune import pipeline, pruning
from tpsprune.pipeline.ticket import joined_changes, round_target, uneven_note
from tpsprune.pipeline.workbench import set_up
from tpsprune.pruning import Plan
from tpsprune.recipe.prune import Latency, Macs, Params, Prune, Tolerance, Widths
from tpsprune.records import GroupChange, Pruned
from tpsprune.runs import RunFolder, read_json
from tpsprune.runs.tensors import load_tensors


def test_every_round_keeps_the_same_share_of_what_is_left() -> None:
    reached = 1.0
    for round_ in (1, 2, 3):
        target = round_target(Macs(0.125), round_, 3, macs_share=reached)
        assert isinstance(target, Macs)
        assert target.macs == pytest.approx(0.5)
        reached *= target.macs
    assert reached == pytest.approx(0.125)


def test_what_a_round_kept_too_much_the_next_make_good() -> None:
    target = round_target(Params(0.25), 2, 2, parameters_share=0.8)
    assert isinstance(target, Params)
    assert target.params * 0.8 == pytest.approx(0.25)


def test_ranks_of_a_layer_are_not_taken_for_widths_of_its_group() -> None:
    first = (GroupChange(group="a", width_before=64, width_after=48),)
    second = (
        GroupChange(group="a", width_before=48, width_after=24),
        GroupChange(group="a", width_before=24, width_after=8, kind="rank"),
    )
    joined = joined_changes(first, second)
    assert [(each.kind, each.width_before, each.width_after) for each in joined] == [
        ("units", 64, 24),
        ("rank", 24, 8),
    ]
    odd = (GroupChange(group="a", width_before=64, width_after=24), replace(second[1], width_after=7))
    assert uneven_note(odd, Prune()) is None


def test_layers_are_split_in_the_last_round_alone(small: Small, trained: RunFolder, tmp_path: Path) -> None:
    settings = ("prune.rounds=2", "prune.low_rank=true", "prune.target={macs=0.4}", "retrain.epochs=1")
    events = list(pipeline.prune(small(*settings), trained.path, tmp_path, device="cpu"))
    first, second = (event for event in events if isinstance(event, Pruned))
    assert not any(each.kind == "rank" for each in first.groups)
    folder = RunFolder(Path(outcome_of(events).folder))
    factored = Plan.from_json(read_json(folder.plan)).factored
    assert {each.layer for each in factored} == {each.group for each in second.groups if each.kind == "rank"}


def test_a_target_that_is_met_is_met() -> None:
    assert round_target(Macs(0.25), 2, 2, macs_share=0.25) is None
    assert round_target(Params(0.25), 2, 3, parameters_share=0.1) is None


def test_a_latency_is_shared_out_and_a_tolerance_is_not() -> None:
    assert round_target(Latency(0.25, batch_items=8), 2, 2) == Latency(0.5, batch_items=8)
    assert round_target(Tolerance(0.1), 2, 2) == Tolerance(0.1)


def test_one_round_has_the_target_itself() -> None:
    target = Macs(0.3)
    assert round_target(target, 1, 1) is target


def test_the_changes_of_two_cuts_read_as_those_of_one() -> None:
    first = GroupChange(group="a", width_before=16, width_after=8, effective_rank=5.0)
    second = GroupChange(group="a", width_before=8, width_after=4, effective_rank=3.0)
    only_first = GroupChange(group="b", width_before=4, width_after=2)
    only_second = GroupChange(group="c", width_before=6, width_after=5)
    assert joined_changes((first, only_first), (second, only_second)) == (
        GroupChange(group="a", width_before=16, width_after=4, effective_rank=3.0),
        only_first,
        only_second,
    )


def test_rounds_meet_the_target_together_and_train_between_them(small: Small, tmp_path: Path) -> None:
    recipe = small("prune.rounds=2", "prune.target.macs=0.3", "train.epochs=4", "stop.draw.epoch=1.0")
    events = list(pipeline.train(recipe, tmp_path, device="cpu"))
    outcome = outcome_of(events)
    cuts = [event for event in events if isinstance(event, Pruned)]
    assert [(cut.round, cut.rounds) for cut in cuts] == [(1, 2), (2, 2)]
    assert cuts[0].macs_share == pytest.approx(0.3**0.5, abs=0.08)
    assert outcome.macs_share == pytest.approx(cuts[0].macs_share * cuts[1].macs_share)
    assert 0.2 < outcome.macs_share <= 0.3
    titles = [event.title for event in events if type(event).__name__ == "PhaseStarted"]  # type: ignore[union-attr]
    assert titles == ["train", "retrain after round 1 of 2", "retrain"]
    assert outcome.epochs["trained"] == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("rewind", ["none", "init"])
def test_the_plan_of_all_rounds_replays_on_the_dense_model(small: Small, tmp_path: Path, rewind: str) -> None:
    recipe = small("prune.rounds=3", "prune.target.macs=0.25", f"retrain.rewind={rewind}")
    outcome = outcome_of(list(pipeline.train(recipe, tmp_path, device="cpu")))
    folder = RunFolder(Path(outcome.folder))
    plan = Plan.from_json(read_json(folder.plan))
    assert plan.target == "macs=0.25"
    widths = {cut.name: (cut.width, len(cut.kept)) for cut in plan.groups}
    assert widths == {each.group: (each.width_before, each.width_after) for each in outcome.groups}
    with set_up(recipe, "cpu") as bench:
        ticket = pruning.replay(bench.new_model(), plan)
    ticket.load_state_dict(load_tensors(folder.ticket)[0])
    assert sum(each.numel() for each in ticket.parameters()) == outcome.ticket.parameters


def test_nothing_is_trained_between_rounds_where_nothing_is_retrained(small: Small, tmp_path: Path) -> None:
    recipe = small("prune.rounds=2", "retrain.epochs=0")
    events = list(pipeline.train(recipe, tmp_path, device="cpu"))
    assert sum(isinstance(event, Pruned) for event in events) == 2
    assert outcome_of(events).stopped.reason == "no retraining was requested"
    assert outcome_of(events).stopped.epoch == outcome_of(events).drawn.epoch


def test_each_round_begins_with_the_optimiser_of_the_round_before(small: Small, tmp_path: Path) -> None:
    accuracies = []
    for way in ("carry", "new"):
        recipe = small("prune.rounds=2", f"retrain.optimizer={way}")
        outcome = outcome_of(list(pipeline.train(recipe, tmp_path / way, device="cpu")))
        tensors, _ = load_tensors(RunFolder(Path(outcome.folder)).ticket)
        accuracies.append(torch.cat([tensor.flatten().float() for tensor in tensors.values()]))
    assert accuracies[0].shape != accuracies[1].shape or not torch.equal(*accuracies)


def test_widths_that_kernels_do_not_like_are_named_with_the_remedy() -> None:
    changes = [
        GroupChange(group="first", width_before=64, width_after=60),
        GroupChange(group="second", width_before=64, width_after=48),
        GroupChange(group="narrow", width_before=12, width_after=6),
        GroupChange(group="third", width_before=60, width_after=60),
        GroupChange(group="heads", width_before=8, width_after=5, kind="heads"),
    ]
    assert uneven_note(changes[1:], Prune(round_to=1)) is None
    assert uneven_note(changes, Prune(target=Widths({"first": 60}))) is None
    note = uneven_note(changes, Prune(round_to=1))
    assert note is not None
    assert note.startswith("1 of 4 groups were pruned to a width that kernels can be slower at")
    assert note.endswith("('first': 60, no multiple of 8): set prune.round_to = \"auto\"")
    assert "out of reach" in (uneven_note(changes, Prune()) or "")
