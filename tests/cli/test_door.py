"""The door: quick help, one message per fault, exit code 2, no traceback, nothing half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tpsprune.cli import commands, main

Invoke = Callable[..., Result]


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    text = " ".join(result.output.split())
    for word in words:
        assert word in text, result.output


def test_help_and_recipe_faults_load_no_torch() -> None:
    code = (
        "import sys, click.testing, tpsprune.cli as c\n"
        "run = lambda *w: click.testing.CliRunner().invoke(c.main, w)\n"
        "assert run('--help').exit_code == 0\n"
        "assert all(run(name, '--help').exit_code == 0 for name in c.commands())\n"
        "assert run('recipes').exit_code == 0\n"
        "assert run('train', 'digits', '--set', 'train.epochs=0').exit_code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_of_the_package_loads_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, tpsprune; assert 'torch' not in sys.modules"], check=True
    )


def test_without_a_compiler_there_is_one_message_and_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tpsprune", "train", "digits", "--set", "train.compile=true"]
    done = subprocess.run(
        [*command, "--out", str(out), "--device", "cpu", "--set", "energy.meter=none"],
        env={**os.environ, "CXX": "/nowhere/c++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: train.compile: torch.compile does not work here: ")
    assert last.endswith("install a C++ compiler (g++, or one that CXX names), or use train.compile = false")
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_every_command_teaches_by_example(invoke: Invoke) -> None:
    for command in commands():
        text = invoke(command, "--help").output
        if command != "recipes":
            assert "Example" in text, command


def test_the_options_are_these_and_no_others() -> None:
    found = {
        name: sorted(option for p in command.params for option in p.opts if option.startswith("--"))
        for name in commands()
        if (command := main.get_command(None, name)) is not None  # type: ignore[arg-type]
    }
    assert found == {
        "train": ["--again", "--device", "--json", "--out", "--quiet", "--resume", "--set"],
        "prune": [
            "--again",
            "--device",
            "--dry-run",
            "--json",
            "--out",
            "--quiet",
            "--resume",
            "--set",
            "--target",
            "--weights",
        ],
        "family": [
            "--by",
            "--device",
            "--json",
            "--quiet",
            "--set",
            "--sizes",
            "--to",
            "--weights",
            "--within",
        ],
        "repair": ["--device", "--json", "--like", "--quiet", "--set", "--to"],
        "transfer": [
            "--device",
            "--epochs",
            "--from",
            "--json",
            "--no-cut",
            "--quiet",
            "--set",
            "--target",
            "--to",
        ],
        "compare": [
            "--arms",
            "--carbon-intensity",
            "--carbon-source",
            "--country",
            "--device",
            "--from",
            "--gate",
            "--json",
            "--machines",
            "--out",
            "--pairs",
            "--per-day",
            "--quiet",
            "--redo",
            "--set",
            "--sizes",
        ],
        "report": [
            "--carbon-intensity",
            "--carbon-source",
            "--country",
            "--forget",
            "--gate",
            "--json",
            "--per-day",
            "--wall-meter",
        ],
        "init": ["--data", "--epochs", "--file", "--model", "--name", "--target"],
        "check": ["--device", "--json", "--no-widths", "--print", "--set", "--weights"],
        "recipes": ["--json"],
        "show": ["--json", "--picture"],
        "fidelity": ["--device", "--items", "--json", "--trust-code"],
        "export": [
            "--carbon-intensity",
            "--carbon-source",
            "--country",
            "--format",
            "--json",
            "--pick",
            "--to",
            "--trust-code",
        ],
        "study": ["--cap", "--full", "--images", "--json", "--out", "--seeds", "--theory", "--workers"],
        "doctor": ["--json"],
    }


def test_an_unknown_command_is_reported_with_the_nearest(invoke: Invoke) -> None:
    assert_refused(invoke("trian"), "no command 'trian' (did you mean 'train'?)")
    ours = (
        "train, prune, family, repair, transfer, compare, report, init, check, recipes, show, fidelity, "
        "export, doctor"
    )
    commands = f"{ours}, study"
    assert_refused(invoke("zzz"), f"no command 'zzz' (commands: {commands})")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digitz",), "digitz: no such file, and no shipped recipe of that name (did you mean 'digits'?)"),
        (("missing.toml",), "Error: missing.toml: no such file"),
        ((".",), "Error: .: is a folder; a recipe is a TOML file"),
        (("small.toml", "--set", "train.epochs=0"), "train.epochs: must be greater than 0"),
        (("small.toml", "--set", "prune.target.macs=0.001"), "prune.target macs=0.001 cannot be reached"),
        (("small.toml", "--set", "prune.ignored_layers=['nope*']"), "'nope*'"),
        (("small.toml", "--set", "tps.variant=labels"), "What fits: weights, neurons, moments, bn-l1."),
        (
            ("small.toml", "--set", "task.data={kind='idx', folder='/nowhere'}"),
            "apt-get install dataset-fashion-mnist",
        ),
        (
            ("small.toml", "--set", "task.model={kind='transformer'}"),
            "transformer",
        ),
        (
            ("small.toml", "--set", "task.model={kind='custom', factory='nomodule:make'}"),
            "task.model.factory: 'nomodule' does not import: ModuleNotFoundError",
        ),
        (("small.toml", "--resume"), "no run of this recipe in runs"),
        (("small.toml", "--resume", "--again"), "choose one of them"),
        (("small.toml", "--quiet", "--json"), "choose one of them"),
        (("small.toml", "--out", "small.toml"), "small.toml"),
        (("small.toml", "--device", "tpu"), "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    ],
)
def test_a_train_that_cannot_be_is_refused_before_anything_is_written(
    invoke: Invoke, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    assert_refused(invoke("train", *words), message)
    assert not (tmp_path / "runs").exists()


CUSTOM = """
import torch
from torch import nn

def wrong_classes(classes=7):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def raises():
    raise RuntimeError("out of order")

def ends_the_program():
    raise SystemExit(7)

def not_a_model():
    return "a model"

not_callable = 3

def no_batch():
    return nn.Sequential(nn.Flatten(0), nn.Linear(64 * 8, 10))
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_classes", "7"),
        ("raises", "small.toml: task.model.factory: 'my_nets:raises' raised RuntimeError: out of order"),
        ("ends_the_program", "raised SystemExit: 7"),
        ("not_a_model", "str"),
        ("not_callable", "'my_nets:not_callable' is a int, not something to call"),
        ("absent", "'my_nets' has no 'absent'"),
    ],
)
def test_a_model_of_the_users_own_that_does_not_fit_is_reported(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "my_nets.py").write_text(CUSTOM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("my_nets", None)
    result = invoke("train", "small.toml", "--set", f"task.model={{kind='custom', factory='my_nets:{name}'}}")
    assert_refused(result, message)
    assert not (tmp_path / "runs").exists()


def test_check_lists_what_can_be_pruned_and_writes_nothing(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("check", "small.toml")
    assert result.exit_code == 0, result.output
    assert "Can be pruned" in result.output
    assert "head: " in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"small.toml"}
    found = json.loads(invoke("check", "small.toml", "--json").output)
    assert found["schema"] == "tpsprune.check/1"
    assert [group["width"] for group in found["groups"]] == [12, 16]


def test_check_prints_the_resolved_recipe_which_reads_back(invoke: Invoke, tmp_path: Path) -> None:
    text = invoke("check", "small.toml", "--set", "seed=4", "--print").output
    (tmp_path / "again.toml").write_text(text)
    assert invoke("check", "again.toml", "--print").output == text
    assert "seed = 4" in text


def test_a_run_shows_lines_tables_and_the_two_commands_to_type_next(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("train", "small.toml", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines()) <= 80 or "runs/" in result.output
    for word in (
        "Draw at epoch 2.5",
        "Widths",
        "test accuracy",
        "MACs per item",
        "latency, batch 64",
        "file size",
        "simulated",
        "projection",
        "Share of the training CPU time",
        "Run folder: ",
    ):
        assert word in result.output, word
    show, export = (line.split() for line in result.output.splitlines()[-2:])
    shown = invoke(*show[1:])
    assert shown.exit_code == 0, shown.output
    assert "Draw at epoch 2.5" in shown.output
    exported = invoke(*export[1:])
    assert exported.exit_code == 0, exported.output
    assert "largest difference 0" in exported.output
    assert_refused(invoke(*export[1:]), "is there already and not empty")


def test_json_is_one_object_per_line_and_the_last_is_the_result(invoke: Invoke, tmp_path: Path) -> None:
    lines = invoke("train", "small.toml", "--json", "--device", "cpu").output.splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "phasestarted"
    (folder,) = (tmp_path / "runs").iterdir()
    last = {key: value for key, value in events[-1].items() if key != "event"}
    assert last == json.loads((folder / "result.json").read_text())


def test_quiet_shows_nothing(invoke: Invoke) -> None:
    result = invoke("train", "small.toml", "--quiet", "--device", "cpu")
    assert result.exit_code == 0
    assert result.output == ""


@pytest.mark.parametrize("command", ["show", "export"])
def test_a_folder_that_is_no_run_is_refused(invoke: Invoke, tmp_path: Path, command: str) -> None:
    more = ("--to", "out") if command == "export" else ()
    assert_refused(invoke(command, "nowhere", *more), "nowhere is not there")
    (tmp_path / "empty").mkdir()
    assert_refused(invoke(command, "empty", *more), "empty is not a run folder")


def test_cuda_where_there_is_none_is_refused(invoke: Invoke) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert_refused(invoke("train", "small.toml", "--device", "cuda"), "--device cuda: no CUDA device")
