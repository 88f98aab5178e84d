"""A state that is to be put back: of the right kind, whole, and made with the same settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tpsprune.errors import LoopError

__all__ = ["refuse_foreign", "refuse_other", "refuse_part"]


def refuse_foreign(place: str, state: Mapping[str, Any], schema: str) -> None:
    """Raise unless a state says that it is of ``schema``.

    Raises:
        LoopError: it says something else, or nothing.
    """
    if state.get("schema") != schema:
        raise LoopError(f"{place}: the state is {state.get('schema')!r}, and {schema!r} is needed")


def refuse_part(place: str, state: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise unless a state has everything of these names.

    Raises:
        LoopError: names all that is missing.
    """
    if missing := [repr(name) for name in names if name not in state]:
        raise LoopError(
            f"{place}: the state lacks {', '.join(missing)}; all that state_dict returned would do"
        )


def refuse_other(place: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise unless what a state was made with is what is here.

    Raises:
        LoopError: names the first that differs, with both values.
    """
    for name in dict.fromkeys((*ours, *theirs)):
        if theirs.get(name) != ours.get(name):
            raise LoopError(
                f"{place}: {name} is {theirs.get(name)!r} in the state and {ours.get(name)!r} here"
            )
