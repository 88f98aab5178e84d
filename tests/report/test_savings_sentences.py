"""What a report says in words: no more than was found, of its own class, and over what it was found."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from tests.report.savings_examples import EXAMPLES, at_the_wall, metered, savings
from tpsprune.claims.assess import break_even
from tpsprune.records import BrokenOff, EnergyClass, EnergyMethod, Savings, Standing, Support
from tpsprune.report.savings_blocks import Bullets, Picture, Section, Table, Tagged, column_classes
from tpsprune.report.savings_document import savings_document
from tpsprune.report.savings_evidence import evidence_sections
from tpsprune.report.savings_html import html_page
from tpsprune.report.savings_markdown import markdown_page
from tpsprune.report.savings_method import method_section, quality_section
from tpsprune.report.savings_pay_back import pay_back_table
from tpsprune.report.savings_plots_energy import phases_plot
from tpsprune.report.savings_runs import runs_section
from tpsprune.report.savings_verdict import attribution_section, headlines
from tpsprune.report.savings_words import standing_words


def words_of(value: Any) -> str:
    """Return the words of a block, a cell or a part of one."""
    match value:
        case str():
            return value
        case tuple():
            return "".join(map(words_of, value))
        case Bullets():
            return " ".join([value.title, *(words_of(item.parts) for item in value.items)])
        case Table():
            return " ".join(map(words_of, (value.caption.parts, *(c for row in value.rows for c in row))))
        case Section():
            return " ".join(map(words_of, value.blocks))
    parts = getattr(value, "parts", None)
    return str(getattr(value, "text", "")) if parts is None else words_of(parts)


def columns(shown: Table) -> dict[str, list[str]]:
    return {
        heading: [words_of(row[place]) for row in shown.rows] for place, heading in enumerate(shown.headings)
    }


def found_in(section: Section) -> dict[str, str]:
    first = section.blocks[0]
    assert isinstance(first, Table)
    return {words_of(row[0]): words_of(row[1]) for row in first.rows}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (savings(), "No wall meter was read"),
        (at_the_wall(), "They could not be held against the software's"),
        (at_the_wall(fit=True), "1.2 × software watts − 3 W"),
    ],
)
def test_a_wall_meter_is_read_where_one_was_chosen_whether_or_not_a_line_could_be_drawn(
    found: Savings, sentence: str
) -> None:
    said = words_of(method_section(found))
    assert sentence in said
    assert ("No wall meter" in said) == (found.comparison.choices.wall_meter is None)


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [
        ("machine", "Metered by meter, of the whole machine."),
        ("process", "Metered by meter, of the process alone."),
        ("simulated", "Simulated by the meter 'meter': of no machine."),
        ("recorded", "Taken by the meter 'meter' from windows that were recorded earlier."),
        ("none", "Nothing was metered."),
    ],
)
def test_what_was_metered_is_said_in_a_sentence(scope: str, sentence: str) -> None:
    classes = {"cpu": EnergyClass.MEASURED}
    found = metered(savings(), EnergyMethod(meter="meter", scope=scope, classes=classes), classes, "measured")
    shown = method_section(found).blocks[0]
    assert isinstance(shown, Table)
    assert words_of(shown.caption.parts) == sentence


def test_no_step_of_the_attribution_is_claimed_and_its_note_is_statistics() -> None:
    found = savings(arms=3)
    steps = tuple(replace(each, detail="accuracy −0.04 points") for each in found.attribution)
    shown = attribution_section(replace(found, attribution=steps)).blocks[0]
    assert isinstance(shown, Table)
    said = words_of(shown.caption.parts)
    assert "No step is claimed" in said
    assert "not corrected for being several" in said
    assert column_classes(shown) == ("", "", "derived", "modelled + constant", "modelled + constant")


def test_a_step_is_of_the_classes_of_its_own_arms() -> None:
    found = savings(arms=3)
    lines = tuple(
        replace(run, energy_class="measured") if run.arm == "stopped" else run for run in found.runs
    )
    shown = attribution_section(replace(found, runs=lines)).blocks[0]
    assert isinstance(shown, Table)
    assert [row[3].number_class for row in shown.rows if isinstance(row[3], Tagged)] == [
        "measured + modelled + constant"
    ] * 2


def test_the_bill_of_a_training_stands_beside_its_own_joules() -> None:
    said = words_of(headlines(savings())[0].notes)
    assert said.startswith("684 J (0.190 Wh) in place of 1.20 kJ. ")


def test_a_bound_of_accuracy_is_derived_and_covers_seeds_only() -> None:
    accuracy = headlines(savings())[2]
    assert (accuracy.figure.number_class, accuracy.interval.number_class) == ("counted", "derived")
    assert "seeds only, not the size of the test split" in words_of(accuracy.notes)
    page, text = (draw(savings_document(savings(), {})) for draw in (html_page, markdown_page))
    assert "(one-sided 95 %)\N{NO-BREAK SPACE}<small>[derived]</small>" in page
    assert "(one-sided 95 %) *(derived)*" in text
    shown = table_of(savings(), "see-accuracy")
    assert column_classes(shown)[5] == "derived"
    assert columns(shown)["kept"] == ["yes"]
    assert "seeds only, not the size of the test split" in words_of(shown.caption.parts)


def test_accuracy_is_not_said_to_be_lost_where_it_is_only_not_shown_to_be_kept() -> None:
    assert standing_words(Standing.ACCURACY_NOT_PRESERVED) == "Accuracy not shown to be kept"
    found = savings()
    lost = replace(found, accuracies=tuple(replace(each, preserved=False) for each in found.accuracies))
    assert "Not shown to be kept" in words_of(headlines(lost)[2].notes)
    assert columns(table_of(lost, "see-accuracy"))["kept"] == ["not shown"]


def table_of(found: Savings, anchor: str, place: int = 0) -> Table:
    sections = {section.anchor: section for section in evidence_sections(found, {}, ())}
    tables = [block for block in sections[anchor].blocks if isinstance(block, Table)]
    return tables[place]


def test_time_and_processor_time_are_measured_and_all_else_that_speaks_for_a_claim_is_counted() -> None:
    found = savings()
    heard = ("time", "CPU-seconds", "epochs trained", "operations (MACs)", "second thoughts")
    support = tuple(Support(what, 0.2, True) for what in heard)
    claims = tuple(replace(each, support=support) for each in found.claims)
    shown = table_of(replace(found, claims=claims), "see-claims", 1)
    assert shown.headings == ("claim", *heard)
    assert column_classes(shown) == ("", "measured", "measured", "counted", "counted", "counted")


def test_every_pair_that_counts_stands_in_a_table_with_both_its_trainings() -> None:
    found = savings()
    shown = table_of(found, "see-pairs")
    counts = {run.pair for run in found.runs if run.arm == "dense" and run.counted} & {
        run.pair for run in found.runs if run.arm == "ticket" and run.counted
    }
    read = columns(shown)
    assert read["pair"] == [str(pair) for pair in sorted(counts)]
    assert len(counts) == 5
    assert read["arms"] == ["ticket beside dense"] * 5
    lines = {(run.arm, run.pair): run.joules or 0.0 for run in found.runs}
    first = min(counts)
    saved = 1 - lines["ticket", first] / lines["dense", first]
    assert read["change"][0] == f"{100 * saved:.0f} % less"
    assert column_classes(shown)[3:] == ("modelled + constant",) * 3


CASES = {
    "the training took less than the baseline's beyond doubt": (
        [(90.0, 100.0), (89.0, 100.0)],
        [(0.5, 1.0), (0.501, 1.0)],
    ),
    "an answer is no cheaper": ([(110.0, 100.0), (120.0, 100.0)], [(1.5, 1.0), (1.4, 1.0)]),
    "an answer is not cheaper beyond doubt": ([(110.0, 100.0), (120.0, 100.0)], [(0.5, 1.0), (1.4, 1.0)]),
    "fewer than two pairs": ([(110.0, 100.0)], [(0.5, 1.0)]),
}


@pytest.mark.parametrize("start", CASES)
@pytest.mark.parametrize("stands", [True, False])
def test_what_two_means_say_is_no_fact_where_the_claim_was_refused(start: str, stands: bool) -> None:
    trainings, answers = CASES[start]
    each = break_even(
        arm="ticket", batch=64, trainings=trainings, inferences=answers, per_day=None, energy_class="modelled"
    )
    assert each.reason.startswith(start)
    found = savings()
    standing = Standing.SAVING_MODELLED if stands else Standing.WITHIN_NOISE
    claims = tuple(replace(claim, standing=standing) for claim in found.claims)
    (shown,) = pay_back_table(replace(found, claims=claims, break_even=(each,)))
    before = "on average " if start == "an answer is no cheaper" and not stands else ""
    assert columns(shown)["remark"] == [before + each.reason]


def test_a_training_that_never_pays_back_has_no_interval_and_negative_joules_have_a_true_minus() -> None:
    found = savings()
    each = replace(
        found.break_even[0], inferences=None, low=None, high=None, days=None, saved_joules=-0.00049
    )
    (shown,) = pay_back_table(replace(found, break_even=(each,)))
    read = columns(shown)
    assert (read["answers to pay back"], read["interval"], read["days"]) == (["–"], ["–"], ["–"])
    assert read["saved by an answer"] == ["−490 µJ"]
    assert read["extra for the training"] == ["−516 J"]


def test_a_years_saving_is_shown_only_where_that_of_an_answer_may_be_claimed() -> None:
    found = savings()
    claims = tuple(
        replace(each, standing=Standing.SAVING_MODELLED if each.batch == 64 else Standing.WITHIN_NOISE)
        for each in found.claims
    )
    (shown,) = pay_back_table(replace(found, claims=claims))
    read = columns(shown)
    assert read["arm"] == ["ticket, batch 1", "ticket, batch 64"]
    assert read["saved in a year"] == ["no claim", "0.392 Wh"]


def test_warm_ups_are_counted_apart_and_seeds_of_runs_in_no_claim_are_names() -> None:
    section = quality_section(savings())
    found = found_in(section)
    assert found["warm-up runs thrown away"] == "1"
    assert (found["runs set aside"], found["runs broken off"]) == ("0", "1")
    (gone,) = (
        block for block in section.blocks if isinstance(block, Bullets) and block.title == "In no claim"
    )
    assert [item.parts[0] for item in gone.items] == [
        Tagged("ticket, seed 0", "name"),
        Tagged("warm-up, seed 0", "name"),
    ]
    text = markdown_page(savings_document(savings(), {}))
    assert "- warm-up, seed 0: a short run to warm up, thrown away\n" in text
    assert "- ticket, seed 0: broken off after 1 window *(counted)*\n" in text


def test_what_is_in_no_claim_is_of_the_class_of_its_own_windows() -> None:
    text = markdown_page(savings_document(at_the_wall(), {}))
    assert "set aside or broken off | 102 J *(modelled + constant)* |" in text


def test_each_figure_of_quality_says_what_it_is_over() -> None:
    said = " ".join(found_in(quality_section(savings())))
    for words in ("trainings that count, answers, the idle machine", "a training or a window of answers"):
        assert words in said


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (savings(), "no GPU"),
        (savings(gpu=True), "61 °C"),
        (replace(savings(gpu=True), quality=savings().quality), "not known"),
    ],
)
def test_no_gpu_is_said_only_where_no_run_has_one(found: Savings, words: str) -> None:
    heat = [value for key, value in found_in(quality_section(found)).items() if key.startswith("hottest GPU")]
    assert heat == [words]


def test_a_warm_up_is_of_no_pair_and_the_end_of_the_schedule_is_called_so() -> None:
    found = savings()
    lines = tuple(replace(run, stopped_by="deadline") for run in found.runs)
    shown = runs_section(replace(found, runs=lines)).blocks[0]
    assert isinstance(shown, Table)
    read = columns(shown)
    assert read["run"][0] != read["run"][1]
    (place,) = (place for place, run in enumerate(read["run"]) if run.startswith("warm-up"))
    assert read["pair"][place] == "–"
    assert set(read["ended by"]) == {"–", "the schedule"}


def test_prose_without_a_figure_has_no_class() -> None:
    found = savings()
    lines = tuple(replace(run, why_not=run.why_not and "its pair is not complete") for run in found.runs)
    shown = runs_section(replace(found, runs=lines)).blocks[0]
    assert isinstance(shown, Table)
    assert column_classes(shown)[1] == ""


def test_classes_are_text_of_the_page_and_stay_with_what_is_copied() -> None:
    page = html_page(savings_document(savings(), {}))
    body = page[page.index("</style>") :]
    copied = unescape(re.sub(r"<[^>]+>", "", body))
    assert "102 J\N{NO-BREAK SPACE}[modelled + constant]" in copied
    assert "in batches of 1\N{NO-BREAK SPACE}[chosen]".lower() in copied.lower()
    assert "::after" not in page


def test_a_page_fits_a_sheet_of_paper() -> None:
    page = html_page(savings_document(savings(), {}))
    sheet = page[page.index("<style>") : page.index("</style>")]
    assert "@page { size: A4; margin: 14mm 12mm; }" in sheet
    printed = sheet[sheet.index("@media print") :]
    assert "caption div { position: static;" in printed
    assert "th.figure, td.figure { white-space: normal;" in printed


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_sentence_of_the_text_has_lost_its_middle(example: str) -> None:
    text = markdown_page(savings_document(EXAMPLES[example], {}))
    assert ", ." not in text
    assert "*(none)*" not in text


def test_the_numbers_of_a_plot_are_a_link_away() -> None:
    picture = Picture("pairs", "Pairs", savings_document(savings(), {}).lead, "slopes", "modelled", "<svg/>")
    page = html_page(savings_document(savings(), {"pairs": picture}))
    assert '<a href="plots/pairs.csv">plots/pairs.csv</a>' in page


def with_one_given_up(found: Savings) -> Savings:
    given_up = BrokenOff(arm="ticket", seed=1, pair=1, position=3, windows=())
    gone = (*found.comparison.broken_off, given_up)
    return replace(found, comparison=replace(found.comparison, broken_off=gone))


def test_a_run_of_which_nothing_is_written_down_took_what_is_not_known_and_never_nothing() -> None:
    found = with_one_given_up(savings())
    section = quality_section(found)
    label = "energy in no claim: of runs thrown away, set aside or broken off"
    assert found_in(quality_section(savings()))[label] == "102 J"
    assert found_in(section)[label] == "102 J, and of 1 it is not known"
    assert found_in(section)["runs broken off"] == "2"
    assert "ticket, seed 1: broken off; what it took is not known" in words_of(section)
    shown = runs_section(found).blocks[0]
    assert isinstance(shown, Table)
    rows = zip(*columns(shown).values(), strict=True)
    (row,) = (row for row in rows if row[:2] == ("ticket, seed 1", "no: broken off"))
    assert row[5:8] == ("not known",) * 3


def test_where_no_run_was_lost_no_energy_was() -> None:
    found = savings()
    whole = replace(
        found,
        comparison=replace(found.comparison, broken_off=()),
        quality=replace(found.quality, lost_joules=None),
    )
    assert "none" in {
        value for key, value in found_in(quality_section(whole)).items() if "in no claim" in key
    }


def test_the_sum_of_what_is_in_no_claim_says_what_is_not_in_it() -> None:
    drawn = phases_plot(with_one_given_up(savings()))
    assert drawn is not None
    assert "as a sum: 102 J, without 1 of which it is not known." in words_of(drawn.caption.parts)
