"""Records to and from JSON: ``dump``, ``load``, and the JSON schema of a record, all by its types.

A record is a frozen dataclass; nothing is checked when the program makes one. What a file holds is checked
when it is loaded: no unknown name, no silent conversion, every bound that a type states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Final, TypeVar

from annotated_types import Ge, Interval, MinLen
from pydantic import Field, TypeAdapter, ValidationError

Natural = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
AtLeastZero = Annotated[float, Ge(0.0)]
MOST_JOULES: Final = 1e15
"""More than any training ever took."""
Joules = Annotated[float, Interval(ge=0.0, le=MOST_JOULES)]
Seconds = Annotated[float, Interval(ge=0.0, le=1e10)]
Celsius = Annotated[float, Interval(ge=-273.15, le=1e4)]
Text = Annotated[str, MinLen(1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

T = TypeVar("T")


_adapter: Final[Callable[[Any], TypeAdapter[Any]]] = cache(TypeAdapter)


def dump(record: Any) -> dict[str, Any]:
    """Return a record as JSON values, names in the order of its fields."""
    raw: dict[str, Any] = _adapter(type(record)).dump_python(record, mode="json", by_alias=True)
    return raw


def load(kind: type[T], raw: object) -> T:
    """Return the record of ``kind`` that JSON values are of.

    Raises:
        ValueError: they are none; names the first place that is wrong, and how.

    >>> from tpsprune.records.energy import Cost
    >>> load(Cost, {"joules": None, "seconds": 2.0, "cpu_seconds": 1.5})
    Cost(joules=None, seconds=2.0, cpu_seconds=1.5)
    >>> load(Cost, {"joules": "3", "seconds": 2.0, "cpu_seconds": 1.5})
    Traceback (most recent call last):
    ...
    ValueError: joules must be a valid number (found '3')
    """
    try:
        # As text, since only there a list may be a tuple and a string a member while all else is strict.
        record: T = _adapter(kind).validate_json(json.dumps(raw), strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_first_fault(error, raw)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return record


def _first_fault(error: ValidationError, raw: object) -> str:
    """Return the first fault in words, behind its place as the file has it."""
    fault = error.errors(include_url=False)[0]
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    missing = kind in {"missing", "missing_argument", "missing_keyword_only_argument"}
    place = _place(fault["loc"], raw, whole=missing)
    if missing:
        return f"{place} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{place} is not known"
    _, should, words = message.partition(" should ")
    if not should:
        return f"{place}: {message}" if place else message
    return f"{place or 'it'} must {words} (found {shorten(fault['input'])})"


def shorten(value: object) -> str:
    """Return a value as it is shown in a message: 60 characters at most."""
    found = repr(value)
    return found if len(found) <= 60 else found[:57] + "..."


def _place(loc: Sequence[int | str], raw: Any, *, whole: bool) -> str:
    """Return the dotted place; names of a union's members, which are in no file, are left out."""
    parts = []
    for part in loc:
        if isinstance(raw, list) if isinstance(part, int) else isinstance(raw, Mapping) and part in raw:
            raw = raw[part]
            parts.append(str(part))
    return ".".join([*parts, str(loc[-1])] if whole else parts)


def json_schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of what ``dump`` makes of a record of ``kind``; nothing in it is open."""
    schema = _adapter(kind).json_schema(mode="serialization", by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": getattr(kind, "SCHEMA", "")}
    closed: dict[str, Any] = {**head, **_closed(schema)}
    return closed


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    # Where a title is a text it is one that pydantic made of a name; a field may be called so, too.
    found = {key: _closed(each) for key, each in node.items() if key != "title" or not isinstance(each, str)}
    if "properties" in node and node.get("type") == "object":
        found |= {"required": list(node["properties"]), "additionalProperties": False}
    return found


def is_newer(found: Any, current: str) -> bool:
    """Whether ``found`` names a later version of the schema ``current``, both written ``NAME/VERSION``.

    >>> is_newer("tpsprune.result/2", "tpsprune.result/1")
    True
    >>> is_newer("tpsprune.result/10", "tpsprune.result/9")
    True
    >>> is_newer("another.tool/2", "tpsprune.result/1")
    False
    """
    name, _, version = current.partition("/")
    if not isinstance(found, str) or not found.startswith(f"{name}/"):
        return False
    later = found.removeprefix(f"{name}/")
    # As text: a number of thousands of digits is no int to Python.
    return later.isdecimal() and (len(later), later) > (len(version), version)
