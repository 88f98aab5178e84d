"""What a run takes in energy: a meter gives windows, each figure with how it was obtained; windows add up."""

from tpsprune.energy.machine import family_cpu_seconds, find_metering_process, finish_queued_work
from tpsprune.energy.meter import AbstractMeter, MeteredSpan, build
from tpsprune.energy.nodes import join_nodes
from tpsprune.energy.windows import by_phase, class_of, total

__all__ = [
    "AbstractMeter",
    "MeteredSpan",
    "build",
    "by_phase",
    "class_of",
    "family_cpu_seconds",
    "find_metering_process",
    "finish_queued_work",
    "join_nodes",
    "total",
]
