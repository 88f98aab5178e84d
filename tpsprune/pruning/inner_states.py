"""What a ticket is to follow the dense model in: its outputs, and what layers and blocks inside it give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode, fixed_seed, item_tensors
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.layers import is_mixer, tensor_axes
from tpsprune.pruning.observations import sample_items
from tpsprune.pruning.output_error import Spread
from tpsprune.pruning.surgery import KeptElements

PROBE_ITEMS: Final = 32
"""On so many items, two at a time, it is seen which states to follow, and what a pass holds."""
BACKWARD: Final = 3
"""What a pass holds of a model's states for its backward pass, as a multiple of them."""
FOLLOWED: Final = 0.9
"""A state is followed if its error is below this at first: one further off is of other units."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a module gives: the dense elements along an axis that the ticket has of it, and its variance."""

    module: str
    variance: float = 1.0
    axis: int = 0
    kept: Tensor | None = None

    def of_dense(self, tensor: Tensor) -> Tensor:
        """Return of what the dense module gives the elements that the ticket has."""
        return tensor if self.kept is None else tensor.index_select(self.axis, self.kept.to(tensor.device))


@dataclass(frozen=True, slots=True, eq=False)
class Aims:
    """What the ticket is fitted to: outputs, by their variances, and states; what a step holds of an item."""

    variances: tuple[float, ...]
    states: tuple[State, ...]
    item_bytes: float

    @property
    def modules(self) -> list[str]:
        """Where the states are."""
        return [state.module for state in self.states]

    def error(self, ours: Given, theirs: Given) -> Tensor:
        """Return the mean error of the outputs plus that of the states."""
        pairs = zip(ours.outputs, theirs.outputs, self.variances, strict=True)
        parts = [[_square(a, b) / variance for a, b, variance in pairs]]
        parts.append(
            [
                _square(ours.states[each.module], each.of_dense(theirs.states[each.module])) / each.variance
                for each in self.states
                if each.module in ours.states and each.module in theirs.states
            ]
        )
        return torch.stack([torch.stack(part).mean() for part in parts if part]).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a pass gave: outputs that have items, what modules called once gave, the bytes of all of that."""

    outputs: list[Tensor]
    states: Mapping[str, Tensor]
    bytes: int


def find_aims(ticket: nn.Module, dense: nn.Module, batches: Sequence[Any], kept: KeptElements) -> Aims:
    """Return what the ticket is to follow the dense model in.

    A module's output is a state if it has parameters, is called once in both models and returns one tensor.
    Its units are those of the dense model, or those of its weight that ``kept`` names; they lie along the
    output's only axis of another length. What is further off than ``FOLLOWED`` is left out.
    """
    there = {name for name, _ in dense.named_modules()}
    names = [
        name
        for name, module in ticket.named_modules()
        if name and name in there and next(module.parameters(), None) is not None
    ]
    spreads: dict[str | int, Spread] = {}
    errors: dict[str | int, float] = defaultdict(float)
    states: dict[str, State] = {}
    held = seen = 0
    with torch.no_grad(), evaluation_mode(ticket), evaluation_mode(dense):
        for few in sample_items(batches, PROBE_ITEMS, 2):
            ours, theirs = (call_keeping(model, few, names) for model in (ticket, dense))
            pairs: dict[str | int, tuple[Tensor, Tensor]] = dict(
                enumerate(zip(ours.outputs, theirs.outputs, strict=True))
            )
            for name in (each for each in names if each in ours.states and each in theirs.states):
                a, b = ours.states[name], theirs.states[name]
                if name not in states and (state := _state_of(ticket, name, a, b, kept)):
                    states[name] = state
                if name in states:
                    pairs[name] = (a, states[name].of_dense(b))
            for key, (a, b) in pairs.items():
                if a.shape == b.shape:
                    spreads.setdefault(key, Spread(b.float().mean(0))).add(b.float())
                    errors[key] += float((a - b).float().square().sum())
            held += ours.bytes * BACKWARD + theirs.bytes
            seen += item_count(few)
    followed = [
        replace(state, variance=spreads[name].variance())
        for name, state in states.items()
        if name in spreads and errors[name] < FOLLOWED * spreads[name].squares()
    ]
    outputs = [spread.variance() for key, spread in spreads.items() if isinstance(key, int)]
    return Aims(tuple(outputs), tuple(followed), max(1.0, held / max(1, seen)))


def _state_of(ticket: nn.Module, name: str, ours: Tensor, theirs: Tensor, kept: KeptElements) -> State | None:
    if ours.shape == theirs.shape:
        return State(name)
    module = ticket.get_submodule(name)
    axis = tensor_axes(module, "out")["weight"] if is_mixer(module) else 0
    units = kept.get(f"{name}.weight", {}).get(axis)
    if units is None or ours.ndim != theirs.ndim:
        return None
    axes = [axis for axis in range(ours.ndim) if ours.shape[axis] != theirs.shape[axis]]
    return State(name, 1.0, axes[0], units) if [ours.shape[each] for each in axes] == [len(units)] else None


def call_keeping(model: nn.Module, batch: Any, names: Sequence[str]) -> Given:
    """Call a model and keep what its named modules give; what it draws at random it draws alike each time."""
    given: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                given.setdefault(name, []).append(out)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        stack.enter_context(fixed_seed())
        outputs = list(item_tensors(call_model(model, batch)))
    tensors = [each for outs in given.values() for out in outs for each in item_tensors(out)]
    states = {
        name: outs[0]
        for name, outs in given.items()
        if len(outs) == 1 and isinstance(outs[0], Tensor) and outs[0].is_floating_point() and outs[0].ndim
    }
    return Given(outputs, states, sum(each.nbytes for each in tensors))


def _square(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).float().square().mean()
