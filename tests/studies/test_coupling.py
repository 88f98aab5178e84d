"""Trainings made up after a law that the study must find again, and one study small enough to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tpsprune import recipe
from tpsprune.numerics.small_samples import Interval
from tpsprune.studies import coupling, coupling_edges
from tpsprune.studies.catalogue import STUDIES
from tpsprune.studies.conduct import conduct
from tpsprune.studies.coupling_found import ruling_of
from tpsprune.studies.coupling_run import Coupled, CouplingSetup, CouplingTrial, run_coupling
from tpsprune.studies.finding import Finding
from tpsprune.studies.page import page
from tpsprune.studies.verdict import Ruling

Law = Callable[[CouplingTrial], tuple[int, bool]]
WITHOUT = 600


def setup(seeds: int = 3) -> CouplingSetup:
    return coupling.setup(recipe.read("modular-addition"), seeds, 5000)


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


def made(trial: CouplingTrial, labels: Law, weights: Law) -> Coupled:
    steps, reached = (weights if trial.variant == "weights" else labels)(trial)
    top = len(trial.couplings) // 2
    up = [0.1 + 0.8 * rank / max(1, top) for rank in range(top + 1)]
    lag = 0.2 if trial.answers == "sums" else 0.1
    down = [order + lag * (0.9 - order) for order in up[-2::-1]]
    return Coupled(
        trial=trial,
        steps=steps,
        reached=reached,
        accuracy=0.95 if reached else 0.1,
        orders=(*up, *down),
        train_accuracies=(1.0,) * len(trial.couplings),
        cpu_seconds=1.0,
        seconds=1.0,
    )


def conducted_by(labels: Law, weights: Law, seeds: int = 3) -> tuple[CouplingSetup, list[Coupled]]:
    size = setup(seeds)
    done: dict[CouplingTrial, Coupled] = {}
    while due := [each for each in coupling.plan(size, list(done.values())).trials if each not in done]:
        for trial in due:
            assert isinstance(trial, CouplingTrial)
            done[trial] = made(trial, labels, weights)
    return size, list(done.values())


@pytest.mark.parametrize(
    ("exponents", "ruling"),
    [
        ((-0.5, -0.5), Ruling.CONFIRMED),
        ((0.25, 0.0), Ruling.REFUTED),
        ((-0.5, 0.0), Ruling.UNDECIDED),
    ],
)
def test_the_law_that_trainings_follow_is_found_again(exponents: tuple[float, float], ruling: Ruling) -> None:
    found = coupling.finding(*conducted_by(law(exponents[0]), law(exponents[1], 0.5)), {})
    measured = {quantity.name: quantity.measured for quantity in found.quantities}
    for name, exponent in zip(("labels", "weights"), exponents, strict=True):
        assert measured[f"{name}, smallest λ that speeds up"].mean == pytest.approx(exponent, abs=0.03)
        assert measured[f"{name}, largest λ that still learns"].mean == pytest.approx(exponent, abs=0.1)
    assert found.ruling is ruling
    per_unit = measured["labels, smallest λ that speeds up"].mean - 1
    assert f"Counted per unit (λ/N) those of `labels` are {per_unit:.2f} (" in found.sentence


def test_a_variant_that_never_speeds_up_is_given_no_lower_edge_and_the_page_says_so() -> None:
    def no_use(trial: CouplingTrial) -> tuple[int, bool]:
        return (WITHOUT - 100, True) if trial.couplings[0] < 2 else (trial.steps_each, False)

    found = coupling.finding(*conducted_by(law(-0.5), no_use), {})
    names = [quantity.name for quantity in found.quantities]
    assert "weights, smallest λ that speeds up" not in names
    assert "weights, largest λ that still learns" in names
    assert "No exponent: weights, smallest λ that speeds up, known of 0 of 12 nets only." in page(found)
    assert found.ruling is Ruling.UNDECIDED


def test_a_net_that_never_learns_without_tps_is_left_out_and_costs_nothing_more() -> None:
    def narrow(trial: CouplingTrial) -> tuple[int, bool]:
        return (trial.steps_each, False) if trial.width == 64 else law(-0.5)(trial)

    size, done = conducted_by(narrow, narrow)
    held = [each.trial for each in done if each.trial.width == 64 and not each.trial.is_ramp]
    assert {trial.variant for trial in held} == {"none"}
    found = coupling.finding(size, done, {})
    assert found.quantities[0].measured.count == 5 * 3 - 1
    assert found.tables[0].rows[0] == ("64", "never", "none", "none", "none", "none")


def test_half_of_the_seeds_do_for_what_is_dear_and_no_ramp_is_of_the_widest() -> None:
    size, done = conducted_by(law(-0.5), law(-0.5), seeds=5)
    of_weights = {each.trial.seed for each in done if each.trial.variant == "weights"}
    of_ramps = {each.trial.seed for each in done if each.trial.is_ramp}
    of_widest = {each.trial.seed for each in done if each.trial.width == size.sizes[-1]}
    assert of_weights == of_ramps == of_widest == {1, 2, 3} == set(size.half_seeds)
    assert max(each.trial.width for each in done if each.trial.is_ramp) == size.sizes[-2]
    slow = [each.trial for each in done if each.trial.steps_each == size.slow_steps]
    assert {(trial.width, trial.answers) for trial in slow} == {(160, "sums"), (160, "random")}


def test_no_training_gets_more_steps_than_patience_has() -> None:
    _, done = conducted_by(law(-0.5), law(-0.5))
    caps = {each.trial.steps_each for each in done if not each.trial.is_ramp}
    assert caps == {5000, 2 * WITHOUT}


@pytest.mark.parametrize(
    ("lag_when_slow", "words"), [(1.0, "more than half of it stays"), (0.2, "half of it or more goes")]
)
def test_a_loop_that_shrinks_on_a_slower_ramp_is_called_lag(lag_when_slow: float, words: str) -> None:
    size, done = conducted_by(law(-0.5), law(-0.5))

    def slower(each: Coupled) -> Coupled:
        if each.trial.steps_each != size.slow_steps:
            return each
        top = len(each.orders) // 2
        up, down = each.orders[: top + 1], each.orders[top + 1 :]
        back = [u + lag_when_slow * (d - u) for u, d in zip(up[-2::-1], down, strict=True)]
        return replace(each, orders=(*up, *back))

    found = coupling.finding(size, [slower(each) for each in done], {})
    assert words in found.sentence
    assert "no jump, 0.17 at most of the rise" in found.sentence


def test_a_rise_between_two_neighbours_is_called_a_jump_and_one_that_is_missing_is_not_timed() -> None:
    size, done = conducted_by(law(-0.5), law(-0.5))

    def stepped(each: Coupled) -> Coupled:
        if each.trial.variant == "labels":
            return replace(each, orders=tuple(float(order > 0.5) for order in each.orders))
        return replace(each, orders=(0.5,) * len(each.orders))

    found = coupling.finding(size, [stepped(each) for each in done], {})
    assert "a jump, 1.00 of the rise" in found.sentence
    assert "The order of `weights` did not rise in every ramp" in found.sentence


def interval(low: float, high: float) -> Interval:
    return Interval(mean=(low + high) / 2, low=low, high=high, count=9, confidence=0.95)


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
def test_the_ruling_asks_every_edge(intervals: list[tuple[float, float]], ruling: Ruling) -> None:
    assert ruling_of([interval(*each) for each in intervals]) is ruling


def tiny() -> CouplingSetup:
    full = setup(2)
    common = replace(full.common, cap_steps=20, level=0.02)
    return replace(full, common=common, sizes=(8, 16, 32), ramp_steps=2, slow_steps=3, slow_size=16)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Finding]]:
    folder = tmp_path_factory.mktemp("coupling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coupling_edges, "HIGHEST", 1)
        return folder, list(conduct(STUDIES["coupling"], tiny(), folder))


def test_the_study_runs_and_its_journal_reads_as_it_was_written(
    conducted: tuple[Path, list[str | Finding]],
) -> None:
    folder, told = conducted
    assert isinstance(told[-1], Finding)
    assert str(told[0]).split(" ", 1)[1].startswith("seed 1 8 units none λ 0: 0.")
    on_disk = json.loads((folder / "coupling.json").read_text())
    for raw in on_disk["trainings"]:
        assert json.loads(json.dumps(Coupled.from_json(raw).to_json())) == raw
    assert on_disk["panels"][0]["title"] == "edges of λ"
    assert "| exponent of N | predicted |" in (folder / "coupling.md").read_text()


def test_a_study_that_is_done_is_read_and_not_run(
    conducted: tuple[Path, list[str | Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = conducted
    monkeypatch.setattr(coupling_edges, "HIGHEST", 1)
    monkeypatch.setattr(coupling, "run", None)
    assert [
        each.to_json() for each in conduct(STUDIES["coupling"], tiny(), folder) if isinstance(each, Finding)
    ] == [told[-1].to_json() if isinstance(told[-1], Finding) else None]


def ran(**changes: object) -> Coupled:
    trial = CouplingTrial(variant="labels", width=16, seed=1, couplings=(1.0,), steps_each=8)
    out_of_reach = replace(tiny(), common=replace(tiny().common, level=2.0))
    return run_coupling(out_of_reach, replace(trial, **changes))  # type: ignore[arg-type]


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


def test_without_tps_the_coupling_is_nought_and_the_order_is_read_all_the_same() -> None:
    plain, nought = ran(variant="none", couplings=(0.0,)), ran(couplings=(0.0,))
    assert plain.orders == nought.orders
    assert plain.orders != ran().orders
