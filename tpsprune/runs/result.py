"""``result.json``: checked against its schema before it is written and after it is read."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpsprune.errors import RunFolderError
from tpsprune.records import Outcome
from tpsprune.runs.files import read_json, write_json_atomically
from tpsprune.runs.schemas import first_fault, is_newer

__all__ = ["read_result", "result_schema", "write_result"]


@cache
def result_schema() -> dict[str, Any]:
    """Return the JSON schema of ``result.json``, as shipped."""
    schema: dict[str, Any] = json.loads(
        files("tpsprune.runs").joinpath("result.schema.json").read_text(encoding="utf-8")
    )
    return schema


def write_result(path: Path, raw: dict[str, Any]) -> None:
    """Write ``Outcome.to_json()`` to ``path``, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
        ValueError: it breaks its own schema, which is a fault of this package, not of the user.
    """
    if fault := first_fault(raw, result_schema()):
        raise ValueError(f"the result does not fit its schema: {fault}")
    write_json_atomically(path, raw)


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        RunFolderError: it is missing, damaged, of a newer version, or breaks the schema; the message
            names the first place.
    """
    raw = read_json(path)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if is_newer(found, Outcome.SCHEMA):
        raise RunFolderError(
            f"{path} was written by a newer tpsprune: it is {found}, this one reads {Outcome.SCHEMA}; upgrade"
        )
    if fault := first_fault(raw, result_schema()):
        raise RunFolderError(f"{path} is not a result this tpsprune can read: {fault}")
    result: dict[str, Any] = raw
    return result
