"""Pruning: what can be pruned, how much, which units, and the extraction itself as one transaction."""

from tpsprune.pruning.adoption import refit_pruned
from tpsprune.pruning.expansion import expand
from tpsprune.pruning.extract import Extraction, draw, extract
from tpsprune.pruning.groups import Consumer, Group, Prunability, PrunedGroup, Slice
from tpsprune.pruning.look import pack_look, restore_look
from tpsprune.pruning.plan import Plan
from tpsprune.pruning.planning import WidthPlan, plan_widths
from tpsprune.pruning.prunability import (
    GroupTensors,
    check_target,
    consumer_blocks,
    consumer_widths,
    find_groups,
    list_layers,
    tensors_by_group,
)
from tpsprune.pruning.repair import RepairStep, count_repair_steps, note_no_repair, repair, repair_ticket
from tpsprune.pruning.replay import carry_state, check_ticket, replay
from tpsprune.pruning.sizes import order_of_size, plan_sizes, shell_of
from tpsprune.pruning.synthetic import MOST_ITEMS, Synthetic, synthesize
from tpsprune.pruning.widths import width_step

__all__ = [
    "MOST_ITEMS",
    "Consumer",
    "Extraction",
    "Group",
    "GroupTensors",
    "Plan",
    "Prunability",
    "PrunedGroup",
    "RepairStep",
    "Slice",
    "Synthetic",
    "WidthPlan",
    "carry_state",
    "check_target",
    "check_ticket",
    "consumer_blocks",
    "consumer_widths",
    "count_repair_steps",
    "draw",
    "expand",
    "extract",
    "find_groups",
    "list_layers",
    "note_no_repair",
    "order_of_size",
    "pack_look",
    "plan_sizes",
    "plan_widths",
    "refit_pruned",
    "repair",
    "repair_ticket",
    "replay",
    "restore_look",
    "shell_of",
    "synthesize",
    "tensors_by_group",
    "width_step",
]
