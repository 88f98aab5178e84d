"""The plans in a run folder: ``state/plan-k.json`` of all rounds up to k, in the dense model's numbering.

Where the initial model was a ticket already, ``state/plan-0.json`` is the plan that made it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from tpsprune import pruning
from tpsprune.pruning import Plan
from tpsprune.pruning.replay import compose
from tpsprune.recipe.prune import Target
from tpsprune.runs import RunFolder, read_json, write_json_atomically


def keep_base_plan(folder: RunFolder, plan: Plan) -> None:
    """Keep the plan that made the initial model, which is a ticket already."""
    write_json_atomically(_plan_path(folder, 0), plan.to_json())


def pruned_by_plan(folder: RunFolder, model: nn.Module, rounds: int) -> nn.Module:
    """Return ``model``, new from the recipe, in its shape after ``rounds`` rounds; weights as they are."""
    plan = read_plan(folder, rounds)
    return model if plan is None else pruning.replay(model, plan)


def keep_plan(folder: RunFolder, plan: Plan, round_: int, target: Target) -> None:
    """Write the plan of all rounds up to ``round_``; ``plan`` is that of this round alone."""
    earlier = read_plan(folder, round_ - 1)
    whole = replace(compose(earlier, plan) if earlier else plan, target=str(target))
    keep_whole_plan(folder, whole, round_)
    write_json_atomically(folder.plan, whole.to_json())


def keep_whole_plan(folder: RunFolder, plan: Plan, round_: int) -> None:
    """Write a plan as that of all rounds up to ``round_``."""
    write_json_atomically(_plan_path(folder, round_), plan.to_json())


def read_plan(folder: RunFolder, round_: int) -> Plan | None:
    """Return the plan of all rounds up to ``round_``, if there is one."""
    path = _plan_path(folder, round_)
    return Plan.from_json(read_json(path)) if path.is_file() else None


def _plan_path(folder: RunFolder, round_: int) -> Path:
    return folder.state / f"plan-{round_}.json"
