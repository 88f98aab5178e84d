"""The reports that ship are what their journals say: each file, rendered anew, to the byte."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from tpsprune.report.assessment import assess_journal
from tpsprune.report.savings.pages import write_report
from tpsprune.runs import ComparisonFolder

SHIPPED = Path(__file__).parents[2] / "reports" / "savings"


@pytest.mark.parametrize(
    "name",
    ["cifar10", "digits", "fashion-mnist", "fashion-mnist-sizes", "fashion-to-digits", "modular-addition"],
)
def test_a_shipped_report_comes_out_again(name: str, tmp_path: Path) -> None:
    folder = ComparisonFolder(SHIPPED / name)
    digest = sha256(folder.journal.path.read_bytes()).hexdigest()
    for path in write_report(assess_journal(folder), tmp_path, journal_sha256=digest):
        file = path.relative_to(tmp_path)
        new, old = path.read_text(encoding="utf-8"), (SHIPPED / name / file).read_text(encoding="utf-8")
        assert new == old, f"{file}: run 'tpsprune report {SHIPPED / name}' and look at what changes"
