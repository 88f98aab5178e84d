"""A smaller PyTorch model, equally good, for less total energy, with proof.

``import tpsprune`` is light; torch is imported when something that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpsprune.pipeline.extract import extract
    from tpsprune.pipeline.load import load
    from tpsprune.pruning.extract import Extraction
    from tpsprune.pruning.plan import Plan
    from tpsprune.pruning.replay import replay
    from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths

__all__ = [
    "Extraction",
    "Latency",
    "Macs",
    "Params",
    "Plan",
    "Tolerance",
    "Widths",
    "extract",
    "load",
    "replay",
]

_HOMES = {
    "load": "tpsprune.pipeline.load",
    "extract": "tpsprune.pipeline.extract",
    "Extraction": "tpsprune.pruning.extract",
    "Plan": "tpsprune.pruning.plan",
    "replay": "tpsprune.pruning.replay",
    **dict.fromkeys(("Latency", "Macs", "Params", "Tolerance", "Widths"), "tpsprune.recipe.target"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tpsprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
