"""Frozen values that cross rooms: printable, comparable, JSON-able, standard library only.

Every field name carries its unit (``_seconds``, ``_joules``, ``_share`` in 0..1); ``None`` means
"not known", never zero.
"""

from tpsprune.records.checked import Checked, CheckedGroup
from tpsprune.records.comparison import (
    ArmRun,
    BrokenOff,
    Choices,
    Comparison,
    CoursePoint,
    Design,
    Grid,
    IdleSpan,
    InferenceSpan,
)
from tpsprune.records.diagnosis import Diagnosis, MachineFacts, MeteredPart, Remedy, SoftwareFacts
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
from tpsprune.records.savings import (
    Accuracy,
    BandPoint,
    BreakEven,
    Change,
    Claim,
    Grade,
    Needed,
    PhaseMean,
    Quality,
    Reason,
    RunLine,
    Savings,
    Standing,
    Step,
    Support,
    WallFit,
)
from tpsprune.records.sizes import GroupChange, Latency, LeftAlone, Size
from tpsprune.records.task import TaskFacts

__all__ = [
    "GIVEN",
    "Accuracy",
    "ArmRun",
    "BandPoint",
    "BreakEven",
    "BrokenOff",
    "Change",
    "Checked",
    "CheckedGroup",
    "Choices",
    "Claim",
    "Comparison",
    "Cost",
    "CoursePoint",
    "Decided",
    "Decision",
    "Design",
    "Diagnosis",
    "EnergyClass",
    "EnergyMethod",
    "Event",
    "Finished",
    "Grade",
    "Grid",
    "GroupChange",
    "IdleSpan",
    "InferenceSpan",
    "Latency",
    "LeftAlone",
    "MachineFacts",
    "MeteredPart",
    "ModelFigures",
    "Needed",
    "Note",
    "Outcome",
    "PhaseEnded",
    "PhaseEnergy",
    "PhaseMean",
    "PhaseStarted",
    "Progress",
    "Pruned",
    "Quality",
    "Reading",
    "Reason",
    "Remedy",
    "RunLine",
    "Savings",
    "Size",
    "SoftwareFacts",
    "Standing",
    "Status",
    "Step",
    "Support",
    "TaskFacts",
    "Verdict",
    "WallFit",
    "Window",
]
