"""The folder of a report: a page, the same as Markdown and as JSON, plots with their numbers, exports."""

from __future__ import annotations

from pathlib import Path

from tpsprune.records import Savings
from tpsprune.report.savings_document import picture_of, savings_document
from tpsprune.report.savings_exports import boamps, model_card, sci
from tpsprune.report.savings_html import html_page
from tpsprune.report.savings_json import report_json
from tpsprune.report.savings_markdown import markdown_page
from tpsprune.report.savings_plot import csv_text
from tpsprune.report.savings_plots import STEMS, plots
from tpsprune.report.savings_svg import own_svg
from tpsprune.runs import cannot_write, energy_report_text, to_json_text, write_text_atomically

__all__ = ["write_report"]

_KINDS = ("svg", "csv")
"""What a plot is written as."""


def write_report(savings: Savings, folder: Path, journal_sha256: str = "") -> tuple[Path, ...]:
    """Write ``report.html``, ``.md`` and ``.json``, ``plots/`` and ``exports/`` into ``folder``.

    Returns the paths, the page first. Equal records give equal bytes. Everything is made and
    held against its schema before the first file is written, and the page is written last: where it is new,
    everything beside it is. Plots of an earlier report that this one has no numbers for are removed.
    ``journal_sha256`` is the hash of the journal that was assessed, where the caller knows it.

    Raises:
        CannotWriteError: no space, not permitted, a file in the place of a folder.
        ValueError: the report breaks its own schema: a fault of this package, not of the user.

    Cost: some seconds, nearly all of it drawing.
    """
    drawn, left_out = plots(savings)
    pictures = {stem: picture_of(plot) for stem, plot in drawn.items()}
    document = savings_document(savings, pictures, left_out, journal_sha256)
    texts = {
        **{f"plots/{stem}.svg": own_svg(plot.figure, plot.title) for stem, plot in drawn.items()},
        **{f"plots/{stem}.csv": csv_text(plot) for stem, plot in drawn.items()},
        "exports/co2_eq_emissions.yaml": model_card(savings),
        "exports/boamps.json": to_json_text(boamps(savings)),
        "exports/sci.json": to_json_text(sci(savings)),
        "report.json": energy_report_text(report_json(savings, drawn, left_out, journal_sha256)),
        "report.md": markdown_page(document),
        "report.html": html_page(document),
    }
    _make_room(folder, set(texts))
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return tuple(folder / name for name in sorted(texts, key=lambda name: ("/" in name, name)))


def _make_room(folder: Path, names: set[str]) -> None:
    for part in ("plots", "exports"):
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder / part, error) from error
    known = {path.stem for path in map(Path, names) if path.parts[0] == "plots"}
    gone = [folder / "plots" / f"{stem}.{kind}" for stem in STEMS if stem not in known for kind in _KINDS]
    for old in gone:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(old, error) from error
