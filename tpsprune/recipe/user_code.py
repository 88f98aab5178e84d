"""The one place where a recipe runs code: a callable of the user's own, by dotted path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpsprune.errors import Fault, RecipeError, first_line


def resolve(path: str, place: str) -> Callable[..., Any]:
    """Import ``package.module:function`` and return the callable.

    **This runs the module's code**: it is the only thing in a recipe that does. The current folder is
    searched too, as ``python -m`` would.

    Raises:
        RecipeError: the path has no colon, does not import, or names nothing callable; ``place`` is
            where in the recipe it stands.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise _fault(place, f"wants 'package.module:function', found '{path}'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _fault(place, f"'{module_name}' does not import: {first_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise _fault(place, f"'{module_name}' has no '{attribute}'")
        target = getattr(target, part)
    if not callable(target):
        raise _fault(place, f"'{path}' is a {type(target).__name__}, not something to call")
    return target  # type: ignore[no-any-return]


def call(path: str, arguments: dict[str, Any], place: str) -> Any:
    """Call the user's callable with ``arguments``; whatever it raises becomes a fault with its place.

    Raises:
        RecipeError: as ``resolve``, or the callable raised.
    """
    function = resolve(path, place)
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        raise _fault(place, f"'{path}' raised {first_line(error)}") from error


def _fault(place: str, message: str) -> RecipeError:
    return RecipeError("recipe", [Fault(place, message)])
