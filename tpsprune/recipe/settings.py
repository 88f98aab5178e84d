"""Sections and rules from Python: the fields, bounds and words of a recipe, without one round them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tpsprune.errors import Fault, PruneError, RecipeError, did_you_mean
from tpsprune.recipe.faults import faults_of
from tpsprune.recipe.prune import TARGETS, Latency, Macs, Params, Prune, Target, Tolerance, Widths
from tpsprune.recipe.stop import (
    ChangeRule,
    ConsensusRule,
    EpochRule,
    MaskRule,
    NoRule,
    PatienceRule,
    PlateauRule,
    ReopenRule,
    Rule,
    ThresholdRule,
)

__all__ = ["prune_settings", "relocated", "rule_of", "section"]


Section = TypeVar("Section")
_RULES = (
    NoRule
    | EpochRule
    | PlateauRule
    | PatienceRule
    | ThresholdRule
    | MaskRule
    | ChangeRule
    | ReopenRule
    | ConsensusRule
)


def section(kind: type[Section], place: str, given: Mapping[str, Any], source: str) -> Section:
    """Return a section of a recipe with the fields given, checked as a recipe's are.

    ``place`` is where it stands in a recipe, ``source`` the name that messages begin with.

    Raises:
        RecipeError: with every fault, each with the name of its field and what would do.
    """
    found: Section = _checked(TypeAdapter(kind), place, given, source, "")
    return found


def rule_of(given: Any, name: str, source: str) -> Rule:
    """Return a rule of ``[stop]`` given as a value, as ``PlateauRule()``, or in the words of a recipe.

    Values are checked too: Python lets anything into a dataclass.

    Raises:
        RecipeError: it is no rule, or has faults; names ``name`` and what would do.
    """
    if isinstance(given, _RULES):
        given = asdict(given)
    if not isinstance(given, Mapping):
        words = (
            f"is {given!r}; tpsprune.Plateau(), another rule, or the words of a recipe as in"
            " {'rule': 'plateau'} would do"
        )
        raise RecipeError(source, [Fault(name, words)])
    found: Rule = _checked(_rule_adapter(), "stop.draw", given, source, name)
    return found


def relocated(faults: Sequence[Fault], before: str, after: str) -> list[Fault]:
    """Return faults with the first part of their place exchanged: a user of Python has typed no section.

    >>> [str(fault) for fault in relocated([Fault("tps.coupling", "is wrong")], "tps", "")]
    ['coupling: is wrong']
    """
    moved = []
    for fault in faults:
        rest = fault.place.removeprefix(before).lstrip(".")
        moved.append(Fault(".".join(part for part in (after, rest) if part), fault.message))
    return moved


def _checked(adapter: TypeAdapter[Any], place: str, given: Mapping[str, Any], source: str, name: str) -> Any:
    try:
        # As JSON on purpose: strict Python mode would refuse to fill a dataclass from a mapping.
        return adapter.validate_json(json.dumps(dict(given), default=str))
    except ValidationError as error:
        parts = place.split(".")
        raw: Mapping[str, Any] = json.loads(json.dumps(dict(given), default=str))
        for part in reversed(parts):
            raw = {part: raw}
        errors = [{**each, "loc": (*parts, *each["loc"])} for each in error.errors(include_url=False)]
        raise RecipeError(source, relocated(faults_of(errors, raw), place, name)) from None


@cache
def _rule_adapter() -> TypeAdapter[Rule]:
    return TypeAdapter(Rule)


OF_RECIPES = ("probe_items", "round_epochs")
"""What only a recipe can be asked for: here the caller hands over the probe, and trains between rounds."""


def prune_settings(target: Target, settings: Mapping[str, Any]) -> Prune:
    """Return the settings of an extraction, checked as a recipe's are.

    Raises:
        PruneError: a name that ``Prune`` does not have, or a value out of bounds; every fault, with its
            name, what was found and what would do.
    """
    if not isinstance(target, Macs | Params | Latency | Tolerance | Widths):
        raise PruneError(
            f"target is {target!r}: tpsprune.{', '.join(kind.capitalize() for kind in TARGETS)} would do, "
            "as in target=tpsprune.Macs(0.5)"
        )
    known = [field.name for field in fields(Prune) if field.name not in OF_RECIPES]
    all_known = f" (there are: {', '.join(known)})"
    faults = [
        f"{name}: no such setting{did_you_mean(name, known) or all_known}"
        for name in settings
        if name not in known
    ]
    if faults:
        raise PruneError("; ".join(faults))
    try:
        # As JSON on purpose: strict Python mode would refuse to fill dataclasses from a mapping.
        return _adapter().validate_json(json.dumps({**settings, "target": asdict(target)}, default=str))
    except ValidationError as error:
        raise PruneError("; ".join(_words(each) for each in error.errors(include_url=False))) from None


@cache
def _adapter() -> TypeAdapter[Prune]:
    return TypeAdapter(Prune)


def _words(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].replace("Input should be", "must be").replace("Input should", "must")
    return f"{place}: {message} (found {error['input']!r})"
