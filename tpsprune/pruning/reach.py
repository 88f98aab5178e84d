"""Whether a target can be met at all: asked before the first step of training, not after the last."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tpsprune.errors import PruneError
from tpsprune.numerics.macs import MacCount, count_macs
from tpsprune.pruning.groups import Survey
from tpsprune.pruning.survey import survey
from tpsprune.pruning.widths import MacModel, choose_widths
from tpsprune.recipe.prune import Prune

__all__ = ["check_target", "surveyed"]


def surveyed(model: nn.Module, batch: Any, settings: Prune) -> tuple[Survey, MacCount, MacModel]:
    """Survey a model that is to be cut, and count what it costs as a function of its widths.

    Raises:
        PruneError: a pattern to leave alone matches nothing, or nothing can be cut.
    """
    example = batch[:2] if isinstance(batch, Tensor) else batch
    found = survey(model, example, settings.leave_alone)
    if not found.groups:
        raise PruneError(_nothing_to_cut(found))
    count = count_macs(model, example)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return found, count, MacModel.of(found.groups, shapes, count)


def check_target(model: nn.Module, batch: Any, settings: Prune) -> tuple[Survey, MacCount]:
    """Return what of the model can be cut, and its multiply-accumulates, if the target is within reach.

    Raises:
        PruneError: as ``surveyed``, or the target is below what the narrowest widths allowed would cost.
    """
    found, count, macs = surveyed(model, batch, settings)
    choose_widths(macs, [float(width) for width in macs.widths], settings)
    return found, count


def _nothing_to_cut(found: Survey) -> str:
    reasons = "".join(f"\n  {each.name}: {each.reason}" for each in found.left_alone[:5])
    more = len(found.left_alone) - 5
    return f"the model holds nothing that can be cut{reasons}" + (f"\n  and {more} more" if more > 0 else "")
