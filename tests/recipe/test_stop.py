"""Rules over several rules, as a recipe writes them."""

from __future__ import annotations

import pytest

from tests.recipe.test_read import LEAST, faults
from tpsprune import recipe
from tpsprune.recipe.schema import signal_names
from tpsprune.recipe.stop import ConsensusRule, MaskRule, ReopenRule

TOGETHER = f"""{LEAST}
[watch]
signals = ["d_eff", "mask_distance", "spectral_edge", "condensation"]

[stop.draw]
rule = "consensus"
at_least = 1

[[stop.draw.rules]]
rule = "mask"
level = 0.2

[[stop.draw.rules]]
rule = "reopen"
"""


def test_a_consensus_is_read_and_written() -> None:
    read = recipe.parse(TOGETHER, "r.toml")
    assert read.stop.draw == ConsensusRule(rules=(MaskRule(level=0.2), ReopenRule()), at_least=1)
    assert recipe.parse(recipe.dumps(read), "again") == read


def test_every_signal_may_be_watched_and_ruled_on() -> None:
    names = signal_names(recipe.parse(TOGETHER, "r.toml"))
    assert {"mask_distance", "condensation", "spectral_edge_k"} <= set(names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("at_least = 1", "at_least = 3", "stop.draw.at_least: asks for 3 of 2 rules"),
        (
            '"mask_distance", ',
            "",
            "stop.draw.rules.0.signal: 'mask_distance' is not read in this recipe "
            "(read here: train_loss, validation_loss, validation_accuracy, d_eff, spectral_edge, "
            "spectral_edge_k, gap_23, condensation)",
        ),
        (
            'rule = "reopen"',
            'rule = "epoch"\nepoch = 9',
            "stop.draw.rules.1.epoch: is after train.epochs = 4 (found 9)",
        ),
        (
            'rule = "reopen"',
            'rule = "repoen"',
            "stop.draw.rules.1: unknown 'rule' 'repoen' (did you mean 'reopen'?); one of 'none', 'epoch', "
            "'plateau', 'patience', 'threshold', 'mask', 'change', 'reopen'",
        ),
        ("level = 0.2", "levl = 0.2", "stop.draw.rules.0.levl: unknown key (did you mean 'level'?)"),
    ],
)
def test_a_fault_of_a_rule_among_several_is_told_with_its_place(old: str, new: str, words: str) -> None:
    assert faults(TOGETHER.replace(old, new)) == [words]


def test_one_rule_is_no_consensus() -> None:
    alone = TOGETHER.replace('[[stop.draw.rules]]\nrule = "reopen"\n', "")
    assert faults(alone) == ["stop.draw.rules: needs at least 2"]
