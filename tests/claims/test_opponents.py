"""A ticket beside its opponents: what refuses a saving of training, and what is best for the joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.claims.conftest import design, run
from tpsprune.claims import assess
from tpsprune.records import ComparisonRecord, Standing

DENSE = (100.0, 103.0, 98.0, 101.0, 99.0, 102.0)
TICKET = (51.0, 50.0, 49.0, 50.5, 50.0, 51.5)
SCATTER = (0.0002, -0.0002, 0.0001, -0.0001, 0.0003, -0.0003)
WORSE: Mapping[str, float] = {"dense-joules": -0.005, "scratch-joules": -0.006, "uniform-joules": -0.004}


def comparison(
    opponents: Mapping[str, float], joules: Sequence[float] = TICKET, cost_share: float = 1.0
) -> ComparisonRecord:
    """Return dense, ticket and opponents whose accuracy differs so much from the ticket's, pair by pair."""
    runs = []
    for pair, (dense, ticket) in enumerate(zip(DENSE, joules, strict=True)):
        runs += [run("dense", pair, dense), run("ticket", pair, ticket)]
        runs += [
            run(arm, pair, cost_share * ticket * (1 + 10 * SCATTER[pair]), 0.9 + difference + SCATTER[pair])
            for arm, difference in opponents.items()
        ]
    arms = design("dense", "ticket", *opponents)
    return ComparisonRecord(design=arms, runs=tuple(runs), pairs_asked=len(joules))


def test_a_ticket_that_beats_every_opponent_is_a_saving_and_the_sentence_says_so() -> None:
    verdict = assess(comparison(WORSE)).verdict
    assert verdict.standing is Standing.SAVING_MEASURED
    assert verdict.statement.endswith("and no shorter schedule and no smaller net from scratch does as well.")


SHORTER, SMALLER = Standing.SHORTER_SCHEDULE_DOES_AS_WELL, Standing.SMALLER_NET_DOES_AS_WELL


@pytest.mark.parametrize(
    ("opponents", "standing", "code"),
    [
        (WORSE | {"dense-joules": 0.0}, SHORTER, "NOT_BETTER"),
        (WORSE | {"dense-joules": 0.01}, SHORTER, "NOT_BETTER"),
        (WORSE | {"scratch-joules": -0.0001}, SMALLER, "NOT_BETTER"),
        (WORSE | {"uniform-joules": 0.002}, SMALLER, "NOT_BETTER"),
        ({"dense-joules": -0.005}, Standing.INSUFFICIENT_RUNS, "OPPONENT_NOT_RUN"),
        ({"uniform-joules": -0.005}, Standing.INSUFFICIENT_RUNS, "OPPONENT_NOT_RUN"),
        ({}, Standing.INSUFFICIENT_RUNS, "OPPONENT_NOT_RUN"),
    ],
)
def test_an_opponent_that_does_as_well_or_was_not_run_refuses_the_saving(
    opponents: Mapping[str, float], standing: Standing, code: str
) -> None:
    assessed = assess(comparison(opponents))
    assert (assessed.verdict.standing, assessed.verdict.reasons[0].code) == (standing, code)
    assert not any("Training 'ticket'" in sentence for sentence in assessed.may_claim)


def test_a_smaller_net_of_one_kind_is_enough() -> None:
    found = comparison({"dense-joules": -0.005, "uniform-joules": -0.004})
    assert assess(found).verdict.standing is Standing.SAVING_MEASURED


def test_an_opponent_that_was_given_less_is_not_beaten() -> None:
    verdict = assess(comparison(WORSE, cost_share=0.9)).verdict
    assert (verdict.standing, verdict.reasons[0].code) == (SHORTER, "NOT_AT_EQUAL_COST")
    assert assess(comparison(WORSE, cost_share=1.2)).verdict.standing is Standing.SAVING_MEASURED


@pytest.mark.parametrize(
    ("cost_share", "difference", "standing"),
    [
        (0.9, 0.0, SHORTER),
        (1.0, 0.0, SHORTER),
        (1.2, 0.0, Standing.SAVING_MEASURED),
        (0.5, -0.01, Standing.SAVING_MEASURED),
    ],
)
def test_a_dense_model_that_a_rule_ends_is_an_opponent_where_it_costs_no_more(
    cost_share: float, difference: float, standing: Standing
) -> None:
    found = comparison(WORSE)
    stopped = comparison({"dense-stopped": difference}, cost_share=cost_share).runs
    runs = (*found.runs, *(each for each in stopped if each.arm == "dense-stopped"))
    arms = replace(found.design, arms=(*found.design.arms, "dense-stopped"))
    assert assess(replace(found, design=arms, runs=runs)).verdict.standing is standing


def test_an_opponent_that_left_no_model_in_a_pair_is_not_beaten() -> None:
    found = comparison(WORSE)
    runs = tuple(
        replace(each, failure="diverged", accuracy=None)
        if (each.arm, each.pair) == ("dense-joules", 3)
        else each
        for each in found.runs
    )
    verdict = assess(replace(found, runs=runs)).verdict
    assert (verdict.standing, verdict.reasons[0].code) == (SHORTER, "OPPONENT_FAILED")


def test_an_increase_and_an_arm_that_does_not_prune_need_no_opponents() -> None:
    dearer = [2.2 * joules for joules in DENSE]
    assert assess(comparison({}, dearer)).verdict.standing is Standing.COST_INCREASE_MEASURED
    claims = {claim.arm: claim for claim in assess(comparison(WORSE)).claims}
    assert claims["dense-joules"].standing is Standing.SAVING_MEASURED
    assert "shorter schedule" not in claims["dense-joules"].statement


def test_the_answer_names_the_best_for_the_joules_of_the_ticket_and_what_is_as_good() -> None:
    found = assess(comparison(WORSE | {"uniform-joules": 0.001})).answer
    assert found.statement == (
        "For the energy of 'ticket', 'uniform-joules' gave the best model (test accuracy 0.9010, 6 pairs), "
        "beyond the noise. More: 'dense' 0.9000 for 2.00 times as much."
    )
    alike = assess(comparison(WORSE | {"uniform-joules": 0.0001, "dense-joules": 0.0001})).answer.statement
    assert "'ticket' (0.9000) and 'uniform-joules' (0.9001) are not shown to be worse." in alike
    alone = assess(comparison({})).answer.statement
    assert (
        "'ticket' gave the best model (test accuracy 0.9000, 6 pairs); no other arm was run at that cost"
        in alone
    )


def test_the_front_holds_the_arms_that_no_other_beats_in_both() -> None:
    found = assess(comparison(WORSE | {"uniform-joules": 0.001}, cost_share=0.97)).answer
    assert found.front == ("uniform-joules",)
    points = {point.arm: point for point in found.arms}
    ticket = points["ticket"]
    assert ticket.joules == pytest.approx(sum(TICKET) / 6)
    assert (ticket.energy_class, ticket.accuracy_low) == ("measured", pytest.approx(0.9))
    assert points["dense-joules"].accuracy_low < points["dense-joules"].accuracy  # type: ignore[operator]
    dearer = assess(comparison({"dense-joules": -0.01}, cost_share=0.5)).answer
    assert dearer.front == ("dense-joules", "ticket")


def test_the_answer_does_not_hang_on_the_order_of_the_arms() -> None:
    found = comparison(WORSE)
    turned = replace(found, runs=found.runs[::-1])
    assert assess(turned).answer == assess(found).answer
