"""What a report says in words: no more than was found, of its own class, and over what it was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.report.savings_examples import EXAMPLES, assessed, at_the_wall, comparison, metered, savings
from tpsprune.claims.assess import break_even
from tpsprune.records import BrokenOff, EnergyClass, EnergyMethod, Grid, Savings, Standing, Support
from tpsprune.report.savings.pages import render_page
from tpsprune.report.savings.terms import standing_words

SHOWS = "What this shows and what it does not"
METHOD = "Method, hardware, grid"
QUALITY = "What the data are worth"
LOST = "energy in no claim: of runs discarded, set aside or broken off"


def section(found: Savings, title: str) -> str:
    """Return a section of the report as Markdown."""
    text = render_page("md", found)
    return re.split(r"^## \d+\. .+$", text[text.index(f". {title}\n") :], maxsplit=2, flags=re.MULTILINE)[0]


def tables(text: str) -> list[tuple[dict[str, list[str]], dict[str, str]]]:
    """Return the tables of a section: the cells of each column, and its class; both by heading."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        heads, _, *rows = [[cell.strip() for cell in line] for line in lines]
        kinds = [cell.strip("*") for cell in rows.pop(0)] if rows and rows[0][0].startswith("*class") else []
        columns = {head: [row[place] for row in rows] for place, head in enumerate(heads)}
        found.append((columns, dict(zip(heads, kinds, strict=False))))
    return found


def with_comparison(found: Savings, **changes: Any) -> Savings:
    return replace(found, comparison=replace(found.comparison, **changes))


def with_claims(found: Savings, **changes: Any) -> Savings:
    return replace(found, claims=tuple(replace(each, **changes) for each in found.claims))


def with_one_given_up(found: Savings) -> Savings:
    given_up = BrokenOff(arm="ticket", seed=1, pair=1, position=3, windows=())
    return with_comparison(found, broken_off=(*found.comparison.broken_off, given_up))


def metered_as(scope: str) -> Savings:
    classes = {"cpu": EnergyClass.MEASURED}
    return assessed(metered(comparison(), EnergyMethod(meter="meter", scope=scope, classes=classes)))


def with_own_grid() -> Savings:
    grid = Grid(grams_per_kwh=50.0, country="", year=None, source="my contract, 2025")
    found = savings(grid=True)
    return with_comparison(found, choices=replace(found.comparison.choices, grid=grid))


def with_lost_accuracy() -> Savings:
    found = savings()
    return replace(found, accuracies=tuple(replace(each, preserved=False) for each in found.accuracies))


def with_an_arm_metered_otherwise() -> Savings:
    found = savings(arms=3)
    lines = [
        replace(run, energy_class="measured") if run.arm == "dense-stopped" else run for run in found.runs
    ]
    return replace(found, runs=tuple(lines), attribution=found.attribution[:2])


def with_nothing_lost() -> Savings:
    found = with_comparison(savings(), broken_off=())
    return replace(found, quality=replace(found.quality, lost_joules=None))


# What the shipped reports say is held by test_shipped.
SAID: dict[str, tuple[Callable[[], Savings], str, str]] = {
    "a wall meter without a line": (at_the_wall, METHOD, "They could not be compared with the software's"),
    "a wall meter with a line": (
        lambda: at_the_wall(fit=True),
        METHOD,
        "1.2 × software watts − 3 W *(measured)*",
    ),
    "a process": (lambda: metered_as("process"), METHOD, "*Metered by meter, of the process alone.*"),
    "a test": (lambda: metered_as("simulated"), METHOD, "*Simulated by the meter 'meter': of no machine.*"),
    "a record": (
        lambda: metered_as("recorded"),
        METHOD,
        "*Taken by the meter 'meter' from windows that were recorded earlier.*",
    ),
    "no meter": (lambda: metered_as("none"), METHOD, "*Nothing was metered.*"),
    "a grid": (lambda: savings(grid=True), METHOD, "at 56 g/kWh (FRA, 2023; Ember): of operation only"),
    "a grid of one's own": (with_own_grid, METHOD, "50 g/kWh (my contract, 2025)"),
    "accuracy not shown to be kept": (with_lost_accuracy, "Verdict", "Not shown to be kept"),
    "a warm-up": (savings, QUALITY, "- warm-up, seed 0: a short run to warm up, thrown away\n"),
    "a run broken off": (
        savings,
        QUALITY,
        "seed 0: broken off; it took at least 3.21 s *(measured)* and 90.0 J *(modelled + constant)*",
    ),
    "energy of no claim, at the wall": (
        at_the_wall,
        QUALITY,
        "set aside or broken off | 102 J *(modelled + constant)* |",
    ),
    "a run given up": (
        lambda: with_one_given_up(savings()),
        QUALITY,
        "ticket, seed 1: broken off; what it took is not known",
    ),
    "several methods": (
        lambda: with_comparison(
            savings(), runs=(at_the_wall().comparison.runs[0], *savings().comparison.runs[1:])
        ),
        METHOD,
        "The runs were not all metered in the same way.",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_report_says(case: str) -> None:
    make, title, sentence = SAID[case]
    assert sentence in section(make(), title)


def test_both_means_of_a_claim_stand_side_by_side_and_the_long_runs_that_would_reverse_it() -> None:
    found = savings()
    ((read, kinds),) = tables(section(found, "Two means"))
    assert read["claim"][0] == "ticket: training"
    assert read["agree"] == ["yes"] * len(found.claims)
    change = found.verdict.change
    assert change is not None
    assert read["ratio of mean energies"][0] == f"{100 * change.arithmetic_share:.0f} % less"
    assert read["long runs to reverse it"][0] == f"{100 * change.reversing_share:.0f} %"
    assert read["may be missing"] == ["39 %"] * len(found.claims)
    assert list(kinds.values())[2:] == [*["modelled + constant"] * 3, *["derived"] * 2]
    apart = with_claims(found, change=replace(change, arithmetic_share=0.01))
    assert set(tables(section(apart, "Two means"))[0][0]["agree"]) == {"no"}


def test_what_was_broken_off_keeps_the_class_of_its_joules_where_no_run_counts() -> None:
    lost = savings().comparison.broken_off
    found = assessed(replace(comparison(), runs=(), inference=(), broken_off=(*lost, *lost)))
    assert found.verdict.standing is Standing.RUNS_BROKEN_OFF
    said = section(found, SHOWS)
    assert "'ticket', seed 0 (at least 3.2 s, 90.0 J); 'ticket', seed 0 (at least 3.2 s, 90.0 J)" in said
    assert "use another folder for a comparison without *(modelled + constant)*" in said


def test_what_is_not_so_is_not_said() -> None:
    assert "No wall meter" not in section(at_the_wall(), METHOD)
    assert "not claimed" not in section(savings(grid=True), METHOD)
    assert standing_words(Standing.ACCURACY_NOT_PRESERVED) == "Accuracy not shown to be kept"
    assert "Reasons for the verdict" in section(savings(), SHOWS)
    bare = replace(savings(), may_not_claim=())
    assert "may not be claimed" not in section(bare, SHOWS)


def classes(found: Savings, title: str, place: int = 0) -> list[str]:
    return list(tables(section(found, title))[place][1].values())


def test_each_column_is_of_the_class_of_its_own_numbers() -> None:
    steps = tuple(replace(each, detail="accuracy −0.04 points") for each in savings(arms=3).attribution)
    noted = replace(savings(arms=3), attribution=steps)
    change = "Where the change comes from"
    assert classes(noted, change) == ["class", "", "derived", "modelled + constant", "modelled + constant"]
    mixed = classes(with_an_arm_metered_otherwise(), change)
    assert mixed[3:] == ["measured + modelled + constant"] * 2
    assert classes(savings(), "Accuracy of the models")[5] == "derived"
    heard = ("time", "CPU-seconds", "epochs trained", "operations (MACs)", "second thoughts")
    supported = with_claims(savings(), support=tuple(Support(what, 0.2, True) for what in heard))
    assert list(tables(section(supported, "Every claim"))[1][0]) == ["claim", *heard]
    assert classes(supported, "Every claim", 1) == ["class", *["measured"] * 2, *["counted"] * 3]
    found = savings()
    lines = tuple(replace(run, why_not=run.why_not and "its pair is not complete") for run in found.runs)
    assert classes(replace(found, runs=lines), "Every run")[1] == ""


def test_every_pair_that_counts_stands_in_a_table_with_both_its_trainings() -> None:
    found = savings()
    ((read, kinds),) = tables(section(found, "Pair by pair"))
    counts = {run.pair for run in found.runs if run.arm == "dense" and run.counted} & {
        run.pair for run in found.runs if run.arm == "ticket" and run.counted
    }
    assert read["pair"] == [str(pair) for pair in sorted(counts)]
    assert len(counts) == 5
    assert read["arms"] == ["ticket beside dense"] * 5
    lines = {(run.arm, run.pair): run.joules or 0.0 for run in found.runs}
    first = min(counts)
    saved = 1 - lines["ticket", first] / lines["dense", first]
    assert read["change"][0] == f"{100 * saved:.0f} % less"
    assert list(kinds.values())[3:] == ["modelled + constant"] * 3


CASES = {
    "the training took less than the baseline's beyond doubt": (
        [(90.0, 100.0), (89.0, 100.0)],
        [(0.5, 1.0), (0.501, 1.0)],
    ),
    "an inference is no cheaper": ([(110.0, 100.0), (120.0, 100.0)], [(1.5, 1.0), (1.4, 1.0)]),
    "an inference is not cheaper beyond doubt": ([(110.0, 100.0), (120.0, 100.0)], [(0.5, 1.0), (1.4, 1.0)]),
    "fewer than two pairs": ([(110.0, 100.0)], [(0.5, 1.0)]),
}


def pay_back(found: Savings) -> dict[str, list[str]]:
    return tables(section(found, "When it pays back"))[0][0]


@pytest.mark.parametrize("start", CASES)
@pytest.mark.parametrize("stands", [True, False])
def test_what_two_means_say_is_no_fact_where_the_claim_was_refused(start: str, stands: bool) -> None:
    trainings, inferences = CASES[start]
    each = break_even(
        arm="ticket",
        batch=64,
        trainings=trainings,
        inferences=inferences,
        per_day=None,
        energy_class="modelled",
    )
    assert each.reason.startswith(start)
    standing = Standing.SAVING_MODELLED if stands else Standing.WITHIN_NOISE
    found = replace(with_claims(savings(), standing=standing), break_even=(each,))
    before = "on average " if start == "an inference is no cheaper" and not stands else ""
    remark = pay_back(found)["remark"][0]
    assert remark.removesuffix(" *(modelled)*") == before + each.reason


def test_a_training_that_never_pays_back_has_no_interval_and_negative_joules_have_a_true_minus() -> None:
    found = savings()
    never = {"inferences": None, "low": None, "high": None, "days": None, "saved_joules": -0.00049}
    read = pay_back(replace(found, break_even=(replace(found.break_even[0], **never),)))
    assert (read["inferences to pay back"], read["interval"], read["days"]) == (["–"], ["–"], ["–"])
    assert (read["saved by an inference"], read["extra for the training"]) == (["−490 µJ"], ["−516 J"])


def test_a_years_saving_is_shown_only_where_that_of_an_inference_may_be_claimed() -> None:
    found = savings()
    claims = tuple(
        replace(each, standing=Standing.SAVING_MODELLED if each.batch == 64 else Standing.WITHIN_NOISE)
        for each in found.claims
    )
    read = pay_back(replace(found, claims=claims))
    assert read["arm"] == ["ticket, batch 1", "ticket, batch 64"]
    assert read["saved in a year"] == ["no claim", "0.393 Wh"]


def checks(found: Savings) -> dict[str, str]:
    read = tables(section(found, QUALITY))[0][0]
    shown = [re.sub(r" \*\([^)]*\)\*", "", value) for value in read["found"]]
    return dict(zip(read["check"], shown, strict=True))


def test_warm_ups_lost_energy_and_heat_are_distinguished_from_none_and_from_not_known() -> None:
    found = checks(savings())
    assert found["warm-up runs discarded"] == "1"
    assert (found["runs set aside"], found["runs broken off"]) == ("0", "1")
    given_up = checks(with_one_given_up(savings()))
    assert (found[LOST], given_up[LOST]) == ("102 J", "102 J, and of 1 it is not known")
    assert given_up["runs broken off"] == "2"
    assert checks(with_nothing_lost())[LOST] == "none"
    hot, unknown = savings(gpu=True), replace(savings(gpu=True), quality=savings().quality)
    heat = [
        checks(each)["hottest GPU, at the end of any of these windows"] for each in (savings(), hot, unknown)
    ]
    assert heat == ["no GPU", "61 °C", "not known"]


def test_a_run_of_which_nothing_is_written_down_took_what_is_not_known_and_never_nothing() -> None:
    ((read, _),) = tables(section(with_one_given_up(savings()), "Every run"))
    rows = zip(*read.values(), strict=True)
    (row,) = (row for row in rows if row[:2] == ("ticket, seed 1", "no: broken off"))
    assert row[5:8] == ("not known",) * 3


def test_a_warm_up_is_of_no_pair_and_the_end_of_the_schedule_is_called_so() -> None:
    found = savings()
    lines = tuple(replace(run, stopped_by="deadline") for run in found.runs)
    ((read, _),) = tables(section(replace(found, runs=lines), "Every run"))
    (place,) = (place for place, run in enumerate(read["run"]) if run.startswith("warm-up"))
    assert read["pair"][place] == "–"
    assert set(read["ended by"]) == {"–", "the schedule"}


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_sentence_of_the_text_has_lost_its_middle(example: str) -> None:
    text = render_page("md", EXAMPLES[example])
    assert ", ." not in text
    assert "*(none)*" not in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("loss", "quality"), [("mse", "R²"), ("bce", "label accuracy"), ("own:loss", "quality")]
)
def test_what_is_no_accuracy_is_called_by_its_name(loss: str, quality: str) -> None:
    text = f'name = "x"\n[task]\nloss = "{loss}"\n[task.data]\nkind = "tabular"\n'
    found = comparison()
    found = replace(found, design=replace(found.design, recipe_text=text))
    page = render_page("md", assessed(found, Standing.ACCURACY_NOT_PRESERVED))
    assert quality in page
    # Codes of programs keep their words.
    text = re.sub(r"ACCURACY\\?_NOT\\?_PRESERVED|label accuracy", "", page, flags=re.IGNORECASE)
    assert "accuracy" not in text.lower()
    assert standing_words(Standing.ACCURACY_NOT_PRESERVED, "R²") == "R² not shown to be kept"
    assert standing_words(Standing.ACCURACY_NOT_PRESERVED, inside=True) == "accuracy not shown to be kept"
