"""Pruning: what can be cut, how much, which units, and the cut itself as one transaction."""

from tpsprune.pruning.carry import carried
from tpsprune.pruning.extract import Extraction, extract
from tpsprune.pruning.groups import Consumer, Group, GroupCut, Slice, Survey
from tpsprune.pruning.plan import Plan
from tpsprune.pruning.planning import WidthPlan, plan_widths
from tpsprune.pruning.reach import check_target
from tpsprune.pruning.repair import repair
from tpsprune.pruning.replay import replay
from tpsprune.pruning.roll import layers_of
from tpsprune.pruning.sites import Sites, consumer_widths, sites
from tpsprune.pruning.survey import survey

__all__ = [
    "Consumer",
    "Extraction",
    "Group",
    "GroupCut",
    "Plan",
    "Sites",
    "Slice",
    "Survey",
    "WidthPlan",
    "carried",
    "check_target",
    "consumer_widths",
    "extract",
    "layers_of",
    "plan_widths",
    "repair",
    "replay",
    "sites",
    "survey",
]
