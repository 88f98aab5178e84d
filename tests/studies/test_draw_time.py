"""Tickets made up, and those of a study small enough to run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.studies.conftest import Conducted, tiny_setup
from tpsprune_studies import draw_time
from tpsprune_studies.draw_time import TicketTraining, TicketTrial
from tpsprune_studies.finding import Ruling


def make(steps: dict[str, int], *, missing: str = "") -> list[TicketTraining]:
    """Every training of the plan; a negative number of steps never got there."""
    found = []
    for trial in draw_time.plan(tiny_setup(draw_time), []).trials:
        assert isinstance(trial, TicketTrial)
        taken = steps.get(trial.moment, 1000)
        found.append(
            TicketTraining(
                trial=trial,
                drawn_step=None if trial.moment == missing else 300,
                steps=abs(taken) + trial.seed,
                reached=taken > 0,
                accuracy=0.9 + 0.01 * trial.seed,
                macs_share=0.5,
                seconds=1.0,
            )
        )
    return found


@pytest.mark.parametrize(
    ("steps", "ruling"),
    [
        ({"after": 300}, Ruling.CONFIRMED),
        ({"after": 300, "init": -2000}, Ruling.CONFIRMED),
        ({"after": 300, "memorising": 100}, Ruling.REFUTED),
        ({"after": 300, "memorising": -100}, Ruling.UNDECIDED),
        ({"after": -300}, Ruling.UNDECIDED),
    ],
)
def test_the_last_ticket_must_be_faster_than_every_other(steps: dict[str, int], ruling: Ruling) -> None:
    assert draw_time.conclude(tiny_setup(draw_time), make(steps), {}).ruling is ruling


def test_a_moment_that_never_came_decides_nothing() -> None:
    found = draw_time.conclude(tiny_setup(draw_time), make({"after": 300}, missing="transition"), {})
    assert found.ruling is Ruling.UNDECIDED
    assert "transition / after" not in [quantity.name for quantity in found.quantities]
    assert "| transition |  | never drawn | never drawn |" in found.render_page()


def test_ratios_are_told_with_what_bounds_them() -> None:
    found = draw_time.conclude(tiny_setup(draw_time), make({"after": 500, "dense": -2000}), {})
    assert "dense at least 3.99 (" in found.sentence
    assert "random 2.00 (" in found.sentence
    assert "| 0 | 0.9150 | " in found.render_page()


def test_tickets_are_drawn_in_order_and_cost_half(conducted: Callable[[str], Conducted]) -> None:
    found = conducted("draw-time").finding
    drawn = {each.trial.arm: each for each in found.trainings if isinstance(each, TicketTraining)}
    assert drawn["dense"].macs_share == 1.0
    assert all(each.macs_share <= 0.5 for name, each in drawn.items() if name != "dense")
    assert drawn["init"].drawn_step == 0
    after, transition = drawn["after"].drawn_step, drawn["transition"].drawn_step
    assert (after or 0) > (transition or 0) > 0
    assert (drawn["digits, epoch 1"].drawn_step or 0) * 3 == drawn["digits, epoch 3"].drawn_step
