"""Which tokens reach which expert, where that must not be left to the router.

Products are counted, and groups tried, with tokens dealt out evenly, so that every expert has its share of
them and nothing depends on data. A layer that is fitted to another model's sees that model's tokens.

Shape letters: t tokens, k experts that a token reaches, s slots (a token and one of its experts: t · k).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias

import torch
from torch import Tensor

Routes: TypeAlias = tuple[list[Tensor], Tensor]
"""The slots of each expert, and the weight of each slot."""

Route: TypeAlias = Callable[[Tensor, Tensor, int], Routes]
"""From what the router says, ``index_tk`` and ``weights_tk``, and the number of experts."""


def as_routed(index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
    """Return the slots as the router has them; what it sends to no expert (an index beyond) is dropped."""
    index_s = index_tk.flatten().clamp_max(experts)
    counts = torch.bincount(index_s, minlength=experts + 1).tolist()
    return list(torch.split(index_s.argsort(stable=True), counts))[:experts], weights_tk.flatten()


def dealt(index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
    """Return the slots dealt out in turn: each expert has s / experts of them, or one more."""
    slots_s = torch.arange(index_tk.numel(), device=index_tk.device)
    return [slots_s[rank::experts] for rank in range(experts)], weights_tk.flatten()


def dealt_to_all(index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
    """Return the slots dealt out in turn, and from the first again until every expert has one."""
    found, weights_s = dealt(index_tk, weights_tk, experts)
    if not len(weights_s):
        return found, weights_s
    all_have = [own_s if len(own_s) else found[rank % len(weights_s)] for rank, own_s in enumerate(found)]
    return all_have, weights_s


class Recorded:
    """Routes of one pass, call by call: another pass follows them."""

    def __init__(self) -> None:
        self._calls: deque[Routes] = deque()

    def lead(self, index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
        """Return the slots as the router has them, and keep them."""
        self._calls.append(as_routed(index_tk, weights_tk, experts))
        return self._calls[-1]

    def follow(self, index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
        """Return the slots of the pass that leads, at its call of the same rank."""
        return self._calls.popleft() if self._calls else as_routed(index_tk, weights_tk, experts)


_ROUTE: Final[ContextVar[Route]] = ContextVar("route", default=as_routed)


@contextmanager
def routed(route: Route) -> Iterator[None]:
    """Have opened experts ask ``route`` for their tokens, until the block is left."""
    token = _ROUTE.set(route)
    try:
        yield
    finally:
        _ROUTE.reset(token)


def find_routes(index_tk: Tensor, weights_tk: Tensor, experts: int) -> Routes:
    """Return the slots of each expert and the slots' weights, as the route in force has them."""
    return _ROUTE.get()(index_tk, weights_tk, experts)
