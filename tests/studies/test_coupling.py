"""Trainings, steps and order parameters made up after a law that the study must find again; and real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.studies.conftest import follow, tiny_coupling
from tpsprune import recipe
from tpsprune.numerics.small_samples import Interval
from tpsprune_studies import coupling
from tpsprune_studies.coupling import CouplingSetup, rule
from tpsprune_studies.coupling_edges import (
    FACTOR,
    HIGHEST,
    LOWEST,
    CouplingTraining,
    CouplingTrial,
    Steps,
    choose_next_rank,
    coupling_of,
    lower_edge,
    measure_loop,
    upper_edge,
)
from tpsprune_studies.finding import Ruling

Made = tuple[CouplingSetup, list[CouplingTraining]]
Law = Callable[[CouplingTrial], tuple[int, bool]]
WITHOUT = 600


def law(exponent: float, at_64: float = 0.05) -> Law:
    """Steps fall from λ_c = at_64 · (N / 64)^exponent on, by 1.5 there; above a hundredfold none learns."""

    def outcome(trial: CouplingTrial) -> tuple[int, bool]:
        if trial.variant == "none":
            return WITHOUT, True
        drawn = trial.couplings[0] * (trial.width**-0.5 if trial.scaling == "sqrt-n" else 1.0)
        critical = at_64 * (trial.width / 64) ** exponent * (1 + 0.02 * trial.seed)
        if drawn > 100 * critical:
            return trial.steps_each, False
        return max(100, min(WITHOUT, round(WITHOUT / (1.5 * (drawn / critical) ** 0.4)))), True

    return outcome


def made(trial: CouplingTrial, labels: Law, weights: Law) -> CouplingTraining:
    steps, reached = (weights if trial.variant == "weights" else labels)(trial)
    top = len(trial.couplings) // 2
    up = [0.1 + 0.8 * rank / max(1, top) for rank in range(top + 1)]
    lag = 0.2 if trial.answers == "sums" else 0.1
    down = [order + lag * (0.9 - order) for order in up[-2::-1]]
    return CouplingTraining(
        trial=trial,
        steps=steps,
        reached=reached,
        accuracy=0.95 if reached else 0.1,
        orders=(*up, *down),
        train_accuracies=(1.0,) * len(trial.couplings),
        cpu_seconds=1.0,
        seconds=1.0,
    )


def conducted_by(labels: Law, weights: Law, seeds: int = 3) -> Made:
    size = coupling.make_setup(recipe.read("modular-addition"), seeds, 5000)
    return size, follow(lambda done: coupling.plan(size, done), lambda trial: made(trial, labels, weights))


@pytest.fixture(scope="module")
def as_predicted() -> Made:
    return conducted_by(law(-0.5), law(-0.5))


@pytest.mark.parametrize(
    ("exponents", "ruling"),
    [
        ((-0.5, -0.5), Ruling.CONFIRMED),
        ((0.25, 0.0), Ruling.REFUTED),
        ((-0.5, 0.0), Ruling.UNDECIDED),
    ],
)
def test_the_law_that_trainings_follow_is_found_again(exponents: tuple[float, float], ruling: Ruling) -> None:
    found = coupling.conclude(*conducted_by(law(exponents[0]), law(exponents[1], 0.5)), {})
    measured = {quantity.name: quantity.measured for quantity in found.quantities}
    for name, exponent in zip(("labels", "weights"), exponents, strict=True):
        assert measured[f"{name}, smallest λ that speeds up"].mean == pytest.approx(exponent, abs=0.03)
        assert measured[f"{name}, largest λ that still learns"].mean == pytest.approx(exponent, abs=0.1)
    assert found.ruling is ruling
    per_unit = measured["labels, smallest λ that speeds up"].mean - 1
    assert f"Counted per unit (λ/N) those of `labels` are {per_unit:.2f} (" in found.sentence


def test_a_variant_that_never_speeds_up_has_no_lower_edge_on_the_page() -> None:
    def no_use(trial: CouplingTrial) -> tuple[int, bool]:
        return (WITHOUT - 100, True) if trial.couplings[0] < 2 else (trial.steps_each, False)

    found = coupling.conclude(*conducted_by(law(-0.5), no_use), {})
    names = [quantity.name for quantity in found.quantities]
    assert "weights, smallest λ that speeds up" not in names
    assert "weights, largest λ that still learns" in names
    missing = "No exponent: weights, smallest λ that speeds up, known of 0 of 12 nets only."
    assert missing in found.render_page()
    assert found.ruling is Ruling.UNDECIDED


def test_a_net_that_never_learns_without_tps_is_left_out_and_costs_nothing_more() -> None:
    def narrow(trial: CouplingTrial) -> tuple[int, bool]:
        return (trial.steps_each, False) if trial.width == 64 else law(-0.5)(trial)

    size, done = conducted_by(narrow, narrow)
    held = [each.trial for each in done if each.trial.width == 64 and not each.trial.is_ramp]
    assert {trial.variant for trial in held} == {"none"}
    found = coupling.conclude(size, done, {})
    assert found.quantities[0].measured.count == 5 * 3 - 1
    assert "| 64 | never | none | none | none | none |" in found.render_page()


def test_half_of_the_seeds_do_for_what_is_expensive_and_no_ramp_is_of_the_widest() -> None:
    size, done = conducted_by(law(-0.5), law(-0.5), seeds=5)
    of_weights = {each.trial.seed for each in done if each.trial.variant == "weights"}
    of_ramps = {each.trial.seed for each in done if each.trial.is_ramp}
    of_widest = {each.trial.seed for each in done if each.trial.width == size.sizes[-1]}
    assert of_weights == of_ramps == of_widest == {1, 2, 3} == set(size.half_seeds)
    assert max(each.trial.width for each in done if each.trial.is_ramp) == size.sizes[-2]
    slow = [each.trial for each in done if each.trial.steps_each == size.slow_steps]
    assert {(trial.width, trial.answers) for trial in slow} == {(160, "sums"), (160, "random")}
    assert {each.trial.steps_each for each in done if not each.trial.is_ramp} == {5000, 2 * WITHOUT}


@pytest.mark.parametrize(
    ("lag_when_slow", "words"), [(1.0, "more than half of it stays"), (0.2, "half of it or more goes")]
)
def test_a_loop_that_shrinks_on_a_slower_ramp_is_called_lag(
    lag_when_slow: float, words: str, as_predicted: Made
) -> None:
    size, done = as_predicted

    def slower(each: CouplingTraining) -> CouplingTraining:
        if each.trial.steps_each != size.slow_steps:
            return each
        top = len(each.orders) // 2
        up, down = each.orders[: top + 1], each.orders[top + 1 :]
        back = [u + lag_when_slow * (d - u) for u, d in zip(up[-2::-1], down, strict=True)]
        return replace(each, orders=(*up, *back))

    found = coupling.conclude(size, [slower(each) for each in done], {})
    assert words in found.sentence
    assert "no jump, 0.17 at most of the rise" in found.sentence


def test_a_rise_between_two_neighbours_is_called_a_jump_and_one_that_is_missing_is_not_timed(
    as_predicted: Made,
) -> None:
    size, done = as_predicted

    def stepped(each: CouplingTraining) -> CouplingTraining:
        if each.trial.variant == "labels":
            return replace(each, orders=tuple(float(order > 0.5) for order in each.orders))
        return replace(each, orders=(0.5,) * len(each.orders))

    found = coupling.conclude(size, [stepped(each) for each in done], {})
    assert "a jump, 1.00 of the rise" in found.sentence
    assert "The order of `weights` did not rise in every ramp" in found.sentence


@pytest.mark.parametrize(
    ("intervals", "ruling"),
    [
        ([(-0.6, -0.4), (-0.9, -0.1)], Ruling.CONFIRMED),
        ([(-0.6, -0.4), (-0.9, 0.1)], Ruling.UNDECIDED),
        ([(-1.1, -0.4)], Ruling.UNDECIDED),
        ([(-0.4, 0.4), (-1.2, -0.6)], Ruling.REFUTED),
        ([(-0.4, 0.4), (-0.6, -0.4)], Ruling.UNDECIDED),
        ([], Ruling.UNDECIDED),
    ],
)
def test_the_ruling_is_on_every_edge(intervals: list[tuple[float, float]], ruling: Ruling) -> None:
    found = [Interval(mean=0.0, low=low, high=high, count=9, confidence=0.95) for low, high in intervals]
    assert rule(found) is ruling


def ran(**changes: object) -> CouplingTraining:
    trial = CouplingTrial(variant="labels", width=16, seed=1, couplings=(1.0,), steps_each=8)
    return coupling.run(replace(tiny_coupling(), level=2.0), replace(trial, **changes))  # type: ignore[arg-type]


def test_sqrt_n_is_the_same_training_at_a_coupling_larger_by_root_n() -> None:
    scaled = ran(couplings=(4.0,), scaling="sqrt-n")
    assert scaled.orders == pytest.approx(ran().orders, abs=1e-5)
    assert scaled.orders != pytest.approx(ran(couplings=(4.0,)).orders, abs=1e-4)


def test_a_ramp_of_one_height_is_the_training_held_there() -> None:
    flat = ran(couplings=(1.0, 1.0), steps_each=4)
    assert flat.orders[-1] == ran().orders[0]
    assert len(flat.orders) == 2


@pytest.mark.parametrize("variant", ["labels", "weights"])
def test_order_rises_with_coupling(variant: str) -> None:
    weak, strong = (ran(variant=variant, couplings=(each,), steps_each=60) for each in (0.001, 30.0))
    assert strong.orders[0] > weak.orders[0] + 0.1


def test_random_answers_are_others_to_learn_and_leave_validation_alone() -> None:
    sums, dealt = (
        ran(steps_each=150, couplings=(0.001,)),
        ran(steps_each=150, couplings=(0.001,), answers="random"),
    )
    assert sums.orders != dealt.orders
    assert dealt.train_accuracies[0] > 0.1
    assert dealt.accuracy < 0.1


def test_without_tps_the_coupling_is_zero_and_the_order_is_read_all_the_same() -> None:
    baseline, zero = ran(variant="none", couplings=(0.0,)), ran(couplings=(0.0,))
    assert baseline.orders == zero.orders
    assert baseline.orders != ran().orders


def steps_by_rank(steps: Mapping[int, int]) -> dict[int, Steps]:
    """A negative number never reached the level."""
    return {rank: Steps(abs(taken), taken > 0) for rank, taken in steps.items()}


@pytest.mark.parametrize(
    ("steps", "factor", "edge"),
    [
        # The line is 400. Between 800 at λ = 0.1 and 200 at λ = 0.316 it is crossed half-way.
        ({-2: 800, -1: 200}, FACTOR, 10**-0.75),
        ({-2: 401, -1: 200}, FACTOR, pytest.approx(0.1, rel=0.01)),
        ({-2: 800, -1: 400}, FACTOR, coupling_of(-1)),
        ({-2: 600, -1: 200}, 3.0, coupling_of(-1)),
        # Sought from the fastest down, whatever lies below; a stopped one counts with its allowed steps.
        ({-4: 300, -3: 590, -2: 800, -1: 200, 0: 350}, FACTOR, 10**-0.75),
        ({-2: -800, -1: 200}, FACTOR, 10**-0.75),
        # None speeds up, or all do.
        ({-1: 500, 0: 450}, FACTOR, None),
        ({-1: 300, 0: 200}, FACTOR, None),
        ({-1: -1200, 0: -1200}, FACTOR, None),
        ({}, FACTOR, None),
    ],
)
def test_the_lower_edge_is_where_log_steps_cross_the_line_in_log_coupling(
    steps: dict[int, int], factor: float, edge: object
) -> None:
    found = lower_edge(WITHOUT, steps_by_rank(steps), factor)
    assert found == (pytest.approx(edge) if isinstance(edge, float) else edge)


@pytest.mark.parametrize(
    ("steps", "edge"),
    [
        ({-1: -1200, 0: 300, 1: 900, 2: -1200, 3: 1100}, pytest.approx(10**0.75)),
        ({0: 300, 1: 200}, None),
        ({0: -1200}, None),
    ],
)
def test_the_upper_edge_is_midway_to_the_first_that_fails_above_the_fastest(
    steps: dict[int, int], edge: object
) -> None:
    assert upper_edge(steps_by_rank(steps)) == edge


@pytest.mark.parametrize(
    ("steps", "first", "order"),
    [
        ({-3: 590, -2: 390, -1: 300, 0: 200, 1: 700, 2: -1200}, (-1, 0), [-1, 0, -2, -3, 1, 2]),
        ({}, (0,), [0, *range(-1, LOWEST - 1, -1), *range(1, HIGHEST + 1)]),
    ],
    ids=["to both edges", "to the ends of the grid"],
)
def test_a_cell_tries_down_while_it_speeds_up_and_up_while_it_learns(
    steps: dict[int, int], first: tuple[int, ...], order: list[int]
) -> None:
    tried: dict[int, Steps] = {}
    while (rank := choose_next_rank(WITHOUT, tried, first)) is not None:
        tried |= steps_by_rank({rank: steps.get(rank, 100)})
    assert list(tried) == order


UP = (0.01, 0.1, 1.0, 10.0, 100.0)
RAMP = (*UP, *UP[-2::-1])


@pytest.mark.parametrize(
    ("up", "down", "rise", "fall", "area", "jump"),
    [
        ([0.0, 0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0, 1.0], 1.0, 1.0, 0.0, 0.5),
        ([0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0], 10**0.5, 10**-1.5, 0.5, 1.0),
        ([0.0, 0.0, 0.0, 0.5, 1.0], [0.8, 0.9, 1.0, 1.0, 1.0], 10.0, None, 0.7, 0.5),
    ],
    ids=["returns as it came", "a jump two decades lower", "never falls below half"],
)
def test_a_loop_is_the_area_between_the_way_up_and_the_way_down(
    up: list[float], down: list[float], rise: float, fall: float | None, area: float, jump: float
) -> None:
    found = measure_loop(RAMP, [*up, *down[-2::-1]])
    assert found is not None
    assert (found.rise, found.area, found.jump_share) == pytest.approx((rise, area, jump))
    assert found.fall == (None if fall is None else pytest.approx(fall))


def test_a_rise_is_timed_from_a_tenth_to_nine_tenths_and_not_at_all_where_it_is_too_small() -> None:
    found = measure_loop(RAMP, [0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert found is not None
    assert found.width_decades == pytest.approx(1.6)
    assert measure_loop(RAMP, [0.60, 0.60, 0.61, 0.62, 0.63, 0.62, 0.61, 0.6, 0.6]) is None


@given(st.floats(0.5, 3.0), st.floats(-2.0, 2.0), st.floats(0.01, 100.0))
def test_scale_and_shift_of_the_order_do_not_matter_and_couplings_carry_over(
    scale: float, shift: float, factor: float
) -> None:
    orders = [0.1, 0.2, 0.5, 0.9, 1.0, 1.0, 0.8, 0.5, 0.2]
    one = measure_loop(RAMP, orders)
    other = measure_loop([factor * each for each in RAMP], [scale * each + shift for each in orders])
    assert one is not None
    assert other is not None
    assert other.area == pytest.approx(one.area, abs=1e-9)
    assert other.rise == pytest.approx(factor * (one.rise or 0))
    assert other.fall == pytest.approx(factor * (one.fall or 0))
    assert other.width_decades == pytest.approx(one.width_decades)
