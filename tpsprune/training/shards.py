"""One optimiser step from several shards of a batch: each by itself, then their mean.

Every shard begins with the same weights and buffers, and has random numbers of its own. What a forward pass
writes to buffers (running statistics) differs between shards; the step leaves the mean of it, which for a
moving average is the moving average of the mean. So after each step all processes hold the same bits, and
these hang on the number of shards, not on which process took which.

No ``DistributedDataParallel``: a penalty and an adapter have backward passes of their own, which its hooks
count as a second step, and a pruned model would have to be wrapped anew. The price: gradients are sent when
the last backward pass is over, not while it runs. Those of a model that is spread over the processes are
summed by ``fully_shard``, block by block, after each shard.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tpsprune.errors import PeersError
from tpsprune.numerics.peers import AbstractPeers
from tpsprune.training.device import step_seed
from tpsprune.training.spread import is_spread


@final
class ShardedSteps:
    """The steps of one training: ``begin`` and ``add`` around the passes of each shard, then ``join``.

    With one shard nothing is copied, seeded or sent. It does not see buffers that a forward pass replaces by
    other tensors, as against writing to them.
    """

    def __init__(self, model: nn.Module, peers: AbstractPeers, seed: int) -> None:
        self._peers, self._seed = peers, seed
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        if peers.size > 1 and is_spread(model):
            self._parameters = []
        self._buffers: list[Tensor] = []
        """Those that a pass writes to, as the first step has shown; all of them until then."""
        if peers.shards > 1:
            self._buffers = [each for each in model.buffers() if each.numel()]
        self._model = model
        self._still: list[tuple[Tensor, int]] = []
        """Buffers that no pass writes to, and their versions; one at least when the first step is done."""
        self._before: list[Tensor] = []
        self._moved: list[Tensor] = []
        self._squares: dict[int, Tensor] = {}
        self._losses: list[Tensor] = []

    def begin(self, step: int, shard: int) -> None:
        """Set buffers and random numbers for a shard of a step."""
        if self._peers.shards == 1:
            return
        torch.manual_seed(step_seed(self._seed, step * self._peers.shards + shard))
        if self._losses:
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
        else:
            self._before = [each.clone() for each in self._buffers]
            self._moved = [
                torch.zeros_like(each, dtype=torch.int64 if each.dtype == torch.bool else None)
                for each in self._buffers
            ]

    @torch.no_grad()
    def add(self, loss: Tensor, of_task: Tensor) -> None:
        """Take the losses of a shard whose gradients have been added, and what it wrote to buffers."""
        self._losses.append(torch.stack([loss, of_task]))
        for place, (buffer, before) in enumerate(zip(self._buffers, self._before, strict=True)):
            move = buffer ^ before if buffer.dtype == torch.bool else buffer - before
            self._moved[place].add_(move)
            if not (self._still or _has_mean(buffer)):
                square = move.to(torch.int64).square()
                self._squares[place] = self._squares[place] + square if place in self._squares else square

    @torch.no_grad()
    def join(self, step: int) -> tuple[Tensor, Tensor]:
        """Make gradients and buffers the means over all shards; return those of the two losses.

        Raises:
            PeersError: a buffer of whole numbers moves differently in different shards, or one is written to
                for the first time after the first step: what their mean is nobody knows.
        """
        losses, self._losses = self._losses, []
        shards = self._peers.shards
        if shards == 1:
            return losses[0][0], losses[0][1]
        if not self._still:
            self._refuse_uneven()
            self._forget_constant()
        totals = torch.stack(losses).sum(0)
        if self._peers.size > 1:
            self._sum(self._moved, totals)
        for buffer, before, moved in zip(self._buffers, self._before, self._moved, strict=True):
            if _has_mean(buffer):
                buffer.copy_(before + moved / shards)
            elif buffer.dtype == torch.bool:
                buffer.copy_(before ^ (moved // shards).bool())
            else:
                buffer.copy_(before + moved // shards)
        for buffer, version in self._still:
            if buffer._version != version:
                raise self._refusal(buffer, f"is written to in step {step + 1} for the first time")
        # What is drawn between two steps is drawn alike everywhere.
        torch.manual_seed(step_seed(self._seed, (step + 1) * shards))
        return totals[0] / shards, totals[1] / shards

    def _refusal(self, buffer: Tensor, why: str) -> PeersError:
        name = next(name for name, each in self._model.named_buffers() if each is buffer)
        return PeersError(f"the buffer '{name}' {why}: train in one process, without train.shards")

    def _refuse_uneven(self) -> None:
        """Refuse whole numbers that did not move alike in all shards: then n Σ m² is more than (Σ m)²."""
        moved = {place: self._moved[place].to(torch.int64, copy=True) for place in self._squares}
        self._peers.sum([*moved.values(), *self._squares.values()])
        for place, squares in self._squares.items():
            if not torch.equal(self._peers.shards * squares, moved[place].square()):
                why = "holds whole numbers that move differently in different shards"
                raise self._refusal(self._buffers[place], why)

    def _forget_constant(self) -> None:
        """Keep running statistics, and what differs in some process from what it was before the step."""
        statistics = {
            id(each)
            for module in self._model.modules()
            if getattr(module, "running_mean", None) is not None
            for each in module.buffers(recurse=False)
        }
        pairs = list(zip(self._buffers, self._before, strict=True))
        own = [
            place
            for place, (buffer, before) in enumerate(pairs)
            if id(buffer) in statistics or not torch.equal(buffer, before)
        ]
        kept = sorted({place for each in self._peers.gather(own) for place in each})
        others = (buffer for place, buffer in enumerate(self._buffers) if place not in set(kept))
        self._still = [(each, each._version) for each in others] or [(torch.zeros(()), 0)]
        self._buffers, self._before, self._moved = (
            [each[place] for place in kept] for each in (self._buffers, self._before, self._moved)
        )

    def _sum(self, moved: list[Tensor], totals: Tensor) -> None:
        """Sum over processes; a parameter that no shard gave a gradient keeps none."""
        reached = torch.tensor([float(each.grad is not None) for each in self._parameters])
        for each in self._parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        self._peers.sum([*gradients, *moved, totals, reached])
        for each, count in zip(self._parameters, reached.tolist(), strict=True):
            if count == 0:
                each.grad = None


def _has_mean(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()
