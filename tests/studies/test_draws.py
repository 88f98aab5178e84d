"""Rules of drawing on made-up trainings: the hold at work, and all readings of a moment seen at once."""

from __future__ import annotations

from tests.studies.test_lead_time import watched
from tpsprune.recipe.stop import ChangeRule, ConsensusRule, PlateauRule, Stop
from tpsprune.studies.draws import DRAWS, Draw, draw, draw_table
from tpsprune.studies.watched import Watched

CALM = [4.0] * 8
LEARNS = [0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.8, 0.95]
NEVER = [0.02] * 8


def training(accuracies: list[float], arm: str = "add", reached: int | None = 80) -> Watched:
    return watched(arm, 1, reached, {"d_eff": [*CALM], "validation_accuracy": [*accuracies]})


def test_a_calm_signal_draws_once_half_of_the_way_is_covered_and_not_before() -> None:
    assert draw(PlateauRule(), training(LEARNS), 0.1) == Draw(60, 0.6)
    assert draw(PlateauRule(learned_share=0.0), training(LEARNS), 0.1) == Draw(30, 0.0)
    assert draw(PlateauRule(), training(NEVER), 0.01) is None
    # What chance scores is no part of the way.
    assert draw(PlateauRule(), training(LEARNS), 0.5) == Draw(70, 0.8)


def test_rules_of_several_signals_see_them_at_the_same_moment() -> None:
    falls = [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 4.0, 4.0]
    both = ConsensusRule(rules=(PlateauRule(), ChangeRule(signal="norm", factor=2.0)))
    found = watched("add", 1, 80, {"d_eff": [*CALM], "norm": [*falls], "validation_accuracy": [*LEARNS]})
    assert draw(both, found, 0.1) == Draw(70, 0.8)


def test_the_table_counts_draws_before_the_level_in_vain_and_in_ordinary_work() -> None:
    chances = {"add": 0.01, "a3+ab": 0.01, "digits": 0.1}
    table = draw_table(
        [training(LEARNS), training([*NEVER[:7], 0.95])],
        [training(NEVER, "a3+ab", None), training(NEVER, "a3+ab", None)],
        [training([0.7] * 8, "digits", None)],
        chances,
    )
    rows = {row[0]: row[2:] for row in table.rows}
    assert list(rows) == list(DRAWS)
    assert rows["default"] == ("2 of 2", "10", "0.77", "0 of 2", "1 of 1", "0.700")
    assert rows["loops"] == ("0 of 2", "", "", "0 of 2", "0 of 1", "")


def test_the_default_of_a_recipe_is_the_first_that_is_tried() -> None:
    assert next(iter(DRAWS.items())) == ("default", Stop().draw)
