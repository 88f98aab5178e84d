"""Optimizer state carried over a cut: what a moment knew about a weight, the weight's slice still knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpsprune.errors import PruneError, did_you_mean
from tpsprune.pruning.open_attention import opened_state
from tpsprune.pruning.plan import Plan
from tpsprune.pruning.surgery import elements_kept, take

__all__ = ["carried"]


def carried(state: Mapping[str, Mapping[str, Any]], plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the state of a dense model's optimizer as that of the ticket's, by parameter name.

    A tensor of its parameter's shape (``exp_avg``, ``momentum_buffer``) is sliced as the parameter was;
    a scalar (``step``) and whatever is no tensor is copied. What is held for the packed weight of an
    attention module that the plan opens falls apart as the weight does. Parameters that the plan adds
    have no state and start afresh, as torch's optimizers make it on their first step.

    Args:
        state: for each parameter name what the optimizer holds for it, as ``optimizer.state[parameter]``.
        plan: of the cut.

    Raises:
        PruneError: a name is not in the dense model, or a tensor of a cut parameter has neither its
            shape nor a single element (factored moments), so that it cannot be sliced.
    """
    dense = {fact.name: fact.shape for fact in plan.model}
    shapes = plan.shapes
    for name, entries in state.items():
        if name not in dense:
            raise PruneError(
                f"optimizer state of {name!r}: no such tensor in the plan's model{did_you_mean(name, dense)}"
            )
        if name not in shapes:
            _check_packed(name, entries, dense[name])
    kept = elements_kept(shapes, plan.groups)
    return {
        name: {
            key: _carried(f"{name!r}, {key!r}", value, shapes[name], kept.get(name, {}))
            for key, value in entries.items()
        }
        for name, entries in opened_state(state, plan.opened).items()
    }


def _check_packed(name: str, entries: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse factored moments of a weight that is taken apart: nothing says which part they are of."""
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.numel() > 1 and tuple(value.shape) != shape:
            raise _unfit(f"{name!r}, {key!r}", value, shape)


def _carried(place: str, value: Any, shape: tuple[int, ...], axes: Mapping[int, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    if tuple(value.shape) == shape:
        return take(value, axes).clone()
    if value.numel() == 1 or not axes:
        return value.clone()
    raise _unfit(place, value, shape)


def _unfit(place: str, value: Tensor, shape: tuple[int, ...]) -> PruneError:
    return PruneError(
        f"optimizer state {place} has shape {list(value.shape)}, its parameter {list(shape)}: "
        "it cannot be carried over the cut; start the optimizer afresh"
    )
