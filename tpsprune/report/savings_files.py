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
from tpsprune.runs import cannot_write, to_json_text, write_energy_report, write_text_atomically

__all__ = ["write_report"]


def write_report(savings: Savings, folder: Path) -> tuple[Path, ...]:
    """Write ``report.html``, ``.md`` and ``.json``, ``plots/`` and ``exports/`` into ``folder``.

    Returns the paths. Equal records give equal bytes. Plots of an
    earlier report that this one has no numbers for are removed. The page is written last: where it is
    new, everything beside it is.

    Raises:
        CannotWriteError: no space, not permitted, a file in the place of a folder.
        ValueError: the report breaks its own schema: a fault of this package, not of the user.

    Cost: some seconds, nearly all of it drawing.
    """
    drawn, left_out = plots(savings)
    document = savings_document(savings, {stem: picture_of(plot) for stem, plot in drawn.items()}, left_out)
    texts = {
        **{f"plots/{stem}.svg": own_svg(plot.figure, plot.title) for stem, plot in drawn.items()},
        **{f"plots/{stem}.csv": csv_text(plot) for stem, plot in drawn.items()},
        "exports/co2_eq_emissions.yaml": model_card(savings),
        "exports/boamps.json": to_json_text(boamps(savings)),
        "exports/sci.json": to_json_text(sci(savings)),
    }
    _make_room(folder, set(texts))
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    write_energy_report(folder / "report.json", report_json(savings, drawn, left_out))
    write_text_atomically(folder / "report.md", markdown_page(document))
    write_text_atomically(folder / "report.html", html_page(document))
    return tuple(folder / name for name in ("report.html", "report.md", "report.json", *texts))


def _make_room(folder: Path, names: set[str]) -> None:
    for part in ("plots", "exports"):
        try:
            (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder / part, error) from error
    known = {path.stem for path in map(Path, names) if path.parts[0] == "plots"}
    for old in (folder / "plots").iterdir():
        if old.suffix in {".svg", ".csv"} and old.stem in set(STEMS) - known:
            old.unlink(missing_ok=True)
