"""Sections and rules from Python, and callables by dotted path."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from tpsprune.errors import RecipeError
from tpsprune.recipe.settings import read_rule, read_section
from tpsprune.recipe.stop import (
    ChangeRule,
    ConsensusRule,
    EpochRule,
    MaskRule,
    NoRule,
    PatienceRule,
    PlateauRule,
    ReopenRule,
    Rule,
    ThresholdRule,
)
from tpsprune.recipe.train import Tps
from tpsprune.recipe.user_code import call, resolve

RULES = [
    NoRule(),
    EpochRule(epoch=2.0),
    PlateauRule(tolerance=0.1),
    PatienceRule(mode="max"),
    ThresholdRule(monitor="norm", threshold=1.0),
    MaskRule(),
    ChangeRule(monitor="norm"),
    ReopenRule(),
    ConsensusRule(rules=(PlateauRule(), MaskRule(threshold=0.2)), within=3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_a_rule_as_a_value_or_as_fields_is_that_rule(rule: Rule) -> None:
    words = {field.name: getattr(rule, field.name) for field in fields(rule)}
    if isinstance(rule, ConsensusRule):
        words["rules"] = [{"rule": "plateau"}, {"rule": "mask", "threshold": 0.2}]
    assert read_rule(rule, "draw", "Watch") == read_rule(words, "draw", "Watch") == rule


def test_every_rule_of_a_recipe_can_be_read() -> None:
    assert {type(rule) for rule in RULES} == set(get_args(get_args(Rule)[0]))


def test_a_fault_within_a_read_rule_rules_has_its_place() -> None:
    rule = ConsensusRule(rules=(PlateauRule(), PlateauRule(patience=1)))
    with pytest.raises(RecipeError, match=r"Watch: draw\.rules\.1\.patience: must be greater"):
        read_rule(rule, "draw", "Watch")


def test_a_section_holds_its_fields_and_defaults_for_the_rest() -> None:
    assert read_section(Tps, "tps", {"coupling": 0.5, "layers": ["a"]}, "TPS") == Tps(
        coupling=0.5, layers=("a",)
    )


def test_every_fault_of_a_section_is_reported_without_a_section_that_nobody_typed() -> None:
    with pytest.raises(RecipeError) as caught:
        read_section(Tps, "tps", {"coupling": -1.0, "varient": "labels"}, "TPS")
    assert [fault.place for fault in caught.value.faults] == ["coupling", "varient"]
    assert "did you mean 'variant'?" in str(caught.value)


PLACE = "task.model.factory"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder to write modules into."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_callable_in_the_current_folder_is_found(at_home: Path) -> None:
    (at_home / "my_own_code.py").write_text("class Nets:\n    def make(n): return n + 1\n")
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
def test_a_path_that_leads_nowhere_is_reported_with_its_place(path: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolve(path, PLACE)


def test_what_the_users_code_raises_is_reported_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"'math:sqrt' raised TypeError: .*keyword"):
        call("math:sqrt", {"x": 1}, PLACE)


def test_code_that_would_end_the_program_or_breaks_on_import_is_reported(at_home: Path) -> None:
    (at_home / "ends_the_program.py").write_text("def make(): raise SystemExit(7)\n")
    (at_home / "ends_it_on_import.py").write_text("raise SystemExit(9)\n")
    (at_home / "breaks_on_import.py").write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(RecipeError, match=r"'ends_the_program:make' raised SystemExit: 7"):
        call("ends_the_program:make", {}, PLACE)
    with pytest.raises(RecipeError, match=r"'ends_it_on_import' does not import: SystemExit: 9"):
        resolve("ends_it_on_import:x", PLACE)
    with pytest.raises(RecipeError, match=r"'breaks_on_import' does not import: RuntimeError: no licence"):
        resolve("breaks_on_import:x", PLACE)
