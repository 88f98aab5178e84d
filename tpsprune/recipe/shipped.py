"""The recipes that come with the package, reachable by name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["folder", "names", "path_of"]


def folder() -> Path:
    """Return the folder of shipped recipes: inside an installed package, or beside it in a checkout."""
    packaged = Path(__file__).parent / "shipped_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def names() -> tuple[str, ...]:
    """Return the names of all shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in folder().glob("*.toml")))


def path_of(name: str) -> Path | None:
    """Return the file of the shipped recipe ``name``, or ``None``."""
    return folder() / f"{name}.toml" if name in names() else None
