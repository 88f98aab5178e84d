"""A smaller PyTorch model, equally good, for less total energy, with proof.

``import tpsprune`` is light; torch is imported when something that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpsprune.pipeline import load

__all__ = ["load"]

_HOMES = {"load": "tpsprune.pipeline"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tpsprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
