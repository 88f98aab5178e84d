"""What a run takes in energy: a meter gives windows, each figure with how it was obtained; windows add up."""

from tpsprune.energy.meter import AbstractMeter, MeteredSpan, build
from tpsprune.energy.windows import by_phase, class_of, total

__all__ = ["AbstractMeter", "MeteredSpan", "build", "by_phase", "class_of", "total"]
