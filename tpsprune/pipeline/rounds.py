"""Cutting in rounds: how much of the way each round goes, and the plan of all rounds so far.

The plan after round k, in the numbering of the dense model, lies in ``state/plan-k.json``. Where the model
given was a ticket already, ``state/plan-0.json`` is the plan that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from tpsprune import pruning
from tpsprune.pruning import Plan
from tpsprune.pruning.replay import compose
from tpsprune.recipe.target import Latency, Macs, Params, Target
from tpsprune.records import GroupChange
from tpsprune.runs import RunFolder, read_json, write_json_atomically

__all__ = ["as_cut", "joined", "keep_base", "keep_last_plan", "keep_plan", "round_target"]


def round_target(
    target: Target,
    round_: int,
    rounds: int,
    *,
    macs_share: float = 1.0,
    parameters_share: float = 1.0,
) -> Target | None:
    """Return the target of round ``round_`` (from 1) of ``rounds``, of the model as cut so far.

    Each round keeps the same share of what is left: the root of what is still to go, as many-fold as there
    are rounds left. ``macs_share`` and ``parameters_share`` say how far the rounds before came: what one of
    them kept too much the next make good, and the last meets the target. Of latency each round gets the
    same part: rounds before are not measured again. A tolerance and explicit widths know no rounds.

    Returns:
        The given target where there is one round; ``None`` where it is met already.

    >>> str(round_target(Macs(0.25), 1, 2)), str(round_target(Macs(0.25), 2, 2, macs_share=0.5))
    ('macs=0.5', 'macs=0.5')
    >>> round_target(Macs(0.25), 2, 2, macs_share=0.2) is None
    True
    """
    if rounds == 1:
        return target
    root = 1 / (rounds - round_ + 1)
    match target:
        case Macs(macs=share):
            return Macs((share / macs_share) ** root) if share < macs_share else None
        case Params(params=share):
            return Params((share / parameters_share) ** root) if share < parameters_share else None
        case Latency(latency=share):
            return replace(target, latency=share ** (1 / rounds))
        case _:
            return target


def keep_plan(folder: RunFolder, plan: Plan, round_: int, target: Target) -> None:
    """Write the plan of all rounds up to ``round_``, whose own is ``plan``."""
    earlier = _read(folder, round_ - 1)
    whole = replace(compose(earlier, plan) if earlier else plan, target=str(target))
    write_json_atomically(_path(folder, round_), whole.to_json())
    write_json_atomically(folder.plan, whole.to_json())


def keep_last_plan(folder: RunFolder, round_: int) -> None:
    """Let the plan of the round before stand for ``round_`` too, in which nothing was cut."""
    earlier = _read(folder, round_ - 1)
    if earlier is not None:
        write_json_atomically(_path(folder, round_), earlier.to_json())


def keep_base(folder: RunFolder, plan: Plan) -> None:
    """Keep the plan that made the model given, which is a ticket already."""
    write_json_atomically(_path(folder, 0), plan.to_json())


def as_cut(folder: RunFolder, model: nn.Module, rounds: int) -> nn.Module:
    """Return ``model``, new from the recipe, in its shape after ``rounds`` rounds; weights as they are."""
    plan = _read(folder, rounds)
    return model if plan is None else pruning.replay(model, plan)


def joined(before: Sequence[GroupChange], after: Sequence[GroupChange]) -> tuple[GroupChange, ...]:
    """Return the changes of two cuts, one after the other, as those of one.

    Rank and residual are of the later cut; a group that only one of them has stands as it is.
    """
    earlier = {change.group: change for change in before}
    later = {change.group: change for change in after}
    return tuple(
        replace(later[name], width_before=earlier[name].width_before)
        if name in earlier and name in later
        else later.get(name) or earlier[name]
        for name in dict.fromkeys([*earlier, *later])
    )


def _read(folder: RunFolder, round_: int) -> Plan | None:
    path = _path(folder, round_)
    return Plan.from_json(read_json(path)) if path.is_file() else None


def _path(folder: RunFolder, round_: int) -> Path:
    return folder.state / f"plan-{round_}.json"
