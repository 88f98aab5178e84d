"""The whole job on tasks that are no classes of one tensor: trained, cut, retrained, exported, resumed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tpsprune
from tests.pipeline.conftest import make_small, outcome_of
from tests.pipeline.own_tasks import TASK, text_recipe
from tests.pipeline.test_train import run
from tpsprune import pipeline, recipe
from tpsprune.claims import assess
from tpsprune.errors import DataError, ModelError, RecipeError
from tpsprune.loop.meter import Ledger, Meter
from tpsprune.numerics.forward import call_model, logits_of
from tpsprune.numerics.trees import random_inputs
from tpsprune.pipeline.ticket import extraction_inputs
from tpsprune.pipeline.workbench import set_up
from tpsprune.recipe import Recipe
from tpsprune.recipe.prune import Latency
from tpsprune.records import Pruned, RunResult
from tpsprune.report import tables
from tpsprune.report.tables import savings_summary
from tpsprune.runs import ComparisonFolder, read_result

OWN = "tests.pipeline.own_tasks"
MLP = 'kind = "mlp"\nwidths = [48]'
BYTES = 'kind = "text"\nsource = "python-topics"\nlength = 32'

ITEMS = 16


def task(loss: str, data: str, model: str = MLP, *overrides: str) -> Recipe:
    if data.startswith("own:"):
        data = f'kind = "custom"\nfactory = "{OWN}:{data.removeprefix("own:")}"'
    if model.startswith("own:"):
        name, _, output = model.removeprefix("own:").partition("/")
        model = f'kind = "custom"\nfactory = "{OWN}:{name}"\nmodel_args = {{ output = "{output}" }}'
    return recipe.parse(TASK.format(loss=loss, data=data, model=model), "other.toml", overrides)


def shown(outcome: RunResult) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(tables.closing(outcome))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("loss", "data", "model", "quality", "least"),
    [
        ("cross-entropy", "own:classes", MLP, "accuracy", 0.8),
        ("mse", "own:targets", MLP, "R²", 0.3),
        (
            "mse",
            'kind = "custom"\nfactory = "tests.pipeline.own_tasks:targets"\ndata_args = { count = 3 }',
            MLP,
            "R²",
            0.3,
        ),
        ("bce", "own:many_labels", MLP, "label accuracy", 0.8),
        (f"{OWN}:absolute", "own:targets", MLP, "quality", 0.2),
        (f"{OWN}:hinge", "own:classes", MLP, "quality", 0.8),
        ("mse", 'kind = "tabular"\nsource = "diabetes"', MLP, "R²", 0.2),
        ("cross-entropy", 'kind = "tabular"\nsource = "wine"', MLP, "accuracy", 0.8),
        ("cross-entropy", "own:by_name", "own:mixed/dataclass", "accuracy", 0.45),
        ("cross-entropy", "own:by_name", "own:mixed/mapping", "accuracy", 0.45),
        ("cross-entropy", "own:by_name", "own:mixed/opened", "accuracy", 0.45),
        ("cross-entropy", "own:by_place", "own:mixed/tuple", "accuracy", 0.45),
    ],
)
def test_a_task_is_trained_pruned_and_exported_and_its_quality_is_called_by_its_name(
    tmp_path: Path, loss: str, data: str, model: str, quality: str, least: float
) -> None:
    made = task(loss, data, model)
    events = run(made, tmp_path / "runs")
    outcome = outcome_of(events)
    assert outcome.macs_share < 0.6
    assert outcome.ticket.accuracy > least
    assert outcome.task.quality == quality
    assert list(outcome.ticket.latency_seconds) == ["batch-1", "batch-64"]
    assert f"test {quality}" in shown(outcome)
    cut = next(event for event in events if isinstance(event, Pruned))
    assert f"validation {quality} {cut.validation_accuracy_before:.4f} before pruning" in tables.prune_line(
        cut
    )
    exported = pipeline.export(Path(outcome.folder), tmp_path / "ticket", trust_code=True)
    assert [each.largest_difference for each in exported.compared] == [0.0]
    ticket = tpsprune.load(tmp_path / "ticket", trust_code=True)
    with set_up(made, "cpu") as bench:
        assert bench.score(ticket, bench.dataset.test).accuracy == outcome.ticket.accuracy
    result = read_result(Path(outcome.folder) / "result.json")
    facts = result.task
    assert facts == outcome.task
    assert result.task.quality == quality
    with torch.inference_mode():
        output = logits_of(call_model(ticket, random_inputs(facts, ITEMS)))
    assert len(output) == ITEMS


@pytest.mark.parametrize(
    ("loss", "data"), [("mse", "own:targets"), ("bce", "own:many_labels"), (f"{OWN}:absolute", "own:targets")]
)
def test_units_are_scored_by_the_slope_of_the_tasks_own_loss(tmp_path: Path, loss: str, data: str) -> None:
    made = task(loss, data, MLP, "prune.units=taylor", "train.epochs=1", "stop.draw.epoch=1.0")
    assert outcome_of(run(made, tmp_path)).macs_share < 0.6


def test_the_weight_variants_of_tps_bind_a_regression(tmp_path: Path) -> None:
    made = task("mse", "own:targets", MLP, "tps.variant=weights", "train.epochs=1", "stop.draw.epoch=1.0")
    outcome_of(run(made, tmp_path))


@pytest.mark.parametrize(
    ("loss", "data", "chance"),
    [
        ("cross-entropy", "own:by_name", 0.25),
        ("mse", "own:targets", 0.0),
        (f"{OWN}:absolute", "own:targets", 0.0),
        (f"{OWN}:hinge", "own:classes", 1 / 3),
    ],
)
def test_a_rule_holds_until_the_quality_is_on_its_way_from_chance(
    tmp_path: Path, loss: str, data: str, chance: float
) -> None:
    model = "own:mixed/tensor" if data == "own:by_name" else MLP
    with set_up(task(loss, data, model), "cpu") as bench:
        assert bench.chance_accuracy == pytest.approx(chance)


def test_the_chance_of_text_is_that_of_its_commonest_byte(tmp_path: Path) -> None:
    with set_up(recipe.parse(text_recipe(tmp_path), "text.toml"), "cpu") as bench:
        labels = bench.dataset.train.labels.flatten().tolist()
        assert bench.chance_accuracy == pytest.approx(labels.count(ord(" ")) / len(labels))


def test_a_rule_names_the_quality_it_waits_for(tmp_path: Path) -> None:
    made = task(
        "mse",
        "own:targets",
        MLP,
        "stop.draw={rule='plateau', monitor='norm', tolerance=9.0, patience=2, min_adjusted_accuracy=0.01}",
    )
    assert "and validation R² has covered" in outcome_of(run(made, tmp_path)).drawn.reason


def test_a_task_that_was_not_learned_names_the_figure(tmp_path: Path) -> None:
    made = task("mse", "own:targets", MLP, "task.required_accuracy=0.999")
    notes = outcome_of(run(made, tmp_path)).notes
    assert any("the ticket's validation R² " in note for note in notes)


def test_a_text_is_learned_and_its_quality_is_called_by_its_name(tmp_path: Path) -> None:
    made = recipe.parse(text_recipe(tmp_path), "text.toml")
    outcome = outcome_of(run(made, tmp_path / "runs"))
    assert outcome.ticket.accuracy > 0.2
    assert outcome.task.quality == "next-token accuracy"


def test_a_comparison_of_a_regression_is_made_and_reported_by_its_own_figure(tmp_path: Path) -> None:
    overrides = (
        "train.epochs=2",
        "watch.signals=['norm']",
        "stop.draw={rule='epoch', epoch=1.0}",
        "prune.calibration_items=64",
        "compare.inference_seconds=0.01",
        "compare.idle_seconds=0.01",
        "energy.meter=fake",
        "energy.fake_window_seconds=10",
    )
    made = recipe.read("diabetes", overrides)
    folder = ComparisonFolder(tmp_path / "compared")
    for _ in pipeline.compare(made, folder, arms=("dense", "ticket"), pairs=2, device="cpu"):
        pass
    found = folder.read()[0]
    assert found.design.quality == "R²"
    assert all(run.accuracy is not None and run.accuracy < 1 for run in found.runs)
    assert {(span.arm, span.batch) for span in found.inference} == {
        (arm, batch) for arm in ("dense", "ticket") for batch in (1, 64)
    }
    console = Console(width=100, file=io.StringIO())
    console.print(savings_summary(assess(found)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "Test R²:" in text
    assert "accuracy" not in text.lower().replace("accuracy_not_preserved", "").replace("accuracy_bound", "")


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (
            lambda: task("next-token", BYTES),
            ModelError,
            r"\(8, 256\); expected \(8, 32, 256\), one score per item, place",
        ),
        (
            lambda: task("cross-entropy", "own:by_name"),
            ModelError,
            r"'mlp' takes one tensor, the data are sev",
        ),
        (
            lambda: task("bce", "own:targets"),
            DataError,
            r"expected zeros and ones of shape \(n, labels\) with loss 'bce'",
        ),
        (lambda: task(f"{OWN}:nothing", "own:classes"), RecipeError, r"task\.loss: .* has no 'nothing'"),
        (
            lambda: task(f"{OWN}:hinge", "own:targets"),
            RecipeError,
            r"task\.loss: .*:hinge' raised RuntimeError",
        ),
    ],
)
def test_what_does_not_fit_is_reported_before_anything_is_written(
    tmp_path: Path, made: object, error: type[Exception], words: str
) -> None:
    assert callable(made)
    with pytest.raises(error, match=words):
        run(made(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("data", "output"), [("own:by_name", "mapping"), ("own:by_place", "tuple")])
def test_a_target_of_latency_is_timed_on_items_of_several_parts(data: str, output: str) -> None:
    with set_up(task("cross-entropy", data, f"own:mixed/{output}"), "cpu") as bench:
        ledger = Ledger(Meter("none"))
        extra = extraction_inputs(bench, ledger, "interpolation", Latency(0.5, batch_items=4))
        assert extra["clock"](bench.new_model()) > 0


def test_an_autoencoder_learns_its_images_and_the_panel_of_its_run_has_its_field(tmp_path: Path) -> None:
    made = make_small("task.loss=reconstruction", "task.model={kind='mlp', widths=[32, 8, 32]}")
    with set_up(made, "cpu") as bench:
        for split in (bench.dataset.train, bench.dataset.validation, bench.dataset.test):
            assert torch.equal(split.labels, bench.dataset.prepare(split.inputs).flatten(1))
        assert bench.dataset.facts.classes == 64
    result = outcome_of(run(made, tmp_path))
    assert (result.task.quality, result.task.loss) == ("R²", "reconstruction")
    assert result.ticket.accuracy > 0.3
    panel = pipeline.fidelity(Path(result.folder), device="cpu")
    assert panel.latent_field is not None
    assert panel.latent_field.items == 449
    assert panel.latent_field.dense_radius > 0
    assert panel.outputs_explained is not None
    assert panel.absent["agreement"] == "the labels are no classes"


def test_custom_data_whose_labels_are_not_its_inputs_are_no_autoencoders(tmp_path: Path) -> None:
    made = task("mse", "own:targets", MLP, "train.epochs=1", "stop.draw.epoch=1.0")
    panel = pipeline.fidelity(Path(outcome_of(run(made, tmp_path)).folder), device="cpu", trust_code=True)
    assert panel.latent_field is None
    assert panel.absent["latent_field"] == "the labels are not the inputs: it is no autoencoder"
