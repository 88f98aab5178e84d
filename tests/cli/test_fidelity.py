"""``tpsprune fidelity``: a panel of a finished run, kept in its folder, shown again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.test_door import assert_refused
from tpsprune.runs import RunFolder, read_fidelity

Invoke = Callable[..., Result]


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> Path:
    shutil.copytree(trained.path, tmp_path / "run")
    return tmp_path / "run"


def test_it_prints_the_panel_keeps_it_and_show_prints_it_again(invoke: Invoke, run: Path) -> None:
    done = invoke("fidelity", str(run), "--device", "cpu")
    assert done.exit_code == 0, done.output
    for words in ("same class", "KL(dense ‖ ticket), nats", "NC4", "foreign inputs told apart", "barrier"):
        assert words in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    panel = read_fidelity(run / "fidelity.json")
    assert panel.split == "test"
    assert set(panel.absent) == {"latent_field"}
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert panel.dense.quality == pytest.approx(result["dense"]["accuracy"])
    assert panel.ticket.quality == pytest.approx(result["ticket"]["accuracy"])
    assert done.output.strip() in invoke("show", str(run)).output


def test_json_is_what_the_folder_keeps(invoke: Invoke, run: Path) -> None:
    done = invoke("fidelity", str(run), "--items", "64", "--json")
    assert json.loads(done.output) == json.loads((run / "fidelity.json").read_text(encoding="utf-8"))
    assert json.loads(done.output)["items"] == 64


def test_what_is_no_finished_run_is_refused(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    assert_refused(invoke("fidelity", str(tmp_path / "nowhere")), "is not there")
    (run / "result.json").unlink()
    assert_refused(invoke("fidelity", str(run)), "is not finished")
    assert not (run / "fidelity.json").exists()


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ('[task.model]\nkind = "custom"\nfactory = "os:mkdir"', "os:mkdir"),
        ('[task.data]\nkind = "custom"\nfactory = "os:mkdir"', "os:mkdir"),
    ],
)
def test_code_that_a_folder_names_does_not_run_without_consent(
    invoke: Invoke, run: Path, override: str, place: str
) -> None:
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    section = override.partition("\n")[0]
    head, _, rest = text.partition(section)
    _, bracket, tail = rest.partition("\n[")
    (run / "recipe.toml").write_text(f"{head}{override}{bracket}{tail}", encoding="utf-8")
    assert_refused(invoke("fidelity", str(run)), place, "--trust-code")


def test_a_damaged_panel_is_named(invoke: Invoke, run: Path) -> None:
    (run / "fidelity.json").write_text('{"schema": "tpsprune.fidelity/9"}', encoding="utf-8")
    assert_refused(invoke("show", str(run)), "fidelity.json", "newer tpsprune")


def test_an_exported_ticket_has_no_dense_model_and_the_message_says_what_would_do(
    invoke: Invoke, run: Path
) -> None:
    assert invoke("export", str(run), "--to", "bundle").exit_code == 0
    assert_refused(invoke("fidelity", "bundle"), "its dense model is not in it", "tpsprune.fidelity(dense")


def test_probabilities_are_those_of_the_training_at_its_temperature(invoke: Invoke, run: Path) -> None:
    found = []
    for temperature in ("1.0", "8.0"):
        text = (run / "recipe.toml").read_text(encoding="utf-8")
        lines = [
            f"temperature = {temperature}" if line.startswith("temperature = ") else line
            for line in text.splitlines()
        ]
        (run / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
        found.append(json.loads(invoke("fidelity", str(run), "--json").output))
    assert found[0]["dense"]["quality"] == found[1]["dense"]["quality"]
    assert found[0]["dense"]["calibration_error"] != found[1]["dense"]["calibration_error"]


def test_show_reads_the_panel_once_and_keeps_it(invoke: Invoke, run: Path) -> None:
    first = invoke("show", str(run))
    assert first.exit_code == 0, first.output
    assert "barrier of loss between the weights" in first.output
    panel = read_fidelity(run / "fidelity.json")
    assert (panel.items, panel.split) == (449, "test")
    kept = (run / "fidelity.json").read_bytes()
    assert invoke("show", str(run)).output == first.output
    assert (run / "fidelity.json").read_bytes() == kept


def slow(run: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["dense"]["latency_seconds"]["batch-64"]["median"] = 3.0
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")


def untimed(run: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    for model in ("dense", "ticket"):
        result[model]["latency_seconds"] = {}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")


def custom(run: Path) -> None:
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    head, _, rest = text.partition("[task.model]")
    tail = rest.partition("\n[")[2]
    own = '[task.model]\nkind = "custom"\nfactory = "os:mkdir"'
    (run / "recipe.toml").write_text(f"{head}{own}\n[{tail}", encoding="utf-8")


def without_weights(run: Path) -> None:
    (run / "dense.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (slow, "it would take about 360 seconds"),
        (untimed, "how long that takes is not known"),
        (custom, "os:mkdir"),
        (without_weights, "dense.safetensors"),
    ],
)
def test_where_show_does_not_read_it_the_command_is_named(
    invoke: Invoke, run: Path, change: Callable[[Path], None], why: str
) -> None:
    change(run)
    shown = invoke("show", str(run))
    assert shown.exit_code == 0, shown.output
    told = " ".join(shown.output.split())
    assert "Barrier dense → ticket, and the like: not read" in told
    assert why in told
    assert f"'tpsprune fidelity {run}' reads it" in told
    assert not (run / "fidelity.json").exists()


def test_the_card_of_an_exported_ticket_has_what_was_read(invoke: Invoke, run: Path) -> None:
    assert invoke("export", str(run), "--to", "before").exit_code == 0
    assert "barrier between their weights: not recorded" in Path("before/README.md").read_text("utf-8")
    assert invoke("fidelity", str(run)).exit_code == 0
    assert invoke("export", str(run), "--to", "after").exit_code == 0
    panel = read_fidelity(run / "fidelity.json")
    text = Path("after/README.md").read_text("utf-8")
    assert f"Beside the dense model on 449 items (test): {panel.agreement:.4f} of the same class" in text
    assert f"the loss rises by {panel.barrier_loss:.4f} above its ends" in text
