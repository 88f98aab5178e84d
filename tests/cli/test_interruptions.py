"""What comes in the way of a run: a full disk, a closed output, an interrupt; each has its words."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from tests.cli.test_door import Invoke, assert_refused
from tests.pipeline.conftest import SMALL
from tpsprune.cli import main


def test_a_full_disk_is_reported_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the checkpoint is the first to hit it."""
    (tmp_path / "small.toml").write_text(SMALL)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "from tpsprune.cli import main\n"
        "main(['train', 'small.toml', '--quiet', '--device', 'cpu'])\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert child.returncode == 2, child.stderr
    assert "Traceback" not in child.stderr
    assert "Error: " in child.stderr
    assert "--resume" in child.stderr
    assert not list(tmp_path.rglob("*.tmp*"))
    again = CliRunner().invoke(
        main, ["train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "runs"), "--resume", "--quiet"]
    )
    assert again.exit_code == 0, again.output


def test_an_interrupt_ends_with_how_to_resume(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    import tpsprune.pipeline

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tpsprune.pipeline, "train", interrupted)
    result = invoke("train", "small.toml", "--quiet")
    assert result.exit_code == 130
    assert "--resume" in result.output


def test_an_interrupt_of_a_command_that_runs_nothing_promises_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tpsprune.pipeline

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tpsprune.pipeline, "check", interrupted)
    result = invoke("check", "small.toml")
    assert (result.exit_code, result.output) == (130, "\ninterrupted\n")


def test_an_interrupt_at_a_question_leaves_nothing(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise click.Abort

    monkeypatch.setattr("click.prompt", interrupted)
    monkeypatch.setattr(import_module("tpsprune.cli.init"), "sys", SimpleNamespace(stdin=Terminal()))
    before = sorted(tmp_path.iterdir())
    result = invoke("init", "--model", "cnn", "--data", "digits", "--target", "macs=0.5", "--epochs", "2")
    assert (result.exit_code, result.output) == (130, "\ninterrupted\n")
    assert sorted(tmp_path.iterdir()) == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "words",
    [("export", "a" * 300, "--to", "x"), ("check", "small.toml", "--weights", "a" * 300)],
    ids=["export", "check"],
)
def test_a_path_that_cannot_be_read_is_reported(invoke: Invoke, words: tuple[str, ...]) -> None:
    assert_refused(invoke(*words), "cannot read aaa", "File name too long; use another path")


def test_an_output_that_is_closed_ends_the_run_with_how_to_resume(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    command = f"{sys.executable} -m tpsprune train small.toml --device cpu | head -n 1"
    child = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 2, child.stderr
    assert (
        "the output cannot be written (Broken pipe); a run that has begun resumes with --resume"
        in child.stderr
    )
    assert "Traceback" not in child.stderr


def test_a_listing_cut_short_by_its_reader_ends_silently(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tpsprune check digits --print | head -n 1"
    child = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert child.stdout == 'name = "digits"\n'
    assert child.stderr == ""


def test_a_picture_that_cannot_be_written_takes_nothing_from_the_result(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpsprune.errors import CannotWriteError
    from tpsprune.report import pictures

    def full(run: Path) -> None:
        raise CannotWriteError("no space left on the device while writing signals.svg; free some")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "plot_run", full)
        result = invoke("train", "small.toml", "--device", "cpu")
    assert result.exit_code == 0
    assert "Note: no picture: no space left" in result.output
    assert "Picture:" not in result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert invoke("show", str(folder), "--picture").exit_code == 0
    assert "Picture:" in invoke("show", str(folder)).output
