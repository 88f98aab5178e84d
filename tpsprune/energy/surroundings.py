"""Settings from outside that codecarbon would take up unasked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tpsprune.errors import MeterError

__all__ = ["OutsideSettings", "outside_settings", "refuse_outside_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideSettings:
    """The variables and files found, in order."""

    variables: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def outside_settings(
    environ: Iterable[str] | None = None, folders: Iterable[Path] | None = None
) -> OutsideSettings:
    """Find ``CODECARBON_*`` variables and ``.codecarbon.config`` files; by default of this process."""
    names = os.environ if environ is None else environ
    places = (Path.home(), Path.cwd()) if folders is None else folders
    paths = (folder / ".codecarbon.config" for folder in places)
    return OutsideSettings(
        variables=tuple(sorted(name for name in names if name.lower().startswith("codecarbon_"))),
        files=tuple(dict.fromkeys(path for path in paths if path.exists())),
    )


def refuse_outside_settings() -> None:
    """Refuse to meter where the environment or a file changes codecarbon's settings behind the recipe.

    ``CODECARBON_PUE=3`` alone triples every figure, and no record would show it.

    Raises:
        MeterError: names every variable and file found, and what would do.
    """
    found = outside_settings()
    if not (found.variables or found.files):
        return
    ways = [f"`unset {' '.join(found.variables)}`"] if found.variables else []
    ways += [f"move {path} away" for path in found.files]
    raise MeterError(
        "codecarbon would take settings from outside the recipe, which would change the figures unseen: "
        + " and ".join(ways)
        + ", or set energy.meter = 'none'"
    )
