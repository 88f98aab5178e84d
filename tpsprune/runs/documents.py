"""JSON documents with a schema that ships: checked before they are written and after they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from tpsprune.errors import RunFolderError
from tpsprune.records import Outcome, Savings
from tpsprune.runs.files import read_json, to_json_text, write_text_atomically
from tpsprune.runs.schemas import first_fault, is_newer

__all__ = [
    "energy_report_schema",
    "energy_report_text",
    "read_energy_report",
    "read_result",
    "result_schema",
    "write_result",
]


@final
@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of document: what people call it, the name and version it carries, and its schema's file."""

    article: str
    noun: str
    version: str
    file: str

    def schema(self) -> dict[str, Any]:
        return _schema(self.file)

    def text(self, raw: dict[str, Any]) -> str:
        if fault := first_fault(raw, self.schema()):
            raise ValueError(f"the {self.noun} does not fit its schema: {fault}")
        return to_json_text(raw)

    def read(self, path: Path) -> dict[str, Any]:
        raw = read_json(path)
        found = raw.get("schema") if isinstance(raw, dict) else None
        if is_newer(found, self.version):
            raise RunFolderError(
                f"{path} was written by a newer tpsprune: it is {found}, this one reads {self.version}; "
                "upgrade"
            )
        if fault := first_fault(raw, self.schema()):
            raise RunFolderError(f"{path} is not {self.article} {self.noun} this tpsprune can read: {fault}")
        document: dict[str, Any] = raw
        return document


@cache
def _schema(file: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(files("tpsprune.runs").joinpath(file).read_text(encoding="utf-8"))
    return schema


_RESULT = _Kind("a", "result", Outcome.SCHEMA, "result.schema.json")
_REPORT = _Kind("an", "energy report", Savings.SCHEMA, "energy_report.schema.json")


def result_schema() -> dict[str, Any]:
    """Return the JSON schema of ``result.json``, as shipped."""
    return _RESULT.schema()


def write_result(path: Path, raw: dict[str, Any]) -> None:
    """Write ``Outcome.to_json()`` to ``path``, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: it breaks its own schema, which is a fault of this package, not of the user.
    """
    write_text_atomically(path, _RESULT.text(raw))


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        RunFolderError: it is missing, damaged, of a newer version, or breaks the schema; the message
            names the first place.
    """
    return _RESULT.read(path)


def energy_report_schema() -> dict[str, Any]:
    """Return the JSON schema of a comparison's ``report.json``, as shipped."""
    return _REPORT.schema()


def energy_report_text(raw: dict[str, Any]) -> str:
    """Return a comparison's report as the text of its file, once it is found to fit its schema.

    Raises:
        ValueError: it breaks its own schema, which is a fault of this package, not of the user.
    """
    return _REPORT.text(raw)


def read_energy_report(path: Path) -> dict[str, Any]:
    """Read a comparison's report; raises as ``read_result``."""
    return _REPORT.read(path)
