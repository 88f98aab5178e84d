"""The main job on real digits: what is yielded, what is written, and that the figures are what they say."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.pipeline.conftest import Events, Small, folder_of, outcome_of
from tpsprune import energy, pipeline, pruning
from tpsprune.errors import DivergedError, RunFolderError
from tpsprune.pipeline.workbench import set_up
from tpsprune.recipe import Recipe
from tpsprune.records import Event, Note, RunResult, Window
from tpsprune.report import pictures
from tpsprune.runs import RunFolder, read_result
from tpsprune.runs.tensors import load_tensors

VALIDATED = ("train_loss", "validation_loss", "validation_accuracy")


def run(recipe: Recipe, out: Path, *, resume: bool = False, again: bool = False) -> list[Event]:
    return list(pipeline.train(recipe, out, device="cpu", resume=resume, again=again))


def test_a_run_yields_its_phases_in_order_and_ends_with_the_outcome(small_run: Events) -> None:
    kinds = [type(event).__name__ for event in small_run if type(event).__name__ != "Progress"]
    assert kinds == [
        "PhaseStarted",
        "PhaseEnded",
        "Decided",
        "Pruned",
        "PhaseStarted",
        "PhaseEnded",
        "Decided",
        "Finished",
    ]
    outcome = outcome_of(small_run)
    assert outcome.drawn.reason == "epoch 2.5 of the 2 required"
    assert outcome.macs_share <= 0.5
    assert outcome.ticket.parameters < outcome.dense.parameters
    assert outcome.ticket.accuracy > 0.8


def test_a_run_folder_holds_everything_the_design_names(small_run: Events) -> None:
    outcome = outcome_of(small_run)
    folder = RunFolder(Path(outcome.folder))
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        "recipe.toml",
        "readings.jsonl",
        "energy.jsonl",
        "decisions.jsonl",
        "plan.json",
        "dense.safetensors",
        "ticket.safetensors",
        "result.json",
        "state",
    }
    result = read_result(folder.result)
    assert result == outcome
    decisions, cut_off = folder.decisions.read()
    assert not cut_off
    assert [d["kind"] for d in decisions if d["act"]] == ["draw", "stop"]
    readings = {line["signal"] for line in folder.readings.read()[0]}
    assert {"d_eff", "h1", "spectral_edge", "norm", "train_loss", "validation_accuracy"} <= readings


def test_the_picture_of_a_run_is_plotted_from_its_folder_alone(small_run: Events) -> None:
    outcome = outcome_of(small_run)
    vector, raster = pictures.plot_run(Path(outcome.folder))
    assert vector.read_text().count("ticket drawn at epoch 2.5 (red)") == 1
    assert raster.read_bytes().startswith(b"\x89PNG")


def test_every_window_is_in_the_ledger_and_phases_follow_without_gap(small_run: Events) -> None:
    outcome = outcome_of(small_run)
    windows, _ = RunFolder(Path(outcome.folder)).energy.read()
    assert list(outcome.energy) == [
        "setup",
        "train",
        "watch",
        "evaluate",
        "prune",
        "retrain",
        "benchmark",
    ]
    # The fake meter's windows last 1 s at 10 W + 5 W.
    assert outcome.total.joules == pytest.approx(15.0 * len(windows))
    assert outcome.total.seconds == pytest.approx(len(windows))


def test_the_projection_is_the_dense_epochs_scaled_to_the_budget(small_run: Events) -> None:
    outcome = outcome_of(small_run)
    # Draw at step 40 of 16 an epoch, read every 10: 4 windows of train and 1 of evaluate for 2.5 of 4 epochs.
    assert outcome.projected_dense is not None
    assert outcome.projected_dense.seconds == pytest.approx(5 * 4 / 2.5)


@pytest.mark.parametrize(("validation", "expected"), [("when-needed", [2.5, 4.0]), ("always", None)])
def test_a_stage_is_validated_at_its_end_and_where_its_rule_needs_it(
    small: Small, tmp_path: Path, validation: str, expected: list[float] | None
) -> None:
    outcome = outcome_of(run(small(f"watch.validation={validation}"), tmp_path))
    lines, _ = RunFolder(Path(outcome.folder)).readings.read()
    at = {name: [line["epoch"] for line in lines if line["signal"] == name] for name in VALIDATED}
    assert at["validation_loss"] == at["validation_accuracy"]
    assert at["validation_loss"] == (at["train_loss"] if expected is None else expected)


def test_equal_seeds_give_equal_runs_and_other_seeds_others(
    small: Small, small_run: Events, tmp_path: Path
) -> None:
    first = outcome_of(small_run)
    second = outcome_of(run(small(), folder_of(small_run).path.parent, again=True))
    other = outcome_of(run(small("seed=1"), tmp_path))

    def content(outcome: RunResult, name: str) -> bytes:
        return (Path(outcome.folder) / name).read_bytes()

    for name in ("ticket.safetensors", "readings.jsonl", "decisions.jsonl", "plan.json"):
        assert content(first, name) == content(second, name), name
    assert first.ticket.accuracy == second.ticket.accuracy
    assert content(first, "readings.jsonl") != content(other, "readings.jsonl")
    assert Path(second.folder).name == Path(first.folder).name + "-2"


def test_a_draw_rule_that_never_acts_meets_its_deadline(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small("stop.draw={rule='none'}", "stop.draw_by_share=0.5"), tmp_path))
    assert outcome.drawn.epoch == 2.0
    assert outcome.drawn.rule == "deadline"
    assert outcome.drawn.reason.startswith("epoch 2 is the last to draw at (stop.draw_by_share)")


def test_a_draw_at_the_very_end_leaves_nothing_to_retrain(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small("stop.draw={rule='none'}"), tmp_path))
    assert outcome.drawn.epoch == 4.0
    assert outcome.stopped.reason == "no epochs were left to retrain for"
    assert "retrain" not in set(outcome.energy)


def test_a_stop_rule_ends_the_retraining_early(small: Small, tmp_path: Path) -> None:
    rule = "stop.end={rule='threshold', monitor='validation_accuracy', threshold=0.1}"
    outcome = outcome_of(run(small(rule), tmp_path))
    assert outcome.stopped.rule == "validation_accuracy above 0.1 for 1"
    assert outcome.stopped.epoch < 4.0


def test_a_budget_ends_the_run_under_any_rule(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small("stop.budget_joules=60.0"), tmp_path))
    assert outcome.drawn.rule == outcome.stopped.rule == "budget"
    assert outcome.drawn.reason == "the budget of 60 J is used up (60.0 J spent)"
    assert outcome.drawn.epoch < 2.0
    assert outcome.stopped.epoch == outcome.drawn.epoch


def test_a_budget_ends_the_run_between_two_readings_too(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows as short as can be: one a step, each a second on the fake meter's clock.
    monkeypatch.setattr(import_module("tpsprune.pipeline.workbench"), "BUDGET_WINDOW_SECONDS", 0.0)
    recipe = small("watch.every_steps=1000", "stop.budget_seconds=12.0", "stop.draw={rule='none'}")
    outcome = outcome_of(run(recipe, tmp_path))
    assert outcome.drawn.rule == "budget"
    assert 8 <= outcome.drawn.step <= 12


def test_a_budget_that_ends_before_the_rewind_point_is_reported(small: Small, tmp_path: Path) -> None:
    recipe = small("retrain.rewind=epoch:3", "stop.budget_joules=60.0")
    outcome = outcome_of(run(recipe, tmp_path))
    assert outcome.drawn.rule == "budget"
    assert outcome.drawn.epoch < 3
    assert "a budget ended the training before epoch 3: there is nothing to rewind to" in outcome.notes


def test_a_rewind_to_init_is_the_plan_on_the_initial_weights(small: Small, tmp_path: Path) -> None:
    recipe = small("retrain.rewind=init", "retrain.epochs=0")
    folder = RunFolder(Path(outcome_of(run(recipe, tmp_path)).folder))
    with set_up(recipe, "cpu") as bench:
        plan = pruning.Plan.from_json(json.loads(folder.plan.read_text()))
        expected = pruning.replay(bench.new_model(), plan).state_dict()
    tensors, _ = load_tensors(folder.ticket)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_rewind_to_an_epoch_holds_the_draw_until_that_epoch_is_kept(small: Small, tmp_path: Path) -> None:
    recipe = small("retrain.rewind=epoch:2", "stop.draw={rule='epoch', epoch=0.5}")
    outcome = outcome_of(run(recipe, tmp_path))
    assert outcome.drawn.epoch == 2.5
    # Retrained from epoch 2 to 4, begun when 2.5 epochs had been trained.
    assert outcome.stopped.epoch == 4.5


def test_a_retraining_of_its_own_length_has_a_schedule_of_its_own(small: Small, tmp_path: Path) -> None:
    outcome = outcome_of(run(small("retrain.epochs=3"), tmp_path))
    assert outcome.stopped.epoch == 2.5 + 3


@pytest.mark.parametrize("variant", ["weights", "neurons", "moments", "bn-l1"])
def test_tps_runs_with_the_loss_and_its_readings_are_journalled(
    small: Small, tmp_path: Path, variant: str
) -> None:
    outcome = outcome_of(run(small(f"tps.variant={variant}", "tps.coupling=0.1"), tmp_path))
    lines, _ = RunFolder(Path(outcome.folder)).readings.read()
    whole = [line for line in lines if line["signal"] == "tps_energy" and not line["group"]]
    assert len(whole) == len({line["step"] for line in lines})
    assert outcome.overhead["TPS"] is not None
    assert outcome.overhead["TPS"] > 0


def test_modular_addition_is_learned_with_labels_where_it_is_only_memorised_without(
    small: Small, tmp_path: Path
) -> None:
    common = (
        "task.data={kind='modular', modulus=31, train_share=0.7, relabel=true}",
        "task.model={kind='mlp', widths=[256], embedding=64}",
        "train.batch_size=full",
        "train.epochs=300",
        "train.learning_rate=2e-3",
        "train.weight_decay=2.0",
        "train.schedule=constant",
        "watch.every_steps=25",
        "watch.signals=['norm']",
        "stop.draw={rule='threshold', monitor='validation_accuracy', threshold=0.95}",
        "prune.target.macs=0.5",
    )
    without = outcome_of(run(small(*common, "tps.variant=none"), tmp_path))
    assert without.drawn.rule == "deadline"
    assert without.dense.accuracy < 0.5
    events = list(run(small(*common, "tps.warmup_share=0.0"), tmp_path))
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.text.startswith("TPS: variant 'labels', since nothing but hidden units joins two tokens")
    outcome = outcome_of(events)
    assert outcome.drawn.rule == "validation_accuracy above 0.95 for 1"
    assert outcome.dense.accuracy > 0.9
    coherences = [
        line["value"]
        for line in RunFolder(Path(outcome.folder)).readings.read()[0]
        if line["signal"] == "tps_coherence"
    ]
    assert coherences[0] < 0.5 < coherences[-1]


def test_a_used_folder_is_refused_with_what_would_do(small: Small, small_run: Events) -> None:
    used = folder_of(small_run).path.parent
    with pytest.raises(RunFolderError, match=r"holds a finished run of this recipe: .*--again.*--out"):
        run(small(), used)
    with pytest.raises(RunFolderError, match=r"is finished, there is nothing to resume: .*tpsprune show"):
        run(small(), used, resume=True)


def test_a_loss_that_leaves_the_finite_numbers_ends_the_run_and_keeps_no_broken_weights(
    small: Small, tmp_path: Path
) -> None:
    recipe = small(
        "train.optimizer=sgd", "train.learning_rate=1e20", "train.schedule=constant", "watch.every_steps=1"
    )
    with pytest.raises(
        DivergedError, match=r"the loss is not finite at step \d+ .*the last checkpoint are kept in .*small-"
    ):
        run(recipe, tmp_path)
    (folder,) = (RunFolder(path) for path in tmp_path.iterdir())
    assert folder.energy.read()[0], "what was spent is counted"
    assert not folder.is_finished
    checkpoint = folder.state / "checkpoint.safetensors"
    if checkpoint.exists():
        assert all(bool(tensor.isfinite().all()) for tensor in load_tensors(checkpoint)[0].values())


def test_a_run_replayed_has_the_ledger_that_was_recorded(
    trained: RunFolder, small: Small, tmp_path: Path
) -> None:
    read = small("energy.meter=replay", f"energy.replay={str(trained.energy.path)!r}")
    outcome = outcome_of(run(read, tmp_path))
    assert outcome.method.meter == "replay"
    assert outcome.energy == energy.by_phase(trained.energy.parsed(Window))
    assert RunFolder(Path(outcome.folder)).energy.path.read_bytes() == trained.energy.path.read_bytes()
