"""``--target macs=0.5``: the words of a target, as an override of the recipe."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import click

from tpsprune.errors import did_you_mean

__all__ = ["target_override"]

EXAMPLES = "macs=0.5, params=0.5, latency=0.5, tolerance=0.01, widths=FILE.json or widths=conv1=12,conv2=30"


def target_override(words: str) -> str:
    """Return ``prune.target={ ... }`` for the words of ``--target``.

    >>> target_override("macs=0.5")
    'prune.target={ "macs" = 0.5 }'
    >>> target_override("widths=conv1=12,conv2=30")
    'prune.target={ "widths" = { "conv1" = 12, "conv2" = 30 } }'

    Raises:
        BadParameter: no such kind of target, or a value that none can have.
    """
    from tpsprune.recipe.target import TARGETS

    kind, equals, value = (part.strip() for part in words.partition("="))
    if kind not in TARGETS or not equals:
        hint = did_you_mean(kind, TARGETS) if equals else ""
        raise _bad(f"'{words}' is no target{hint}: {EXAMPLES} would do")
    if kind != "widths":
        return f"prune.target={{ {json.dumps(kind)} = {_share(kind, value)!r} }}"
    widths = _from_file(Path(value)) if value.endswith(".json") else _from_words(value)
    table = ", ".join(f"{json.dumps(name)} = {count}" for name, count in widths.items())
    return f'prune.target={{ "widths" = {{ {table} }} }}'


def _share(kind: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise _bad(f"{kind}={text}: a number above 0 and below 1 is needed") from None
    if not isfinite(share) or not 0 < share < 1:
        raise _bad(f"{kind}={text}: a share above 0 and below 1 is needed")
    return share


def _from_words(text: str) -> dict[str, int]:
    widths: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, equals, count = (part.strip() for part in item.partition("="))
        if not equals or not count.isdecimal():
            raise _bad(f"widths: '{item.strip()}' is not GROUP=UNITS; widths=conv1=12,conv2=30 would do")
        widths[name] = int(count)
    if not widths:
        raise _bad("widths names no group: a FILE.json, or conv1=12,conv2=30 would do")
    return widths


def _from_file(path: Path) -> dict[str, int]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _bad(f"widths={path}: the file is not there") from None
    except (OSError, ValueError) as error:
        raise _bad(f"widths={path}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict) or not raw or not all(type(count) is int for count in raw.values()):
        raise _bad(f'widths={path}: an object of units by group is needed: {{"conv1": 12, "conv2": 30}}')
    return raw


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--target")
