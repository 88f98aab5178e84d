"""What a run takes in energy, window by window, each figure with how it was obtained."""

from tpsprune.energy.build import build
from tpsprune.energy.ledger import by_phase, class_of, total
from tpsprune.energy.meter import AbstractMeter, MeteredSpan

__all__ = [
    "AbstractMeter",
    "MeteredSpan",
    "build",
    "by_phase",
    "class_of",
    "total",
]
