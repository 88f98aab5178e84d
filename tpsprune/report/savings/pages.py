"""The folder of a report: a page, the same as Markdown and as JSON, plots with their numbers, exports.

The sentences of a report stand in ``templates/savings.j2``; ``savings.html.j2`` and ``savings.md.j2``
define a paragraph, a table and a number in each form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, pass_context

from tpsprune.errors import CannotWriteError
from tpsprune.records import Savings, classes_of
from tpsprune.report import words
from tpsprune.report.forms import Form, Number, derived, load_templates, mark_up, measured, name
from tpsprune.report.savings import terms
from tpsprune.report.savings.exports import boamps, model_card, sci
from tpsprune.report.savings.json_report import report_json
from tpsprune.report.savings.plots import STEMS, Plot, csv_text, make_plots
from tpsprune.report.savings.svg import inline_svg, paint_variables, standalone_svg
from tpsprune.report.savings.view import (
    build_view,
    format_fact,
    format_needed,
    format_tolerance,
    format_wall_line,
)
from tpsprune.runs import cannot_write, energy_report_text, sweep, to_json_text, write_text_atomically

_TERMS: Final = (
    "claim_title",
    "class_of_step",
    "format_joules",
    "join_class_words",
    "metered_pairs",
    "standing_words",
)
"""Functions that the templates call by their own names."""
_PLOT_ENDINGS: Final = ("svg", "csv")


def write_report(savings: Savings, folder: Path, journal_sha256: str = "") -> tuple[Path, ...]:
    """Write ``report.html``, ``.md`` and ``.json``, ``plots/`` and ``exports/`` into ``folder``.

    Returns the paths, the page first. Equal records give equal bytes. Everything is made and
    checked against its schema before the first file is written, and the page is written last: where it is
    new, every other file is. Plots of an earlier report that this one has no numbers for are removed.
    ``journal_sha256`` is the hash of the journal that was assessed, where the caller knows it.

    Raises:
        CannotWriteError: no space, not permitted, a file in the place of a folder.
        ValueError: the report breaks its own schema: a fault of this package, not of the user.

    Cost: some seconds, nearly all of it plotting.
    """
    plots, left_out = make_plots(savings)
    texts = {
        **{f"plots/{stem}.svg": standalone_svg(plot.figure, plot.title) for stem, plot in plots.items()},
        **{f"plots/{stem}.csv": csv_text(plot) for stem, plot in plots.items()},
        "exports/co2_eq_emissions.yaml": model_card(savings),
        "exports/boamps.json": to_json_text(boamps(savings)),
        "exports/sci.json": to_json_text(sci(savings)),
        "report.json": energy_report_text(report_json(savings, plots, left_out, journal_sha256)),
        "report.md": render_page("md", savings, plots, left_out, journal_sha256),
        "report.html": render_page("html", savings, plots, left_out, journal_sha256),
    }
    _make_room(folder, set(texts))
    sweep(folder / "plots")  # Into which nothing is written where there are no numbers to plot.
    for path, text in texts.items():
        write_text_atomically(folder / path, text)
    return tuple(folder / path for path in sorted(texts, key=lambda path: ("/" in path, path)))


def render_page(
    form: Form,
    savings: Savings,
    plots: Mapping[str, Plot] | None = None,
    left_out: Sequence[str] = (),
    journal_sha256: str = "",
) -> str:
    """Return the report as one self-contained HTML page, or as Markdown that links to its plots."""
    shown = {stem: (plots or {}).get(stem) for stem in STEMS}
    page = _templates(form).get_template(f"savings.{form}.j2")
    text = page.render(build_view(savings, shown, left_out, journal_sha256))
    # One empty line parts blocks; text to be copied keeps every line.
    apart = re.compile(r"^(`{3,})\n.*?^\1$|<pre.*?</pre>|\n{3,}", re.DOTALL | re.MULTILINE)
    gap = "\n\n" if form == "md" else "\n"
    return apart.sub(lambda found: gap if not found[0].strip() else found[0], text).strip() + "\n"


@cache
def _templates(form: Form) -> Environment:
    names = {
        "paints": {"light": paint_variables(dark=False), "dark": paint_variables(dark=True)},
        "arms_of": lambda it: (name(it.arm), " beside ", name(it.baseline)),
        "change_words": words.change,
        "format_needed": format_needed,
        "grams": words.grams,
        "points": words.points,
        "classes_of": classes_of,
        **{each: getattr(terms, each) for each in _TERMS},
    }
    filters: dict[str, Callable[..., Any]] = {
        "capitalise": terms.capitalise,
        "change": terms.format_change,
        "fact": format_fact,
        "inline_svg": lambda plot: mark_up(inline_svg(plot.figure, plot.stem, plot.title, plot.spoken)),
        "interval": terms.format_interval,
        "joules": lambda joules, kind: Number(words.joules(joules), kind),
        "kind": pass_context(lambda context, shown: terms.class_of(context["savings"], shown)),
        "probability": lambda p: derived(words.probability(p)),
        "share_or_unknown": lambda share: "not known" if share is None else measured(words.percent(share)),
        "tolerance": format_tolerance,
        "tone": terms.tone_of,
        "wall_line": format_wall_line,
    }
    return load_templates(form, filters, names)


def _make_room(folder: Path, names: set[str]) -> None:
    for part in ("plots", "exports"):
        if (folder / part).is_symlink():
            raise CannotWriteError(f"{folder / part} is a link, which is not followed: move it away")
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder / part, error) from error
    former = [f"plots/{stem}.{ending}" for stem in STEMS for ending in _PLOT_ENDINGS]
    for old in (folder / each for each in former if each not in names):
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(old, error) from error
