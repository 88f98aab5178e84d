"""Frozen values that cross rooms: printable, comparable, JSON-able, standard library only.

Every field name carries its unit (``_seconds``, ``_joules``, ``_share`` in 0..1); ``None`` means
"not known", never zero.
"""

from tpsprune.records.checked import Checked, CheckedGroup
from tpsprune.records.energy import EnergyClass, EnergyMethod, PhaseEnergy, Window
from tpsprune.records.events import (
    Decided,
    Event,
    Finished,
    Note,
    PhaseEnded,
    PhaseStarted,
    Progress,
    Pruned,
)
from tpsprune.records.outcome import GIVEN, Cost, ModelFigures, Outcome
from tpsprune.records.readings import Decision, Reading, Status, Verdict
from tpsprune.records.sizes import GroupChange, Latency, LeftAlone, Size
from tpsprune.records.task import TaskFacts

__all__ = [
    "GIVEN",
    "Checked",
    "CheckedGroup",
    "Cost",
    "Decided",
    "Decision",
    "EnergyClass",
    "EnergyMethod",
    "Event",
    "Finished",
    "GroupChange",
    "Latency",
    "LeftAlone",
    "ModelFigures",
    "Note",
    "Outcome",
    "PhaseEnded",
    "PhaseEnergy",
    "PhaseStarted",
    "Progress",
    "Pruned",
    "Reading",
    "Size",
    "Status",
    "TaskFacts",
    "Verdict",
    "Window",
]
