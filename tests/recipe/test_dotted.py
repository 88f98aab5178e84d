"""A dotted path is the one thing in a recipe that runs code; whatever goes wrong there has words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tpsprune.errors import RecipeError
from tpsprune.recipe.user_code import call, resolve

PLACE = "task.model.factory"


def test_a_callable_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_code.py").write_text(
        "class Nets:\n    @staticmethod\n    def make(n): return n + 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert call("my_own_code:Nets.make", {"n": 2}, PLACE) == 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("math.sqrt", r"recipe: task.model.factory: wants 'package.module:function', found 'math.sqrt'"),
        (":x", r"wants 'package.module:function', found ':x'"),
        ("no_such_module:x", r"'no_such_module' does not import: ModuleNotFoundError: No module named"),
        ("math:sqroot", r"'math' has no 'sqroot'"),
        ("math:pi", r"'math:pi' is a float, not something to call"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_with_its_place(path: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolve(path, PLACE)


def test_what_the_users_code_raises_is_told_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"'math:sqrt' raised TypeError: .*keyword"):
        call("math:sqrt", {"x": 1}, PLACE)


def test_code_that_would_end_the_program_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_the_program.py").write_text("def make(): raise SystemExit(7)\n")
    (tmp_path / "ends_it_on_import.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RecipeError, match=r"'ends_the_program:make' raised SystemExit: 7"):
        call("ends_the_program:make", {}, PLACE)
    with pytest.raises(RecipeError, match=r"'ends_it_on_import' does not import: SystemExit: 9"):
        resolve("ends_it_on_import:x", PLACE)


def test_a_module_that_breaks_on_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RecipeError, match=r"'breaks_on_import' does not import: RuntimeError: no licence"):
        resolve("breaks_on_import:x", PLACE)
