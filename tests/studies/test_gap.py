"""The gap's criteria on series made up, whose journal the study reads, and what it runs if there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.studies.conftest import Conducted, shortened, tiny_setup
from tests.studies.test_lead_time import watched
from tpsprune_studies import gap, lead_time
from tpsprune_studies.alarms import WatchedTraining, WatchedTrial
from tpsprune_studies.catalogue import STUDIES
from tpsprune_studies.conduct import conduct
from tpsprune_studies.finding import Finding, Ruling
from tpsprune_studies.gap import Split, decline, has_declined, has_warned, usual_place


def test_the_decline_is_the_largest_gap_up_to_a_step_over_the_last_up_to_it() -> None:
    training = watched("add", 1, 50, {"gap_23": [None, 2.0, 6.0, 3.0, 1.0, 9.0]})
    assert [decline(training, step) for step in (15, 20, 40, 45, 50, 60)] == [1.0, 1.0, 2.0, 2.0, 6.0, 1.0]
    scaled = watched("add", 1, 50, {"gap_23": [None, 2e-9, 6e-9, 3e-9]})
    assert decline(scaled, 40) == pytest.approx(2.0)
    assert has_declined(training, 40)
    assert not has_declined(training, 30)


def test_a_gap_that_closes_has_declined_and_one_that_never_was_has_not() -> None:
    assert decline(watched("add", 1, 50, {"gap_23": [3.0, 0.0]}), 50) == pytest.approx(1e12)
    assert decline(watched("add", 1, 50, {"gap_23": [0.0, 0.0]}), 50) == 1.0
    assert decline(watched("add", 1, 50, {}), 50) == 1.0


def test_the_usual_place_is_the_most_frequent_so_far() -> None:
    training = watched("add", 1, 50, {"spectral_edge_k": [None, 2.0, 2.0, 1.0, 1.0, 1.0]})
    assert [usual_place(training, step) for step in (10, 20, 50, 60)] == [0, 2, 2, 1]


def test_shares_and_luck_are_those_of_the_four_counts() -> None:
    split = Split(met=3, learners=3, met_by_controls=1, controls=4)
    assert (split.sensitivity, split.specificity) == (1.0, 0.75)
    assert split.luck == pytest.approx(4 / 35)


FALLS = [8.0, 6.0, 4.0, 2.0]
EVEN = [8.0, 8.0, 7.0, 8.0]
LATE = [8.0, 8.0, 7.0, 7.5, 7.5, 7.5, 7.5, 1.0]


def trainings(learner: list[float], control: list[float]) -> list[WatchedTraining]:
    """All trainings of the plan on modular arithmetic; those that learn get there at step 40."""
    return [
        watched(
            trial.arm,
            trial.seed,
            40 if lead_time.TASKS[trial.arm].learns else None,
            # Seeds differ a little, as seeds do.
            {"gap_23": [(1 + 0.01 * trial.seed * rank) * value for rank, value in enumerate(series)]},
        )
        for trial in gap.plan(tiny_setup(gap), []).trials
        if isinstance(trial, WatchedTrial) and trial.arm in lead_time.TASKS
        for series in [learner if lead_time.TASKS[trial.arm].learns else control]
    ]


def sequences(learner: list[float], control: list[float], *languages: str) -> list[WatchedTraining]:
    """Trainings on Dyck-1 and SCAN, of whose attention the gap is read; the other series say the opposite."""
    return [
        watched(
            f"{language}{'' if learns else ', no decay'}",
            seed,
            40 if learns else None,
            {"attention_gap_23": [*(learner if learns else control)], "gap_23": [1.0, 1.0, 1.0]},
        )
        for language in languages
        for learns in (True, False)
        for seed in range(3)
    ]


def conclude(done: list[WatchedTraining]) -> Finding:
    return gap.conclude(tiny_setup(gap), done, {})


@pytest.mark.parametrize(
    ("learner", "control", "ruling", "counts"),
    [
        (FALLS, EVEN, Ruling.CONFIRMED, ("9 of 9", "0 of 9", "0 of 9")),
        (FALLS, FALLS, Ruling.REFUTED, ("9 of 9", "9 of 9", "9 of 9")),
        (EVEN, EVEN, Ruling.REFUTED, ("0 of 9", "0 of 9", "0 of 9")),
        (FALLS, LATE, Ruling.REFUTED, ("9 of 9", "9 of 9", "0 of 9")),
        (FALLS, [*FALLS, 12.0], Ruling.UNDECIDED, ("9 of 9", "0 of 9", "9 of 9")),
    ],
    ids=["tells apart", "always met", "never met", "late", "only in the end"],
)
def test_the_criterion_must_be_met_by_those_that_learn_and_by_few_others(
    learner: list[float], control: list[float], ruling: Ruling, counts: tuple[str, ...]
) -> None:
    # A control is asked at its last step, 100 here, and at 40, when the others got there.
    found = conclude(trainings(learner, [*control]))
    assert found.ruling is ruling
    row = next(line for line in found.render_page().splitlines() if line.startswith("| published"))
    assert [cell for cell in row.split(" | ") if " of " in cell] == list(counts)


def test_what_is_met_by_few_of_either_kind_decides_nothing() -> None:
    flat, fallen = ((10, 8.0), (40, 8.0)), ((10, 8.0), (40, 1.0))
    made = trainings(FALLS, EVEN)
    gaps = {True: [flat] * 4 + [fallen] * 5, False: [fallen] * 3 + [flat] * 6}
    done = [
        replace(each, series={**each.series, "gap_23": gaps[each.reached_step is not None].pop(0)})
        for each in made
    ]
    found = conclude(done)
    assert found.ruling is Ruling.UNDECIDED
    assert "met by 5 of 9 trainings that learn modular arithmetic and 3 of 9 that never do" in found.sentence
    assert "sensitivity 0.56, specificity 0.67, p = 0.32 " in found.sentence


@pytest.mark.usefixtures("three_seeds")
@pytest.mark.parametrize(
    ("modular", "dyck", "scan", "ruling"),
    [
        ((FALLS, EVEN), (FALLS, EVEN), (FALLS, EVEN), Ruling.CONFIRMED),
        ((FALLS, EVEN), (FALLS, FALLS), (FALLS, EVEN), Ruling.REFUTED),
        ((FALLS, FALLS), (FALLS, EVEN), (FALLS, EVEN), Ruling.REFUTED),
    ],
    ids=["everywhere", "not on Dyck-1", "not on modular arithmetic"],
)
def test_one_kind_of_task_that_refutes_it_refutes_it(
    modular: tuple[list[float], list[float]],
    dyck: tuple[list[float], list[float]],
    scan: tuple[list[float], list[float]],
    ruling: Ruling,
) -> None:
    done = [*trainings(*modular), *sequences(*dyck, "Dyck-1"), *sequences(*scan, "SCAN")]
    found = conclude(done)
    assert found.ruling is ruling
    assert "3 of 3 trainings that learn Dyck-1 and " in found.sentence
    assert [panel.title for panel in found.panels[2:]] == [
        *("Dyck-1: learns, seed 1", "Dyck-1: never learns, seed 1"),
        *("SCAN: learns, seed 1", "SCAN: never learns, seed 1"),
    ]


@pytest.mark.usefixtures("three_seeds")
def test_a_task_whose_controls_learn_it_too_has_no_verdict() -> None:
    learned = [
        replace(each, reached_step=40) if each.trial.arm == "SCAN, no decay" else each
        for each in sequences(FALLS, FALLS, "SCAN")
    ]
    found = conclude([*trainings(FALLS, EVEN), *learned])
    assert found.ruling is Ruling.CONFIRMED
    words = (
        "No verdict on SCAN, too few of either kind: learned with weight decay 3 (criterion met by 3), never"
    )
    assert f"{words} learned without 0." in found.sentence
    assert "SCAN, no decay" in {quantity.name for quantity in found.quantities}
    assert "3 of these count neither" in found.render_page()


def test_the_online_rule_sees_readings_before_the_level_and_no_later_one() -> None:
    late = watched("add", 1, 40, {"gap_23": [8.0, 8.0, 8.0, 2.0]})
    early = watched("add", 1, 40, {"gap_23": [8.0, 5.0, 9.0, 9.0]})
    assert has_declined(late, 40)
    assert not has_warned(late, 40), "the fall comes with the level, too late to warn of it"
    assert has_warned(early, 40)
    assert not has_declined(early, 40), "looking back the gap is at its largest"
    assert not has_warned(early, 20)
    published = watched("SCAN", 1, 40, {"gap_23": [8.0, 1.0], "attention_gap_23": [8.0, 6.0]})
    assert not has_warned(published, 40)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12), st.floats(1e-3, 1e3))
def test_the_largest_over_the_last_is_never_below_one_and_has_no_unit(gaps: list[float], unit: float) -> None:
    end = 10.0 * len(gaps)
    training = watched("add", 1, None, {"gap_23": [*gaps]})
    scaled = watched("add", 1, None, {"gap_23": [unit * gap for gap in gaps]})
    assert decline(training, end) >= 1.0
    assert decline(training, end) == pytest.approx(max(gaps) / gaps[-1])
    assert decline(scaled, end) == pytest.approx(decline(training, end))
    # What has declined in the end has warned by then, if not the other way round.
    assert has_warned(training, end + 1) or not decline(training, end) > 1.5001


@pytest.mark.usefixtures("three_seeds")
def test_who_does_not_do_what_was_published_counts_on_neither_side() -> None:
    done = [*trainings(FALLS, EVEN), *sequences(FALLS, EVEN, "SCAN")]
    odd = [
        watched("SCAN", 2, None, {"attention_gap_23": [*FALLS]}),
        watched("SCAN, no decay", 2, 40, {"attention_gap_23": [*FALLS]}),
    ]
    known = [each for each in done if each.trial not in {one.trial for one in odd}]
    page = conclude([*known, *odd]).render_page()
    assert "2 of 2 trainings that learn SCAN and 0 of 2 that never do" in page
    assert "2 of these count neither as one that learns nor as a control" in page
    assert "count neither" not in conclude(done).render_page()


def test_the_alarm_is_chosen_on_the_pilot_and_judged_on_the_others() -> None:
    found = conclude(trainings(FALLS, EVEN))
    assert "(gap_23 falls 1.25 times, for 1), the gap" in found.sentence
    assert (
        "in 6 of 6 trainings on modular arithmetic and for nothing in 0 of 6 (p = 0.0011)" in found.sentence
    )
    assert [quantity.predicted for quantity in found.quantities] == [
        *["above 1.5"] * 3,
        "at most 1.5",
        "",
        "",
    ]


def test_seeds_beyond_those_asked_for_and_digits_count_for_nothing() -> None:
    done = trainings(FALLS, EVEN)
    more = [watched("add", 9, 40, {"gap_23": [*EVEN]}), watched("digits", 1, None, {"gap_23": [*FALLS]})]
    assert conclude([*done, *more]).render_page() == conclude(done).render_page()


def test_where_nothing_is_learned_nothing_is_decided() -> None:
    found = conclude([replace(each, reached_step=None) for each in trainings(EVEN, EVEN)])
    assert found.ruling is Ruling.UNDECIDED
    assert found.sentence.startswith("fewer than two trainings reached")
    assert found.render_page()


Conduct = Callable[[str], Conducted]


def test_it_reads_the_journal_of_lead_time_and_runs_nothing(conducted: Conduct, tmp_path: Path) -> None:
    theirs = conducted("lead-time")
    journal = tmp_path / "lead-time.jsonl"
    journal.write_text("".join(f"{line}\n" for line in theirs.journal))
    with shortened("lead-time") as setup:
        (found,) = conduct(STUDIES["gap"], setup, tmp_path)
    assert isinstance(found, Finding)
    assert found.name == "gap"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gap.json", "gap.md", "lead-time.jsonl"]
    assert journal.read_text().splitlines() == theirs.journal


def test_what_is_missing_is_run_into_that_journal_and_lead_time_goes_on_from_there(
    conducted: Conduct, tmp_path: Path
) -> None:
    theirs = conducted("lead-time")
    journal = tmp_path / "lead-time.jsonl"
    journal.write_text("".join(f"{line}\n" for line in theirs.journal[1:] if '"digits"' not in line))
    with shortened("lead-time") as setup:
        *lines, found = conduct(STUDIES["gap"], setup, tmp_path)
        assert isinstance(found, Finding)
        assert [str(line)[:18] for line in lines] == ["12/12 seed 0 add: "]
        assert str(next(iter(conduct(STUDIES["lead-time"], setup, tmp_path)))).startswith(
            "13/15 seed 0 digits"
        )
    assert json.loads(journal.read_text().splitlines()[-1])["study"] == "lead-time"
