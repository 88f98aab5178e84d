"""A model card says what the run recorded, with classes, and of the rest that it is not recorded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.records.test_documents import outcome
from tpsprune.records import Cost, EnergyClass, EnergyMethod, Grid, PhaseEnergy, Stamp, dump
from tpsprune.report.card import model_card

RECIPE = 'name = "mnist"\n[task.model]\nkind = "cnn"\n'
STAMPS = {"ticket.safetensors": Stamp("a" * 64, 12345), "plan.json": Stamp("b" * 64, 77)}
FRANCE = Grid(grams_per_kwh=56.0, country="France", year=2022, source="a table")


def metered(**more: Any) -> dict[str, Any]:
    phase = PhaseEnergy(
        windows=2,
        seconds=3.0,
        cpu_seconds=2.5,
        joules=3600.0,
        joules_by_component={"cpu": 3000.0, "ram": 600.0},
        energy_class=EnergyClass.MIXED,
    )
    method = EnergyMethod(
        meter="codecarbon",
        scope="machine",
        classes={"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT},
        details={"cpu_model": "Some CPU"},
        excluded=("screen", "power supply"),
    )
    named = replace(
        outcome(),
        energy={"train": phase},
        method=method,
        total=Cost(joules=3600.0, seconds=3.0, cpu_seconds=2.5),
        **more,
    )
    raw: dict[str, Any] = dump(named)
    return raw


def card(raw: dict[str, Any] | None = None, **changes: Any) -> str:
    content: dict[str, Any] = {
        "recipe_text": RECIPE,
        "recipe_sha256": "c" * 64,
        "architecture": "Cnn",
        "formats": {"safetensors": ("ticket.safetensors",)},
        "stamps": STAMPS,
        "checked": {"safetensors": 0.0, "onnx": 1e-4},
        "batches": (1, 2, 7, 64),
    }
    return model_card(metered() if raw is None else raw, **{**content, **changes})


def metadata(text: str) -> str:
    assert text.startswith("---\n")
    return text.split("---\n", 2)[1]


def test_the_figures_are_the_results() -> None:
    text = card()
    assert "| accuracy, test split | 0.9000 | 0.9000 | – |" in text
    assert "| multiply-accumulates per item | 10,000 | 2,500 | 0.25 |" in text
    assert "| parameters | 1,000 | 250 | 0.25 |" in text
    assert (
        "| latency, batch 64 | 2.00 ms (1.00 ms to 3.00 ms) | 2.00 ms (1.00 ms to 3.00 ms) | 1.00 |" in text
    )
    assert "before any retraining, the ticket's accuracy on the validation split was 0.8500" in text
    assert "| conv1 | units | 32 | 8 | 7.6 | not recorded |" in text
    assert "- fc: classes" in text
    assert "Drawn at epoch 2.0: calm for 3 readings." in text


def test_every_joule_has_its_class() -> None:
    text = card()
    assert "| phase | seconds | CPU seconds | cpu (modelled) | ram (constant) | sum |" in text
    assert "| train | 3.00 s | 2.50 s | 3.00 kJ | 600 J | 3.60 kJ *(modelled + constant)* |" in text
    assert "| all | 3.00 s | 2.50 s | 3.00 kJ | 600 J | 3.60 kJ *(modelled + constant)* |" in text
    assert "Not in these figures: screen; power supply." in text


def test_without_a_grid_there_are_no_grams() -> None:
    assert "co2_eq_emissions" not in metadata(card())
    assert "CO₂: not claimed, because no grid factor was chosen." in card()


def test_with_a_grid_there_are_grams_and_where_they_come_from() -> None:
    text = card(grid=FRANCE)
    # 3,600 J are a thousandth of a kilowatt-hour.
    assert metadata(text).endswith(
        "co2_eq_emissions:\n"
        "  emissions: 0.056\n"
        '  source: "codecarbon (modelled + constant) via tpsprune; grid: a table"\n'
        '  training_type: "pre-training"\n'
        '  geographical_location: "France"\n'
        '  hardware_used: "Some CPU"\n'
    )
    assert (
        "CO₂ equivalents: 56.0 mg *(modelled + constant)*, of the energy above times a constant factor"
        in text
    )


def test_of_a_model_that_was_given_no_kind_of_training_is_claimed() -> None:
    raw = metered()
    raw["drawn_at"]["rule"] = "given"
    assert "training_type" not in card(raw, grid=FRANCE)
    assert "Dense: the model as it was given." in card(raw)


def test_a_simulated_meter_makes_no_grams() -> None:
    raw = metered()
    raw["method"]["classes"] = {"cpu": "simulated", "ram": "simulated"}
    text = card(raw, grid=FRANCE)
    assert "co2_eq_emissions" not in metadata(text)
    assert "CO₂: none, because the meter was simulated." in text
    assert "cpu (simulated)" in text


def test_energy_that_was_not_metered_is_not_zero() -> None:
    raw = json.loads(json.dumps(dump(outcome())))
    text = card(raw, grid=FRANCE)
    assert "| prune | 3.00 s | 2.50 s | not recorded | not metered |" in text
    assert "CO₂: none, because no energy was metered." in text


def places(raw: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(raw, dict):
        for name, value in raw.items():
            yield (*path, name)
            yield from places(value, (*path, name))


@pytest.mark.parametrize("path", list(places(metered())), ids=".".join)
def test_a_field_that_an_old_run_lacks_is_stated_or_left_out_and_never_guessed(path: tuple[str, ...]) -> None:
    raw = copy.deepcopy(metered())
    inner = raw
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    text = card(raw, grid=FRANCE)
    assert "None" not in text
    assert "nan" not in text
    if path in {("ticket", "accuracy"), ("ticket", "macs"), ("dense", "parameters"), ("name",)}:
        assert text.count("not recorded") > card(grid=FRANCE).count("not recorded")
    if path == ("groups",):
        assert "Groups and widths: not recorded." in text


def test_a_result_of_nothing_is_a_card_of_nothing() -> None:
    text = card({})
    assert text.count("not recorded") >= 10
    assert "model-index" not in text


def test_the_same_content_gives_the_same_text() -> None:
    assert card() == card(copy.deepcopy(metered()))


def test_every_file_stands_with_its_hash_and_every_format_with_its_lines() -> None:
    formats = {"safetensors": ("a",), "torch-export": ("b",), "onnx": ("c",), "hf": ("d",)}
    text = card(formats=formats, architecture="LlamaForCausalLM")
    assert f"| ticket.safetensors | 12,345 | {'a' * 64} |" in text
    assert text.count("```python") == 4
    blocks = [block.split("```")[0].strip().splitlines() for block in text.split("```python")[1:]]
    assert [len(block) for block in blocks] == [3, 3, 3, 3]
    assert "transformers.LlamaForCausalLM.from_pretrained" in text
    assert "can run code" in text
    assert "safetensors: equal to the bit; onnx: within 0.0001 of the largest score" in text
    assert "library_name: transformers" in metadata(text)


def test_a_ticket_that_takes_code_to_load_says_so() -> None:
    files = ("config.json", "model.safetensors", "modeling_pruned.py")
    text = card(formats={"hf": files}, architecture="GPT2LMHeadModel", auto_class="AutoModelForCausalLM")
    assert "(`config.json`, `model.safetensors`, `modeling_pruned.py`)" in text
    assert 'transformers.AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)' in text
    assert "That file is code" in text


def test_the_recipe_stands_in_a_fold_that_nothing_in_it_can_close() -> None:
    recipe = RECIPE + "# ```\n# ````\n"
    text = card(recipe_text=recipe)
    assert f"`````toml\n{recipe}`````\n" in text
    assert f"```toml\n{RECIPE}```\n" in card()


def test_the_card_of_a_regression_names_its_own_quality() -> None:
    raw = metered()
    raw["task"] |= {"input_kind": "vector", "input_shape": [10], "loss": "mse", "quality": "R²"}
    text = card(raw)
    assert "| R², test split | 0.9000 | 0.9000 | – |" in text
    assert "the ticket's R² on the validation split was 0.8500" in text
    assert "accuracy" not in text.replace("pruned_validation_accuracy", "")
    assert "pipeline_tag: tabular-regression\n" in metadata(text)
    assert "metrics:\n- r_squared\n" in metadata(text)


@pytest.mark.parametrize(("loss", "of"), [("next-token", "token"), ("cross-entropy", "item")])
def test_scores_are_of_tokens_where_the_next_one_is_reported(loss: str, of: str) -> None:
    raw = metered()
    raw["task"] |= {"input_kind": "tokens", "input_shape": [64], "vocabulary": 256, "loss": loss}
    assert f" scores for each {of}." in card(raw)


def test_what_comes_from_a_run_cannot_break_the_table() -> None:
    raw = metered()
    raw["groups"][0]["group"] = "conv|1\n| x_<script>`y`"
    assert "| conv\\|1 \\| x\\_&lt;script>\\`y\\` | units |" in card(raw)


def test_the_metadata_are_yaml_that_a_reader_understands() -> None:
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(metadata(card(grid=FRANCE)))
    assert read["pipeline_tag"] == "image-classification"
    (index,) = read["model-index"]
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert index["results"][0]["dataset"] == {"name": "mnist", "type": "mnist", "split": "test"}
    assert read["co2_eq_emissions"]["emissions"] == pytest.approx(0.056)
    assert read["library_name"] == "tpsprune"


def test_the_hub_reads_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card(grid=FRANCE)).data
    (result,) = data.eval_results
    found = (result.task_type, result.dataset_name, result.metric_type, result.metric_value)
    assert found == ("image-classification", "mnist", "accuracy", 0.9)
    assert data.library_name == "tpsprune"
