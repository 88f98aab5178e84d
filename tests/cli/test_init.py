"""``tpsprune init``: asked at a terminal, told by options, and what it writes is sound."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import tpsprune

Invoke = Callable[..., Result]


def words(**changed: str) -> list[str]:
    answers = {"model": "cnn", "data": "digits", "target": "macs=0.5", "epochs": "3", "name": "mine"}
    return [word for key, value in {**answers, **changed}.items() for word in (f"--{key}", value)]


def refused(result: Result, *told: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    shown = " ".join(result.output.replace("│", " ").split())
    for each in told:
        assert each in shown, shown
    assert [path.name for path in Path.cwd().iterdir()] == ["small.toml"]


FITTING = [
    *[(model, "digits") for model in ("cnn", "resnet", "mlp")],
    ("mlp", "modular"),
    ("transformer", "modular"),
]


@pytest.mark.parametrize(("model", "data"), FITTING)
def test_what_needs_nothing_from_outside_passes_check(invoke: Invoke, model: str, data: str) -> None:
    made = invoke("init", *words(model=model, data=data))
    assert made.exit_code == 0, made.output
    checked = invoke("check", "mine.toml", "--json", "--no-widths", "--device", "cpu")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.output)["groups"]


def test_a_model_of_the_users_own_passes_check(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "init_nets.py").write_text(
        "from torch import nn\n\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert invoke("init", *words(model="init_nets:make", target="params=0.6")).exit_code == 0
    checked = invoke("check", "mine.toml", "--json", "--device", "cpu")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.output)["cost_share"] <= 0.6


def test_it_names_the_next_two_commands(invoke: Invoke) -> None:
    assert invoke("init", *words()).output.splitlines() == [
        "Recipe: mine.toml",
        "Next:",
        "  tpsprune check mine.toml",
        "  tpsprune train mine.toml",
    ]
    prune = invoke("init", *words(epochs="0"), "--file", "in here.toml")
    assert prune.output.splitlines()[-1] == "  tpsprune prune 'in here.toml' --weights MODEL.safetensors"


def test_a_file_that_is_there_is_never_overwritten(invoke: Invoke) -> None:
    Path("mine.toml").write_text("mine")
    result = invoke("init", *words())
    assert result.exit_code == 2
    assert "mine.toml: is there already: use another --name or --file" in result.output
    assert Path("mine.toml").read_text() == "mine"


def test_where_no_question_can_be_asked_what_is_missing_is_named(invoke: Invoke) -> None:
    refused(
        invoke("init", "--model", "cnn", "--epochs", "3"),
        "no questions can be asked here (standard input is no terminal): give --data, --target, --name",
    )


def test_every_fault_is_reported_at_once(invoke: Invoke) -> None:
    refused(
        invoke("init", *words(model="cn", data="digit", target="mac=2", epochs="some", name="My Model")),
        "tpsprune init has 5 faults",
        "--model: 'cn' is none of",
        "(did you mean 'digits'?)",
        "--target: 'mac=2' is no target (did you mean 'macs'?)",
        "--epochs: 'some' is no number of epochs",
        "--name: 'My Model' is no name: use lower-case letters",
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"target": "macs=2"}, "a share above 0 and below 1 is needed"),
        ({"epochs": "-1"}, "'-1' is no number of epochs"),
        ({"model": "transformer"}, "'transformer' takes tokens, 'digits' gives grey images"),
        ({"model": "timm"}, "expected timm:NAME"),
    ],
)
def test_nonsense_is_refused(invoke: Invoke, changed: dict[str, str], told: str) -> None:
    refused(invoke("init", *words(**changed)), told)


def test_a_folder_that_is_not_there_is_reported(invoke: Invoke) -> None:
    refused(invoke("init", *words(), "--file", "nowhere/mine.toml"), "nowhere")


def test_at_a_terminal_five_questions_are_asked_and_a_wrong_answer_asked_again(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tpsprune", "init"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(tpsprune.__file__).parents[1])},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        os.close(theirs)
        os.write(ours, b"cn\nmlp\nmodular\nparams=0.4\n\nasked\n")
        output, _ = running.communicate(timeout=120)
    os.close(ours)
    assert running.returncode == 0, output
    assert "did you mean 'cnn'?" in output
    assert output.count("Which model [cnn]") == 2
    assert "timm:NAME" in output
    text = (tmp_path / "asked.toml").read_text()
    assert 'kind = "modular"' in text
    assert "epochs = 10" in text
    assert "target = { params = 0.4 }" in text


def test_a_link_that_leads_nowhere_is_not_written_over(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").symlink_to("elsewhere")
    result = invoke("init", *words())
    assert (result.exit_code, "mine.toml: is there already" in result.output) == (2, True)
    assert (tmp_path / "mine.toml").is_symlink()


def test_a_file_with_too_long_a_name_is_reported(invoke: Invoke) -> None:
    refused(invoke("init", *words(), "--file", "a" * 300), "File name too long")
