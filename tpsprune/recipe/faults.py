"""pydantic's findings as a user's faults: the place as typed in the file, what was found and expected."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from tpsprune.errors import Fault, did_you_mean
from tpsprune.recipe.prune import TARGETS
from tpsprune.recipe.schema import Recipe

TAGS = ("kind", "rule")


def faults_of(errors: Sequence[Mapping[str, Any]], raw: Mapping[str, Any]) -> list[Fault]:
    """Turn pydantic's error list into faults, one per place, in the order of the file's sections."""
    # A list whose items are at fault is called too short as well.
    deeper = {tuple(e["loc"][:depth]) for e in errors for depth in range(len(e["loc"]))}
    errors = [e for e in errors if e["type"] != "too_short" or tuple(e["loc"]) not in deeper]
    messages: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for error in errors:
        parts = _place(error["loc"], raw)
        place = ".".join(parts)
        message, shows_input = _words(error, parts, raw)
        if message not in messages.setdefault(place, []):
            messages[place].append(message)
        if shows_input:
            found[place] = f" (found {_shown(error['input'])})"
    return [
        Fault(place, " or ".join(parts_of_message) + found.get(place, ""))
        for place, parts_of_message in messages.items()
    ]


def _words(error: Mapping[str, Any], parts: Sequence[str], raw: Mapping[str, Any]) -> tuple[str, bool]:
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "unexpected_keyword_argument":
            owner = _section(parts[:-1], raw)
            names = [item.name for item in fields(owner)] if is_dataclass(owner) else []
            hint = did_you_mean(parts[-1], names) or f" (known here: {', '.join(names)})"
            return f"unknown key{hint}", False
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return "required, but missing", False
        case "union_tag_not_found" | "union_tag_invalid":
            tags, key = _tags(parts, raw), context["discriminator"]
            choices = ", ".join(f"'{tag}'" for tag in tags)
            if kind == "union_tag_not_found":
                return f"needs {key}, one of {choices}", False
            hint = did_you_mean(str(context["tag"]), tags)
            return f"unknown {key} '{context['tag']}'{hint}; one of {choices}", False
        case "literal_error":
            expected = context["expected"]
            values = [value.strip().strip("'") for value in expected.replace(" or ", ", ").split(",")]
            return f"must be {expected}{did_you_mean(str(error['input']), values)}", True
        case "predicate_failed":
            return f"must be {_PREDICATES.get(parts[-1], 'another value')}", True
        case "target_kind":
            return error["msg"] + _hint_of_kind(error["input"]), True
        case "too_short":
            least = context["min_length"]
            return "must not be empty" if least == 1 else f"needs at least {least}", False
        case "dataclass_type" | "dataclass_exact_type" | "dict_type":
            return "must be a table", True
    return error["msg"].replace("Input should be", "must be").replace("Input should", "must"), True


_PREDICATES = {
    "sizes": "shares that differ",
    "name": "lower-case letters, digits and hyphens, 64 at most, and begin with no hyphen",
    "rewind": "'none', 'init' or 'epoch:K' with K from 1",
}


def _hint_of_kind(found: Any) -> str:
    """Return the kind of target that was meant by a key that names none."""
    keys = list(found) if isinstance(found, Mapping) else []
    hints = (did_you_mean(key, TARGETS) for key in keys if key not in TARGETS)
    return next((hint for hint in hints if hint), "")


def _place(loc: Sequence[str | int], raw: Any) -> list[str]:
    """Walk ``raw`` along ``loc``, leaving out what pydantic adds: the tag of a union, the name of a type."""
    parts: list[str] = []
    here = raw
    tagged: Any = None
    for index, item in enumerate(loc):
        if isinstance(here, Mapping):
            named = any(here.get(tag) == item for tag in TAGS)
            # A target has no key ``kind``: the key of the kind comes after it.
            by_key = parts == ["prune", "target"] and item in TARGETS
            if here is not tagged and (named or by_key):
                tagged = here
                continue
            if item not in here and index < len(loc) - 1:
                continue
            here = here.get(str(item))
        elif isinstance(here, list) and isinstance(item, int):
            here = here[item] if item < len(here) else None
        else:
            continue
        parts.append(str(item))
    return parts


def _section(parts: Sequence[str], raw: Any) -> Any:
    """Return the dataclass that owns the table at ``parts``, the tuple that is there, or ``None``."""
    owner: Any = Recipe
    here = raw
    for part in parts:
        hint = _hint(owner, part)
        if isinstance(here, list):
            here = here[int(part)]
        else:
            here = here.get(part) if isinstance(here, Mapping) else None
        owner = _member(hint, here)
    return owner


def _hint(owner: Any, part: str) -> Any:
    """Return the type of a field of a dataclass, or of the items of a tuple."""
    if get_origin(owner) is tuple:
        return get_args(owner)[0]
    return get_type_hints(owner, include_extras=True).get(part) if is_dataclass(owner) else None


def _member(hint: Any, here: Any) -> Any:
    members = [each for each in _members(hint) if is_dataclass(each) or get_origin(each) is tuple]
    if len(members) == 1:
        return members[0]
    tags = {here.get(tag) for tag in TAGS} | set(here) if isinstance(here, Mapping) else set()
    return next((each for each in members if is_dataclass(each) and _tag_of(each) in tags), None)


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in {Union, types.UnionType}:
        return tuple(member for each in get_args(hint) for member in _members(each))
    return (hint,)


def _tag_of(member: Any) -> str | None:
    """Return the value that selects a section: the default of its ``kind`` or ``rule``, or a target's key."""
    for item in fields(member):
        if item.name in TAGS and item.default is not MISSING:
            return str(item.default)
        if item.name in TARGETS:
            return item.name
    return None


def _tags(parts: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    hint = _hint(_section(parts[:-1], raw), parts[-1])
    return [tag for member in _members(hint) if is_dataclass(member) and (tag := _tag_of(member))]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
