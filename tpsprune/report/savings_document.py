"""A report from top to bottom: the verdict first, the hashes last, one order for every rendering."""

from __future__ import annotations

from collections.abc import Mapping

from tpsprune.records import Savings
from tpsprune.report.savings_blocks import Document, Picture
from tpsprune.report.savings_evidence import evidence_sections
from tpsprune.report.savings_method import method_section, quality_section
from tpsprune.report.savings_plot import Plot
from tpsprune.report.savings_runs import needed_section, reproduce_section, runs_section
from tpsprune.report.savings_svg import inline_svg
from tpsprune.report.savings_verdict import attribution_section, lead, shows_section, verdict_section

__all__ = ["picture_of", "savings_document"]


def savings_document(
    savings: Savings,
    pictures: Mapping[str, Picture],
    left_out: tuple[str, ...] = (),
    journal_sha256: str = "",
) -> Document:
    """Return what the report says, with the pictures given and a sentence for each that is not."""
    return Document(
        title=f"Energy report: {savings.comparison.design.name}",
        lead=lead(savings),
        sections=(
            verdict_section(savings),
            shows_section(savings),
            attribution_section(savings),
            *evidence_sections(savings, pictures, left_out),
            method_section(savings),
            quality_section(savings),
            runs_section(savings),
            needed_section(savings),
            reproduce_section(savings, journal_sha256),
        ),
    )


def picture_of(plot: Plot) -> Picture:
    """Return a plot as a document holds it."""
    return Picture(
        stem=plot.stem,
        title=plot.title,
        caption=plot.caption,
        spoken=plot.spoken,
        number_class=plot.number_class,
        svg=inline_svg(plot.figure, plot.stem, plot.title, plot.spoken),
    )
