"""Sections and rules from Python meet the bounds and the words of a recipe."""

from __future__ import annotations

from dataclasses import fields
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

RULES = [
    NoRule(),
    EpochRule(epoch=2.0),
    PlateauRule(tolerance=0.1),
    PatienceRule(goal="rise"),
    ThresholdRule(signal="norm", level=1.0),
    MaskRule(),
    ChangeRule(signal="norm"),
    ReopenRule(),
    ConsensusRule(rules=(PlateauRule(), MaskRule(level=0.2)), within=3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_a_rule_given_as_a_value_or_in_words_is_that_rule(rule: Rule) -> None:
    words = {field.name: getattr(rule, field.name) for field in fields(rule)}
    if isinstance(rule, ConsensusRule):
        words["rules"] = [{"rule": "plateau"}, {"rule": "mask", "level": 0.2}]
    assert read_rule(rule, "draw", "Watch") == read_rule(words, "draw", "Watch") == rule


def test_every_read_rule_a_recipe_may_be_given() -> None:
    assert {type(rule) for rule in RULES} == set(get_args(get_args(Rule)[0]))


def test_a_fault_within_a_read_rule_rules_has_its_place() -> None:
    rule = ConsensusRule(rules=(PlateauRule(), PlateauRule(patience=1)))
    with pytest.raises(RecipeError, match=r"Watch: draw\.rules\.1\.patience: must be greater"):
        read_rule(rule, "draw", "Watch")


def test_a_section_holds_what_is_given_and_defaults_for_the_rest() -> None:
    assert read_section(Tps, "tps", {"coupling": 0.5, "layers": ["a"]}, "TPS") == Tps(
        coupling=0.5, layers=("a",)
    )


def test_every_fault_of_a_section_is_told_without_a_section_that_nobody_typed() -> None:
    with pytest.raises(RecipeError) as caught:
        read_section(Tps, "tps", {"coupling": -1.0, "varient": "labels"}, "TPS")
    assert [fault.place for fault in caught.value.faults] == ["coupling", "varient"]
    assert "did you mean 'variant'?" in str(caught.value)
