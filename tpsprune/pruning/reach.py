"""Whether a target can be met at all: asked before the first step of training, not after the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tpsprune.errors import PruneError
from tpsprune.numerics.forward import MacCount, count_macs
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.compensation import can_gain_bias
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.groups import Group, Survey
from tpsprune.pruning.layers import mixer, units_out
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.survey import survey
from tpsprune.pruning.widths import check_widths
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Params

__all__ = ["check_target", "cost_model", "surveyed"]


def surveyed(model: nn.Module, batch: Any, settings: Prune) -> tuple[Survey, MacCount, CostModel]:
    """Survey a model that is to be cut, and count what it costs as a function of its widths.

    The cost is in the unit of the target: parameters for ``params``, else multiply-accumulates. Every
    bias that the fold might add is counted as a parameter.

    Raises:
        PruneError: a pattern to leave alone matches nothing, nothing can be cut, or a weight is not finite.
    """
    _check_finite(model)
    example = take_items(batch, torch.arange(2))
    found = survey(model, example, settings.leave_alone, head_width=settings.head_width)
    if not found.groups:
        raise PruneError(_nothing_to_cut(found))
    count = count_macs(model, example)
    new_biases = _that_may_gain_bias(model, found.groups) if settings.fold and settings.new_biases else ()
    return found, count, cost_model(model, found.groups, count, settings, new_biases)


def cost_model(
    model: nn.Module,
    groups: Sequence[Group],
    count: MacCount,
    settings: Prune,
    new_biases: Sequence[str] = (),
) -> CostModel:
    """Return what a model costs in the unit of the target; ``new_biases`` are layers that are given one."""
    if not isinstance(settings.target, Params):
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return CostModel.of_macs(groups, shapes, count)
    held = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    biases = {f"{name}.bias": (units_out(mixer(model, name)),) for name in new_biases}
    return CostModel.of_params(groups, {**held, **biases}, total)


def check_target(model: nn.Module, batch: Any, settings: Prune) -> tuple[Survey, MacCount]:
    """Return what of the model can be cut, and its multiply-accumulates, if the target is within reach.

    A target of latency is not tried: nothing is measured here.

    Raises:
        PruneError: as ``surveyed``, or as ``widths.check_widths``: the target is below what the narrowest
            widths allowed would cost, or names a group that is not there.
    """
    found, count, costs = surveyed(open_attention(model)[0], batch, settings)
    check_widths(costs, settings, [group.name for group in found.groups])
    return found, count


def _that_may_gain_bias(model: nn.Module, groups: Sequence[Group]) -> tuple[str, ...]:
    names = dict.fromkeys(consumer.module for group in groups for consumer in group.consumers)
    return tuple(name for name in names if can_gain_bias(mixer(model, name)))


def _check_finite(model: nn.Module) -> None:
    """Refuse weights that a training has broken; a mask may hold infinities."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise PruneError(
                f"the weights of the model are not finite, at {name}: training may have diverged"
            )
    for name, buffer in model.named_buffers():
        if bool(buffer.isnan().any()):
            raise PruneError(
                f"the weights of the model are not finite, at {name}: training may have diverged"
            )


def _nothing_to_cut(found: Survey) -> str:
    reasons = "".join(f"\n  {each.name}: {each.reason}" for each in found.left_alone[:5])
    more = len(found.left_alone) - 5
    return f"the model holds nothing that can be cut{reasons}" + (f"\n  and {more} more" if more > 0 else "")
