"""``report.json`` of a comparison: checked against its schema before it is written and after it is read."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpsprune.errors import RunFolderError
from tpsprune.records import Savings
from tpsprune.runs.files import read_json, write_json_atomically
from tpsprune.runs.schemas import first_fault, is_newer

__all__ = ["energy_report_schema", "read_energy_report", "write_energy_report"]


@cache
def energy_report_schema() -> dict[str, Any]:
    """Return the JSON schema of an energy report, as shipped."""
    schema: dict[str, Any] = json.loads(
        files("tpsprune.runs").joinpath("energy_report.schema.json").read_text(encoding="utf-8")
    )
    return schema


def write_energy_report(path: Path, raw: dict[str, Any]) -> None:
    """Write a report to ``path``, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: it breaks its own schema, which is a fault of this package, not of the user.
    """
    if fault := first_fault(raw, energy_report_schema()):
        raise ValueError(f"the energy report does not fit its schema: {fault}")
    write_json_atomically(path, raw)


def read_energy_report(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        RunFolderError: it is missing, damaged, of a newer version, or breaks the schema; the message
            names the first place.
    """
    raw = read_json(path)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if is_newer(found, Savings.SCHEMA):
        raise RunFolderError(
            f"{path} was written by a newer tpsprune: it is {found}, this one reads {Savings.SCHEMA}; upgrade"
        )
    if fault := first_fault(raw, energy_report_schema()):
        raise RunFolderError(f"{path} is not an energy report this tpsprune can read: {fault}")
    report: dict[str, Any] = raw
    return report
