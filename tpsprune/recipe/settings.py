"""``[prune]`` from Python: the same fields and the same bounds, without a recipe round them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import TARGETS, Latency, Macs, Params, Target, Tolerance, Widths

__all__ = ["prune_settings"]


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
