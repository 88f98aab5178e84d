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
