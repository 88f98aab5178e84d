"""``tpsprune family`` as typed: the table, the files, and every word that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import Result

from tpsprune.runs import RunFolder

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    place = import_module("tpsprune.pipeline.family")
    monkeypatch.setattr(place, "LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(place, "INFERENCE_SECONDS", 0.01)


def family(invoke: Invoke, trained: RunFolder, *words: str) -> Result:
    own = (
        "--weights",
        str(trained.path),
        "--device",
        "cpu",
        "--set",
        "prune.repair_steps=2",
        "--to",
        "sizes",
    )
    return invoke("family", "small.toml", *own, *words)


def test_a_table_of_eighty_columns_names_every_size(invoke: Invoke, trained: RunFolder) -> None:
    result = family(invoke, trained, "--sizes", "0.7, 0.4")
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "small: 2 sizes by macs" in result.output
    for size in ("dense", "0.7", "0.4"):
        assert any(line.split()[:1] == [size] for line in result.output.splitlines()), result.output
    assert Path("sizes/0.4/ticket.safetensors").is_file()
    again = family(invoke, trained, "--sizes", "0.7")
    assert again.exit_code == 2
    assert "sizes" in again.output


def test_a_run_folder_is_recipe_and_weights_and_a_size_is_exported_by_what_it_may_cost(
    invoke: Invoke, trained: RunFolder
) -> None:
    own = ("--device", "cpu", "--set", "prune.repair_steps=2", "--to", "sizes", "--sizes")
    result = invoke("family", str(trained.path), *own, "0.6")
    assert result.exit_code == 0, result.output
    grown = invoke("family", str(trained.path), *own, "0.4")
    assert grown.exit_code == 0, grown.output
    assert "sizes has 0.6: going on from there" in " ".join(grown.output.split())
    result = invoke("export", "sizes", "--pick", "latency<=10s", "--pick", "macs<=1G", "--to", "deploy")
    assert result.exit_code == 0, result.output
    assert "size 0.6 was picked" in result.output
    result = invoke("export", "sizes", "--pick", "latncy<=5ms", "--to", "other")
    assert result.exit_code == 2
    assert "--pick: latncy<=5ms: no figure 'latncy' (did you mean 'latency'?)" in result.output


def test_code_that_a_run_folder_names_is_not_run(invoke: Invoke, trained: RunFolder) -> None:
    shutil.copytree(trained.path, "elsewhere")
    text = Path("elsewhere/recipe.toml").read_text()
    begin = text.index("[task.model]")
    end = text.index("\n[", begin)
    custom = '[task.model]\nkind = "custom"\nfactory = "os:abort"\n'
    Path("elsewhere/recipe.toml").write_text(text[:begin] + custom + text[end:])
    result = invoke("family", "elsewhere", "--sizes", "0.5", "--to", "sizes")
    assert result.exit_code == 2, result.output
    assert "the recipe in elsewhere calls code: give your own recipe" in " ".join(result.output.split())


def test_programs_get_a_line_an_event_and_last_the_family(invoke: Invoke, trained: RunFolder) -> None:
    result = family(invoke, trained, "--sizes", "0.6", "--by", "params", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-1]["event"] == "familyfinished"
    assert lines[-1]["family"]["by"] == "params"
    assert lines[-1]["family"] == json.loads(Path("sizes/family.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sizes", "0.5,x"), "Invalid value for --sizes: macs=x: a number above 0 and below 1 is needed"),
        (("--sizes", "0.5,2"), "macs=2: a share above 0 and below 1 is needed"),
        (("--sizes", "0.5", "--within", "latncy<=5ms"), "did you mean 'latency'"),
        (("--sizes", "0.5", "--by", "mac"), "'mac' is not one of"),
        (("--sizes", "0.5", "--set", "prune.low_rank=true"), "low_rank"),
        (("--sizes", "0.00001"), "cannot be reached"),
        ((), "Missing option '--sizes'"),
    ],
)
def test_what_cannot_be_is_one_message_and_no_folder(
    invoke: Invoke, trained: RunFolder, words: tuple[str, ...], message: str
) -> None:
    result = family(invoke, trained, *words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not Path("sizes").exists()
