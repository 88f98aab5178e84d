"""JSON schemas: the first fault of a document, in words, with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["first_fault", "is_newer"]


def first_fault(document: Any, schema: Mapping[str, Any]) -> str:
    """Return the first place where ``document`` breaks a JSON schema, and how; empty when it holds.

    >>> first_fault({"seed": "no"}, {"properties": {"seed": {"type": "integer"}}})
    "seed: 'no' is not of type 'integer'"
    >>> first_fault({"seed": 3}, {"properties": {"seed": {"type": "integer"}}})
    ''
    """
    from jsonschema import Draft202012Validator

    faults = sorted(
        Draft202012Validator(schema).iter_errors(document), key=lambda fault: list(map(str, fault.path))
    )
    if not faults:
        return ""
    place = ".".join(map(str, faults[0].absolute_path))
    return f"{place}: {faults[0].message}" if place else faults[0].message


def is_newer(found: Any, known: str) -> bool:
    """Whether ``found`` names a later version of the schema ``known``, both written ``NAME/VERSION``.

    >>> is_newer("tpsprune.result/2", "tpsprune.result/1")
    True
    >>> is_newer("tpsprune.result/10", "tpsprune.result/9")
    True
    >>> is_newer("somebody.elses/2", "tpsprune.result/1")
    False
    """
    name, _, version = known.partition("/")
    if not isinstance(found, str) or not found.startswith(f"{name}/"):
        return False
    later = found.removeprefix(f"{name}/")
    # As text: a number of thousands of digits is no int to Python.
    return later.isdecimal() and (len(later), later) > (len(version), version)
