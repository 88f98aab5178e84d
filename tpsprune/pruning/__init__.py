"""Pruning: what can be pruned, how much, which units, and the extraction itself as one transaction."""

from tpsprune.pruning.extract import Extraction, extract
from tpsprune.pruning.groups import Consumer, Group, Prunability, PrunedGroup, Slice
from tpsprune.pruning.plan import Plan
from tpsprune.pruning.planning import WidthPlan, plan_widths
from tpsprune.pruning.prunability import (
    GroupTensors,
    check_target,
    consumer_widths,
    find_groups,
    list_layers,
    tensors_by_group,
)
from tpsprune.pruning.repair import repair
from tpsprune.pruning.replay import carry_state, check_ticket, replay
from tpsprune.pruning.widths import width_step

__all__ = [
    "Consumer",
    "Extraction",
    "Group",
    "GroupTensors",
    "Plan",
    "Prunability",
    "PrunedGroup",
    "Slice",
    "WidthPlan",
    "carry_state",
    "check_target",
    "check_ticket",
    "consumer_widths",
    "extract",
    "find_groups",
    "list_layers",
    "plan_widths",
    "repair",
    "replay",
    "tensors_by_group",
    "width_step",
]
