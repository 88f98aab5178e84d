"""Paths as a recipe writes them."""

from __future__ import annotations

from pathlib import Path

from tpsprune.errors import DataError

__all__ = ["expanded"]


def expanded(path: str, place: str) -> Path:
    """Return ``path`` with ``~`` or ``~user`` replaced by the home folder.

    Raises:
        DataError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{place}: {path} begins with the home of a user who is not known here") from error
