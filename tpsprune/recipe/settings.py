"""Sections and rules from Python: the fields, bounds and messages of a recipe, without a whole recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from tpsprune.errors import Fault, PruneError, RecipeError, did_you_mean
from tpsprune.recipe.faults import faults_of
from tpsprune.recipe.prune import TARGETS, Prune, ShareTarget, Target, Widths, low_rank_faults
from tpsprune.recipe.stop import RULES, Rule

Section = TypeVar("Section")
OF_RECIPES: Final = ("calibration", "calibration_items", "round_epochs")
"""For recipes alone: a caller of Python passes calibration data, and trains between rounds."""


def read_section(kind: type[Section], place: str, values: Mapping[str, Any], source: str) -> Section:
    """Return a section of a recipe with these fields, checked as a recipe's are.

    ``place`` is where it stands in a recipe, ``source`` the name that messages begin with.

    Raises:
        RecipeError: with every fault, each with the name of its field and what is expected.
    """
    found: Section = _read(kind, place, values, source, "")
    return found


def read_rule(rule: Any, name: str, source: str) -> Rule:
    """Return a rule of ``[stop]`` from a value, as ``PlateauRule()``, or from the fields of a recipe.

    Values are checked too: Python lets anything into a dataclass.

    Raises:
        RecipeError: it is no rule, or has faults; names ``name`` and what is expected.
    """
    if isinstance(rule, RULES):
        rule = asdict(rule)
    if not isinstance(rule, Mapping):
        message = (
            f"is {rule!r}; expected tpsprune.Plateau(), another rule, or the fields of a recipe as in"
            " {'rule': 'plateau'}"
        )
        raise RecipeError(source, [Fault(name, message)])
    found: Rule = _read(Rule, "stop.draw", rule, source, name)
    return found


def prune_settings(target: Target, settings: Mapping[str, Any]) -> Prune:
    """Return the settings of an extraction, checked as a recipe's are.

    Raises:
        PruneError: a name that ``Prune`` does not have, or a value out of bounds; every fault, with its
            name, what was found and what is expected.
    """
    if not isinstance(target, ShareTarget | Widths):
        raise PruneError(
            f"target is {target!r}; expected one of "
            f"tpsprune.{', '.join(kind.capitalize() for kind in TARGETS)}, as in target=tpsprune.Macs(0.5)"
        )
    names = [field.name for field in fields(Prune) if field.name not in OF_RECIPES]
    choices = f" (there are: {', '.join(names)})"
    faults: Sequence[Fault] = [
        Fault(name, f"no such setting{did_you_mean(name, names) or choices}")
        for name in settings
        if name not in names
    ]
    if not faults:
        try:
            found = read_section(Prune, "prune", {**settings, "target": asdict(target)}, "")
        except RecipeError as error:
            faults = error.faults
        else:
            faults = relocate(low_rank_faults(found), "prune", "")
            if not faults:
                return found
    raise PruneError("; ".join(map(str, faults)))


def relocate(faults: Sequence[Fault], before: str, after: str) -> list[Fault]:
    """Return faults with the first part of their place exchanged: a user of Python has typed no section.

    >>> [str(fault) for fault in relocate([Fault("tps.coupling", "is wrong")], "tps", "")]
    ['coupling: is wrong']
    """
    places = [fault.place.removeprefix(before).lstrip(".") for fault in faults]
    return [
        Fault(".".join(filter(None, (after, place))), fault.message)
        for place, fault in zip(places, faults, strict=True)
    ]


def _read(kind: Any, place: str, values: Mapping[str, Any], source: str, name: str) -> Any:
    # As JSON on purpose: strict Python mode would refuse to fill a dataclass from a mapping.
    text = json.dumps(dict(values), default=str)
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        parts = place.split(".")
        raw = json.loads(text)
        for part in reversed(parts):
            raw = {part: raw}
        errors = [{**each, "loc": (*parts, *each["loc"])} for each in error.errors(include_url=False)]
        raise RecipeError(source, relocate(faults_of(errors, raw), place, name)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
