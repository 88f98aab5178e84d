"""Settings from outside that codecarbon would take up unasked."""

from __future__ import annotations

import os
from pathlib import Path

from tpsprune.errors import MeterError

__all__ = ["refuse_outside_settings"]


def refuse_outside_settings() -> None:
    """Refuse to meter where the environment or a file changes codecarbon's settings behind the recipe.

    ``CODECARBON_PUE=3`` alone triples every figure, and no record would show it.

    Raises:
        MeterError: names every variable and file found, and what would do.
    """
    variables = sorted(name for name in os.environ if name.lower().startswith("codecarbon_"))
    files = [
        path
        for path in (Path.home() / ".codecarbon.config", Path.cwd() / ".codecarbon.config")
        if path.exists()
    ]
    if not (variables or files):
        return
    ways = [f"`unset {' '.join(variables)}`"] if variables else []
    ways += [f"move {path} away" for path in dict.fromkeys(files)]
    raise MeterError(
        "codecarbon would take settings from outside the recipe, which would change the figures unseen: "
        + " and ".join(ways)
        + ", or set energy.meter = 'none'"
    )
