"""TOML to a ``Recipe``, or every fault at once, each with its place and what is expected."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from tpsprune.errors import Fault, RecipeError, did_you_mean
from tpsprune.recipe.faults import faults_of
from tpsprune.recipe.prune import TARGETS
from tpsprune.recipe.schema import Recipe, rule_faults
from tpsprune.records.strict import read_bytes

Raw = dict[str, Any]
MAX_BYTES: Final = 2**20
NESTED: Final = "is nested more deeply than can be read; no section of a recipe has more than a few levels"


def read(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by its name, with ``section.key=value`` overrides.

    Raises:
        RecipeError: with every fault found. Nothing has been built or written by then.
    """
    path = locate(source)
    return parse(_text(path), str(source), overrides)


def locate(source: str | Path) -> Path:
    """Return the file that ``source`` means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: there is neither, or it is a folder.
    """
    if not str(source):
        raise _fault("recipe", "give a file, or the name of a shipped recipe")
    path = Path(source)
    try:
        is_file, is_folder, is_there = path.is_file(), path.is_dir(), path.exists()
    except OSError as error:
        raise _fault(f"{str(source)[:60]}…", f"cannot be read: {error.strerror}") from error
    if is_file:
        return path
    if is_folder:
        raise _fault(source, "is a folder; a recipe is a TOML file")
    if is_there:
        raise _fault(source, "is no regular file; a recipe is a TOML file")
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    hint = did_you_mean(path.stem, shipped) or f" (shipped recipes: {', '.join(shipped)})"
    raise _fault(source, f"no such file, and no shipped recipe of that name{hint}")


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Turn the text of a recipe into a ``Recipe``; ``source`` names it in messages.

    Raises:
        RecipeError: with every fault found.
    """
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # besides TOML's own, a number of thousands of digits
        raise _fault(source, f"is not valid TOML: {error}") from error
    except RecursionError as error:
        raise _fault(source, NESTED) from error
    faults = [fault for override in overrides for fault in _apply(override, raw)]
    if faults:
        raise RecipeError(source, faults)
    try:
        # As JSON on purpose: strict Python mode would refuse to fill dataclasses from tables.
        recipe = _adapter().validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise RecipeError(source, faults_of(error.errors(include_url=False), raw)) from None
    except RecursionError as error:
        raise _fault(source, NESTED) from error
    if broken := rule_faults(recipe):
        raise RecipeError(source, broken)
    return recipe


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found = f"byte 0x{error.object[error.start]:02x} on line {line}"
        raise _fault(path, f"is not UTF-8 text ({found}); save it as UTF-8") from error
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror}") from error


def _apply(override: str, raw: Raw) -> list[Fault]:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [Fault("--set", f"wants section.key=value, found '{override}'")]
    table: Any = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return [Fault("--set", f"'{key.strip()}' goes through '{part}', which is not a table")]
    if parts[:2] == ["prune", "target"] and len(parts) > 2:
        target = raw["prune"]["target"]  # a target of another kind does not belong with this one
        for other in set(TARGETS) - {parts[2]}:
            target.pop(other, None)
    key_, new = parts[-1], _value(value.strip())
    if key_ in {"kind", "rule"} and table.get(key_) not in {None, new}:
        table.clear()  # what belongs to another kind does not belong to this one
    table[key_] = new
    return []


def _value(text: str) -> Any:
    """Read a TOML value; anything else is an unquoted string, as a shell user writes it."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _fault(source: str | Path, message: str) -> RecipeError:
    return RecipeError(str(source), [Fault("", message)])


@cache
def shipped_recipes() -> Mapping[str, Path]:
    """Return the shipped recipes by name, sorted: inside the package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "shipped_recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
