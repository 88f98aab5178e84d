"""Other power models, and when a training has paid back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.claims.conftest import MEASURED, MODELLED, window
from tpsprune.claims.assess import break_even
from tpsprune.claims.change import band_of
from tpsprune.records import BreakEven, EnergyClass, Window


def spent(seconds: float, own: float, machine: float | None) -> Window:
    return replace(
        window(1.0, seconds=seconds),
        cpu_seconds=own,
        machine_cpu_seconds=machine,
        joules={"cpu": 1.0, "ram": 1.0},
        classes={"cpu": EnergyClass.MODELLED, "ram": EnergyClass.CONSTANT},
    )


def test_a_band_is_its_closed_form() -> None:
    # Dense: 10 s at load 1/2 of 2 processors; ticket: 6 s at full load.
    pairs = [(((spent(6.0, 12.0, 12.0),), 1.0), ((spent(10.0, 10.0, 10.0),), 1.0))]
    band = {point.model: point.saving_share for point in band_of(pairs, MODELLED, 2)}
    assert band["8 W, own load, RAM 20 W"] == pytest.approx(1 - (8 * 6 + 20 * 6) / (8 * 0.5 * 10 + 200))
    cubic = 0.1 + 0.9 * 0.5**3
    assert band["40 W, machine load, cubic, RAM 10 W"] == pytest.approx(
        1 - (40 * 6 + 10 * 6) / (40 * cubic * 10 + 100)
    )
    assert len(band) == 12


def test_at_equal_load_every_model_gives_the_saving_of_time() -> None:
    pairs = [(((spent(5.0, 5.0, 6.0),), 1.0), ((spent(10.0, 10.0, 12.0),), 1.0))]
    assert {round(point.saving_share, 9) for point in band_of(pairs, MODELLED, 2)} == {0.5}


def test_what_is_measured_is_not_computed_again() -> None:
    counter = replace(window(3.0), classes={"cpu": EnergyClass.MEASURED})
    assert band_of([(((counter,), 1.0), ((counter,), 1.0))], MEASURED, 2) == ()


def test_without_the_machines_load_only_the_own_load_is_modelled() -> None:
    pairs = [(((spent(6.0, 6.0, None),), 1.0), ((spent(10.0, 10.0, None),), 1.0))]
    assert len(band_of(pairs, MODELLED, 2)) == 4


def paid_back(extra: list[float], saved: list[float], per_day: float | None = None) -> BreakEven:
    return break_even(
        arm="ticket",
        batch=1,
        trainings=[(100.0 + each, 100.0) for each in extra],
        inferences=[(1.0, 1.0 + each) for each in saved],
        per_day=per_day,
        energy_class="measured",
    )


def test_a_training_that_took_more_pays_back_after_the_ratio() -> None:
    found = paid_back([10.0, 11.0, 9.0, 10.0], [0.01, 0.009, 0.01, 0.011], per_day=100.0)
    assert found.inferences == pytest.approx(1000.0)
    assert found.days == pytest.approx(10.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1000 < found.high


def test_a_training_that_took_less_has_paid_back_at_once() -> None:
    found = paid_back([-10.0, -11.0, -9.0], [0.01, 0.011, 0.009])
    assert found.inferences == 0.0
    assert (found.low, found.high) == (0.0, 0.0)
    assert "before the first inference" in found.reason


def test_a_training_that_took_less_only_on_average_is_not_stated_to_have_paid_back() -> None:
    found = paid_back([-10.0, 11.0, -9.0], [0.01, 0.011, 0.009])
    assert found.inferences == 0.0
    assert found.high is not None
    assert found.high > 0
    assert found.reason == ""


def test_a_break_even_on_a_refused_claim_is_none() -> None:
    found = break_even(
        arm="ticket",
        batch=1,
        trainings=[(2.0, 1.0)] * 3,
        inferences=[(1.0, 2.0)] * 3,
        per_day=None,
        energy_class="measured",
        refused="inference: within noise",
    )
    assert (found.inferences, found.reason) == (None, "inference: within noise")
    assert found.extra_joules == 1.0


@pytest.mark.parametrize(
    ("extra", "saved", "words"),
    [
        ([10.0, 11.0, 9.0], [0.01, -0.012, 0.008], "includes zero"),
        ([10.0, 11.0, 9.0], [-0.01, -0.012, -0.008], "never pays back"),
        ([-10.0, -11.0, -9.0], [-0.01, -0.012, -0.008], "inference uses up what the training saved"),
        ([10.0], [0.01], "fewer than two pairs"),
    ],
)
def test_where_there_is_no_such_number_the_reason_stands(
    extra: list[float], saved: list[float], words: str
) -> None:
    found = paid_back(extra, saved)
    assert (found.inferences, found.low, found.high, found.days) == (None, None, None, None)
    assert words in found.reason
