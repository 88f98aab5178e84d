"""A finding as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from tpsprune.studies.figures import ratio
from tpsprune.studies.finding import Finding, Table

__all__ = ["page"]


def page(finding: Finding) -> str:
    """Return predicted beside measured, how it was measured, every pair, and what it does not show.

    Equal findings give equal pages, byte for byte.
    """
    parts = [
        f"# Study `{finding.prediction.name}`: {finding.ruling}",
        f"Predicted: {finding.prediction.statement}. Source: {finding.prediction.source}.",
        f"Measured: {finding.sentence}",
        "## Predicted beside measured",
        _table(_beside(finding)),
        "## How it was measured",
        _bullets(finding.protocol),
    ]
    for table in finding.tables:
        parts += [f"## {table.title}", _table(table)]
    parts += [
        "## What it does not show",
        _bullets(finding.limits),
        "## Where, and how to run it again",
        _bullets(f"{name}: {value}" for name, value in _machine(finding)),
        f"    {finding.command}",
    ]
    return "\n\n".join(parts) + "\n"


def _beside(finding: Finding) -> Table:
    return Table(
        title="",
        columns=(finding.measure, "predicted", "measured", "95 % interval", finding.counted),
        rows=tuple(
            (
                quantity.name,
                quantity.predicted,
                f"{quantity.bound.words} {ratio(quantity.measured.mean)}".strip(),
                f"{ratio(quantity.measured.low)} to {ratio(quantity.measured.high)}",
                str(quantity.measured.count),
            )
            for quantity in finding.quantities
        ),
    )


def _machine(finding: Finding) -> Iterable[tuple[str, str]]:
    return ((name.replace("_", " "), str(value)) for name, value in finding.machine.items())


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: Table) -> str:
    rule = ("---",) + ("---:",) * (len(table.columns) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (table.columns, rule, *table.rows))
