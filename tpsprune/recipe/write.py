"""A ``Recipe`` back to TOML, defaults spelled out: what a run folder keeps, and what names it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tpsprune.recipe.schema import Recipe

__all__ = ["as_toml", "dumps"]


def dumps(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML; reading it again gives an equal recipe.

    Keys stand in the order of the sections' fields, so that equal recipes give equal text.
    """
    return "\n".join(_table(asdict(recipe), ())) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(key)} = {as_toml(value)}" for key, value in table.items() if _is_plain(value)]
    if path and (lines or not any(isinstance(value, Mapping) for value in table.values())):
        lines = ["", f"[{'.'.join(_key(part) for part in path)}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, (*path, key))
    return lines


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def as_toml(value: Any) -> str:
    """Return a value as TOML; a table is written inline.

    >>> as_toml({"macs": 0.5}), as_toml((1, 2)), as_toml(True)
    ('{ macs = 0.5 }', '[1, 2]', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{_key(key)} = {as_toml(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return repr(value)


def _string(text: str) -> str:
    # JSON escapes are TOML escapes, but for DEL, which TOML wants escaped and JSON leaves alone.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
