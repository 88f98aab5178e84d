"""A smaller PyTorch model, equally good, for less total energy, with proof.

``import tpsprune`` is light; torch is imported when something that needs it is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpsprune.loop.comparison import Comparison
    from tpsprune.loop.extract import extract, replay
    from tpsprune.loop.family import Family, family
    from tpsprune.loop.fidelity import fidelity
    from tpsprune.loop.meter import EnergyUse, Meter
    from tpsprune.loop.penalty import TPS
    from tpsprune.loop.repair import repair
    from tpsprune.loop.watch import Watch
    from tpsprune.pipeline.load import load
    from tpsprune.pipeline.save import save
    from tpsprune.pruning.extract import Extraction
    from tpsprune.pruning.plan import Plan
    from tpsprune.recipe.prune import Bytes, Joules, Latency, Macs, Params, Tolerance, Widths
    from tpsprune.recipe.stop import ChangeRule as Change
    from tpsprune.recipe.stop import ConsensusRule as Consensus
    from tpsprune.recipe.stop import EpochRule as AtEpoch
    from tpsprune.recipe.stop import MaskRule as Mask
    from tpsprune.recipe.stop import PatienceRule as Patience
    from tpsprune.recipe.stop import PlateauRule as Plateau
    from tpsprune.recipe.stop import ReopenRule as Reopen
    from tpsprune.recipe.stop import ThresholdRule as Threshold

__all__ = [
    "TPS",
    "AtEpoch",
    "Bytes",
    "Change",
    "Comparison",
    "Consensus",
    "EnergyUse",
    "Extraction",
    "Family",
    "Joules",
    "Latency",
    "Macs",
    "Mask",
    "Meter",
    "Params",
    "Patience",
    "Plan",
    "Plateau",
    "Reopen",
    "Threshold",
    "Tolerance",
    "Watch",
    "Widths",
    "extract",
    "family",
    "fidelity",
    "load",
    "repair",
    "replay",
    "save",
]

_RULES = "tpsprune.recipe.stop"
_HOMES = {
    "load": ("tpsprune.pipeline.load", "load"),
    "save": ("tpsprune.pipeline.save", "save"),
    "extract": ("tpsprune.loop.extract", "extract"),
    "Extraction": ("tpsprune.pruning.extract", "Extraction"),
    "Family": ("tpsprune.loop.family", "Family"),
    "family": ("tpsprune.loop.family", "family"),
    "fidelity": ("tpsprune.loop.fidelity", "fidelity"),
    "Plan": ("tpsprune.pruning.plan", "Plan"),
    "repair": ("tpsprune.loop.repair", "repair"),
    "replay": ("tpsprune.loop.extract", "replay"),
    "TPS": ("tpsprune.loop.penalty", "TPS"),
    "Watch": ("tpsprune.loop.watch", "Watch"),
    "Meter": ("tpsprune.loop.meter", "Meter"),
    "EnergyUse": ("tpsprune.loop.meter", "EnergyUse"),
    "Comparison": ("tpsprune.loop.comparison", "Comparison"),
    "AtEpoch": (_RULES, "EpochRule"),
    **{
        name: (_RULES, f"{name}Rule")
        for name in ("Change", "Consensus", "Mask", "Patience", "Plateau", "Reopen", "Threshold")
    },
    **{
        name: ("tpsprune.recipe.prune", name)
        for name in ("Bytes", "Joules", "Latency", "Macs", "Params", "Tolerance", "Widths")
    },
}
"""Where each public name lives, and what it is called there."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home, own_name = _HOMES[name]
        return getattr(import_module(home), own_name)
    raise AttributeError(f"module 'tpsprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
