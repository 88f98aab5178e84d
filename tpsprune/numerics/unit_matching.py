"""Hidden units of two nets of one shape, matched by their weights: the same function in another order.

Shape letters: m units of a layer, of both nets.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tpsprune.numerics.assignment import assign

MOST_ROUNDS = 50


def match_units(first: nn.Module, second: nn.Module, layers: Sequence[str]) -> nn.Module:
    """Return a copy of the second net with its hidden units in the order that is nearest the first's.

    For a chain of linear layers, each read by the next alone, with functions of each unit by itself between.
    Layer by layer the order is the assignment of units that makes Σ ⟨incoming, incoming⟩ + ⟨outgoing,
    outgoing⟩ greatest, given the orders of its neighbours, until none changes: a local optimum. The copy
    computes what the second net does. Units that differ in scale and still compute alike are not seen.

    Args:
        first: not changed.
        second: not changed; of the same shapes.
        layers: names of the chain's linear layers, in the order they are called.

    Cost: an assignment of m × m for each hidden layer and round, 50 rounds at most.

    Source: Ainsworth, Hayase and Srinivasa 2022, "Git Re-Basin" (arXiv 2209.04836), weight matching.
    """
    theirs = [_weights(first, name) for name in layers]
    ours = [_weights(second, name) for name in layers]
    orders = [torch.arange(len(weight)) for weight, _ in ours[:-1]]
    for _ in range(MOST_ROUNDS):
        before = [order.clone() for order in orders]
        for rank in range(len(orders)):
            orders[rank] = _best_order(theirs, ours, orders, rank)
        if all(map(torch.equal, before, orders)):
            break
    matched = copy.deepcopy(second)
    with torch.no_grad():
        for rank, name in enumerate(layers):
            weight, bias = _in_order(ours, orders, rank)
            matched.get_parameter(f"{name}.weight").copy_(weight)
            if bias is not None:
                matched.get_parameter(f"{name}.bias").copy_(bias)
    return matched


def _weights(net: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    layer = net.get_submodule(name)
    assert isinstance(layer, nn.Linear), "the chain is of linear layers"
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


def _in_order(
    layers: Sequence[tuple[Tensor, Tensor | None]], orders: Sequence[Tensor], rank: int
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a layer, outputs and inputs in the order of their units."""
    weight, bias = layers[rank]
    if rank < len(orders):
        weight, bias = weight[orders[rank]], None if bias is None else bias[orders[rank]]
    return (weight[:, orders[rank - 1]] if rank else weight), bias


def _best_order(
    theirs: Sequence[tuple[Tensor, Tensor | None]],
    ours: Sequence[tuple[Tensor, Tensor | None]],
    orders: Sequence[Tensor],
    rank: int,
) -> Tensor:
    """Return the order of one layer's units, the other layers' given."""
    weight, bias = ours[rank]
    incoming = weight[:, orders[rank - 1]] if rank else weight
    after = ours[rank + 1][0]
    outgoing = after[orders[rank + 1]] if rank + 1 < len(orders) else after
    gain_mm = theirs[rank][0] @ incoming.T + theirs[rank + 1][0].T @ outgoing
    their_bias = theirs[rank][1]
    if bias is not None and their_bias is not None:
        gain_mm = gain_mm + torch.outer(their_bias, bias)
    return torch.tensor(assign(-gain_mm))
