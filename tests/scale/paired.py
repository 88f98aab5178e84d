"""Two peers in one process: threads that meet at a barrier, for what needs no process group."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, Self, TypeVar

from torch import Tensor

from tpsprune.numerics.peers import AbstractPeers

T = TypeVar("T")


class Paired(AbstractPeers):
    """One of two threads; what they exchange goes through JSON, as between processes."""

    def __init__(self, rank: int, board: list[Any], barrier: Barrier, *, nodes: int = 1) -> None:
        self.rank, self.size, self.shards = rank, 2, 2
        self.node, self.nodes = (rank, 2) if nodes == 2 else (0, 1)
        self.is_first_of_node = nodes == 2 or rank == 0
        self._board, self._barrier = board, barrier

    def with_shards(self, shards: int) -> Self:
        self.shards = shards
        return self

    def sum(self, tensors: Sequence[Tensor]) -> None:
        self._exchange([each.clone() for each in tensors])
        for place, each in enumerate(tensors):
            each.copy_(self._board[0][place] + self._board[1][place])
        self._barrier.wait()

    def write(self, tensors: Sequence[Tensor], by: int = 0) -> None:
        self._exchange([each.clone() for each in tensors])
        for place, each in enumerate(tensors):
            each.copy_(self._board[by][place])
        self._barrier.wait()

    def gather(self, value: Any) -> list[Any]:
        self._exchange(json.dumps(value))
        found = [json.loads(each) for each in self._board]
        self._barrier.wait()
        return found

    def first(self, make: Callable[[], Any], by: int = 0) -> Any:
        return self.gather(make() if self.rank == by else None)[by]

    def first_tensors(self, make: Callable[[], Mapping[str, Tensor]], by: int = 0) -> dict[str, Tensor]:
        self._exchange(dict(make()) if self.rank == by else None)
        found = {name: each.clone() for name, each in self._board[by].items()}
        self._barrier.wait()
        return found

    def _exchange(self, value: Any) -> None:
        self._board[self.rank] = value
        self._barrier.wait()


def in_two(work: Callable[[Paired], T], *, nodes: int = 1) -> list[T]:
    """Return what each of two peers makes; where one raises the other's wait ends."""
    board, barrier = [None, None], Barrier(2, timeout=30)

    def run(rank: int) -> T:
        try:
            return work(Paired(rank, board, barrier, nodes=nodes))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as threads:
        return [each.result() for each in [threads.submit(run, rank) for rank in (0, 1)]]
