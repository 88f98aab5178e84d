"""The page and its twin in Markdown: every number has its class, every word of a user is escaped."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.savings_examples import ALL_OF_IT, EXAMPLES, savings, written
from tpsprune.claims import assess
from tpsprune.records import Savings, Standing
from tpsprune.report.forms import Number, Table, name
from tpsprune.report.savings.pages import render_page, write_report
from tpsprune.report.savings.plots import STEMS

CLASS = re.compile(r"(name|counted|derived|none|(measured|modelled|constant|simulated|chosen)( \+ [a-z]+)*)")
SILENT = {"code", "pre", "style", "title", "svg"}
VOID = {"meta", "link", "br", "img", "hr"}


class Reader(HTMLParser):
    """Collects text nodes with the tags and classes above them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[str], list[str]]] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if (known := values.get("id")) is not None:
            self.ids.append(known)
        if tag not in VOID:
            self.open.append((tag, values))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        classes = [value["data-class"] or "" for _, value in self.open if "data-class" in value]
        self.texts.append((data, [tag for tag, _ in self.open], classes))


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def beside(number_class: str) -> str:
    return f" <small>[{number_class}]</small>"


def page_of(found: Savings) -> str:
    """Return a page; where its lines may end is of no interest here."""
    return render_page("html", found).replace("\N{NO-BREAK SPACE}", " ")


def drawn_page() -> str:
    return written(ALL_OF_IT)["report.html"]


def numbers_without_class(page: str) -> list[str]:
    return [
        text
        for text, tags, classes in read(page).texts
        if re.search(r"\d", text) and not SILENT & set(tags) and not classes
    ]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_number_of_a_page_has_a_class(example: str) -> None:
    page = drawn_page() if example == ALL_OF_IT else page_of(EXAMPLES[example])
    assert not numbers_without_class(page)
    found = {classes[-1] for _, _, classes in read(page).texts if classes}
    assert all(CLASS.fullmatch(each) for each in found), found
    assert "mixed" not in found


def test_a_number_without_a_class_would_be_found() -> None:
    assert numbers_without_class("<p>of 12 pairs</p>") == ["of 12 pairs"]
    assert not numbers_without_class('<p>of <span data-class="counted">12</span> pairs</p>')


def test_the_class_of_a_column_is_written_at_its_head_and_beside_the_cells_where_rows_differ() -> None:
    rows = [(name("cpu"), Number("8 W", "constant")), (name("gpu"), Number("90 W", "measured"))]
    assert Table(("part", "watts"), rows).classes == ("", None)
    assert Table(("part", "watts"), rows[:1]).classes == ("", "constant")
    page = page_of(savings())
    assert '<td class="figure">modelled + constant</td>' in page
    assert f'<span data-class="modelled + constant">102 J{beside("modelled + constant")}</span>' in page


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_verdict_stands_in_one_place_in_letters_of_one_size_whatever_it_is(example: str) -> None:
    page = page_of(EXAMPLES[example])
    assert page.count('<p class="verdict">') == 1
    sheet = page[page.index("<style>") : page.index("</style>")]
    sizes = re.findall(r"([^{}]*\.(?:verdict|big)\b[^{}]*)\{[^}]*font-size", sheet)
    assert sizes
    assert not [each for each in sizes if re.search(r"saves|costs|refused|neutral", each)]


@pytest.mark.parametrize(
    ("standing", "factor", "tone", "words"),
    [
        (Standing.SAVING_MODELLED, 1.0, "saves", "43 % less"),
        (Standing.COST_INCREASE_MODELLED, 2.4, "costs", "37 % more"),
        (Standing.WITHIN_NOISE, 1.0, "neutral", "43 % less"),
        (Standing.SAVING_SIMULATED, 1.0, "neutral", "43 % less"),
    ],
)
def test_a_cost_is_shown_as_a_saving_is_and_a_refusal_is_toned_as_neither(
    standing: Standing, factor: float, tone: str, words: str
) -> None:
    page = page_of(savings(standing, factor=factor))
    first = page[page.index('<div class="headlines">') :].split("</div>", 1)[0]
    assert f'<div class="headline {tone}">' in first
    assert f">{words}</span>" in first
    assert '<p class="kind">modelled + constant</p>' in first
    banner = "refused" if tone == "neutral" else tone
    assert f'<div class="banner {banner}">' in page
    assert ("No claim" in first) == (tone == "neutral")


def test_classes_are_text_of_the_page_and_stay_with_what_is_copied() -> None:
    page = page_of(savings())
    copied = unescape(re.sub(r"<[^>]+>", "", page[page.index("</style>") :]))
    assert "102 J [modelled + constant]" in copied
    assert "In batches of 1 [chosen]" in copied
    assert "::after" not in page


def test_a_page_fits_a_sheet_of_paper() -> None:
    sheet = page_of(savings()).split("</style>")[0]
    assert "@page { size: A4; margin: 14mm 12mm; }" in sheet
    printed = sheet[sheet.index("@media print") :]
    assert "caption div { position: static;" in printed
    assert "th.figure, td.figure { white-space: normal;" in printed


def test_a_page_runs_no_script_and_asks_nobody_for_anything() -> None:
    page = drawn_page()
    reader = read(page)
    assert not {"script", "link", "iframe", "img", "object", "form"} & {tag for tag, _ in reader.tags}
    assert not [key for _, values in reader.tags for key in values if key.startswith("on")]
    links = [v for _, values in reader.tags for k, v in values.items() if k in {"src", "href", "xlink:href"}]
    assert links
    beside_it = {f"plots/{stem}.csv" for stem in STEMS}
    assert {each for each in links if not str(each).startswith("#")} == beside_it
    assert not re.search(r"url\((?!#)|@import", page)
    policies = [values["content"] for tag, values in reader.tags if "http-equiv" in values]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


def test_what_users_wrote_is_text_and_nothing_else() -> None:
    page = drawn_page()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page[page.index("</style>") :]
    assert "a note of &lt;b&gt;run&lt;/b&gt; &amp; co" in page
    text = written(ALL_OF_IT)["report.md"]
    assert "<script" not in text
    assert "&lt;script>" in text


def test_pictures_in_a_page_share_no_names_and_every_name_that_is_pointed_to_is_there() -> None:
    page = drawn_page()
    ids = read(page).ids
    assert len(ids) == len(set(ids))
    pointed = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {first or second for first, second in pointed} <= set(ids)


def test_every_picture_is_stated_in_words_and_drawn_in_the_pages_own_paints() -> None:
    page = drawn_page()
    pictures = re.findall(r"<svg\b[^>]*>", page)
    assert len(pictures) == 7
    assert all('role="img"' in each and 'aria-label="' in each for each in pictures)
    assert page.count("<figcaption>") == 7
    assert "#0102" not in page
    assert all(f"--{paint}:" in page for paint in re.findall(r"var\(--([\w-]+)\)", page))


def test_a_run_that_does_not_count_is_in_the_table_with_the_reason() -> None:
    page = page_of(savings())
    rows = re.findall(r"<tr><th[^>]*>.*?</tr>", page)
    set_aside = [row for row in rows if "others took 31 % of the machine" in row]
    broken = [row for row in rows if "broken off" in row and "seed 0" in row]
    assert len(set_aside) == len(broken) == 1
    assert "90.0 J" in broken[0]


def test_several_classes_are_named_and_never_called_mixed() -> None:
    found = savings()
    mixed = replace(found, claims=tuple(replace(each, energy_class="mixed") for each in found.claims))
    assert 'data-class="mixed"' not in page_of(mixed)
    assert page_of(mixed) == page_of(found)


def test_a_comparison_that_is_not_complete_says_so_at_the_top() -> None:
    found = savings()
    torn = replace(found, complete=False, comparison=replace(found.comparison, under_way="ticket, pair 5"))
    assert "Not complete" in page_of(torn).split("<section", 1)[0]
    assert "Not complete" not in page_of(found)


def test_a_table_of_markdown_keeps_its_columns_whatever_a_cell_holds() -> None:
    found = savings()
    line = replace(found.runs[0], counted=False, why_not="a | b\nc")
    text = render_page("md", replace(found, runs=(line, *found.runs[1:])))
    rows = [row for row in text.splitlines() if r"a \| b c" in row]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 13


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_the_page_is_no_wider_than_a_telephone(tmp_path: Path) -> None:
    # The page allows no script; a frame round it, which is ours, may ask how wide it came out.
    (tmp_path / "report.html").write_text(drawn_page(), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        '<iframe id="it" src="report.html" style="width:390px;height:800px;border:0"></iframe>'
        '<p id="is">not measured</p>'
        '<script>it.onload = () => { document.getElementById("is").textContent = "wide " + '
        "it.contentDocument.documentElement.scrollWidth; };</script>",
        encoding="utf-8",
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/frame.html"]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    found = re.search(r"wide (\d+)", dump)
    if found is None:
        pytest.skip("this Chromium measures nothing")
    assert int(found[1]) <= 390


def test_a_page_tells_how_many_machines_made_the_pairs_and_what_each_found(tmp_path: Path) -> None:
    found = savings().comparison
    several = replace(found, runs=tuple(replace(run, machine=f"{run.pair % 2:012x}") for run in found.runs))
    pages = []
    for each in (found, several):
        write_report(assess(each), tmp_path)
        pages.append((tmp_path / "report.md").read_text())
    assert "pairs count, made on 2 *(counted)* machines, seeds from" in pages[1]
    assert "*Each machine.*" in pages[1]
    rows = [line.split(" | ")[1] for line in pages[1].splitlines() if line.startswith("| machine ")]
    assert sum(int(each) for each in rows if each.isdecimal()) == len({run.pair for run in found.runs})
    assert "machine 1" not in pages[0]
    assert "machines" not in pages[0].partition("## 1.")[0]
