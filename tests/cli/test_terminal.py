"""A terminal that lacks characters shows ASCII; SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.pipeline.conftest import SMALL
from tests.pipeline.test_resume import assert_same, finish, make_small
from tpsprune.cli import commands, main
from tpsprune.cli.terminal import Terminated, holding_signals
from tpsprune.runs import RunFolder

ENCODINGS = ("ascii", "latin-1", "koi8-r")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_is_shown_where_characters_are_missing(
    encoding: str, trained: RunFolder, here: Path
) -> None:
    lines = [
        *([name, "--help"] for name in commands()),
        ["recipes"],
        ["doctor"],
        ["study"],
        ["check", "small.toml"],
        ["show", str(trained.path)],
        ["show", str(trained.path), str(trained.path)],
        ["train", "small.toml", "--device", "cpu"],
        ["prune", "small.toml", "--weights", str(trained.path), "--dry-run"],
        ["export", str(trained.path), "--to", "ticket"],
        ["train", "λ–中.toml"],
    ]
    for words in lines:
        result = CliRunner(charset=encoding).invoke(main, words)
        assert isinstance(result.exception, SystemExit | None), (words, result.exception)
        assert result.exit_code == (2 if words[-1].startswith("λ") else 0), words
        # Click takes ASCII for a mistake and would write UTF-8.
        result.output_bytes.decode(encoding)
        assert (encoding != "ascii") or result.output_bytes.isascii(), words


def test_what_cannot_be_shown_has_something_that_stands_for_it(here: Path, trained: RunFolder) -> None:
    runner = CliRunner(charset="ascii")
    assert "Error: lamda-\\u4e2d.toml: no such file" in runner.invoke(main, ["train", "λ–中.toml"]).output
    assert "ARM,ARM,..." in runner.invoke(main, ["compare", "--help"]).output
    in_utf8, in_ascii = (
        CliRunner(charset=charset).invoke(main, ["show", str(trained.path)]).output
        for charset in ("utf-8", "ascii")
    )
    assert "▁" in in_utf8
    tables = [line for line in in_ascii.splitlines() if line.startswith(("validation_loss", "train_loss"))]
    assert tables
    assert all(any(block in line for block in "_.:-=+*#") for line in tables)


def test_json_keeps_its_values_where_characters_are_missing(here: Path) -> None:
    def shown(charset: str) -> object:
        return json.loads(CliRunner(charset=charset).invoke(main, ["study", "--json"]).stdout)

    assert shown("ascii") == shown("latin-1") == shown("utf-8")
    assert not json.dumps(shown("utf-8"), ensure_ascii=False).isascii(), "or nothing was tried"


def test_a_path_that_is_no_text_is_shown(here: Path) -> None:
    result = CliRunner().invoke(main, ["train", os.fsdecode(b"\xff.toml")])
    assert "Error: \\udcff.toml: no such file" in result.output


def tpsprune(*words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tpsprune", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def test_bars_are_of_ascii_on_a_terminal_of_ascii(here: Path) -> None:
    with tpsprune(
        *("train", "small.toml", "--device", "cpu"),
        FORCE_COLOR="1",
        PYTHONIOENCODING="ascii",
    ) as child:
        out, err = child.communicate()
    assert child.returncode == 0, err
    assert "----" in out
    assert out.isascii()
    assert "Traceback" not in err


def end_when(child: subprocess.Popen[str], begun: Callable[[], bool]) -> str:
    """Send SIGTERM as soon as something has begun; return what was printed on standard error."""
    while child.poll() is None and not begun():
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate()
    assert "Traceback" not in err
    assert child.returncode == 143, err
    return err


def test_a_run_that_is_terminated_resumes_to_the_same_end(here: Path, trained: RunFolder) -> None:
    with tpsprune("train", "small.toml", "--device", "cpu") as child:
        err = end_when(child, lambda: any(here.glob("runs/*/state/checkpoint.safetensors")))
    assert err == "\nterminated; a run that has begun resumes with --resume\n"
    assert not list(here.rglob("*.tmp*"))
    assert_same(finish(make_small(), here / "runs", resume=True), trained)


def test_an_export_that_is_terminated_leaves_nothing(here: Path, trained: RunFolder) -> None:
    words = ("export", str(trained.path), "--to", "out/ticket", "--format", "torch-export")
    with tpsprune(*words) as child:
        err = end_when(child, lambda: bool(list(here.glob("out/.tmp*"))))
    assert err.endswith("\nterminated\n")
    assert list((here / "out").iterdir()) == []


def test_a_comparison_that_is_terminated_names_the_same_command(here: Path) -> None:
    with tpsprune("compare", "small.toml", "--pairs", "1") as child:
        err = end_when(child, lambda: any(here.glob("reports/*/runs/.tmp*/*/*/*/*/energy.jsonl")))
    assert err == "\nterminated; the same command resumes\n"
    assert not list(here.rglob("*.tmp*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_held_back_acts_afterwards(number: signal.Signals) -> None:
    def end(_: int, __: object) -> None:
        raise Terminated

    before = signal.signal(number, end)
    reached = False

    def work() -> None:
        nonlocal reached
        with holding_signals():
            signal.raise_signal(number)
            reached = True

    try:
        with pytest.raises(Terminated):
            work()
    finally:
        signal.signal(number, before)
    assert reached
