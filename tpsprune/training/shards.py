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
        self._are_known = False
        self._before: list[Tensor] = []
        self._moved: list[Tensor] = []
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
            self._moved = [torch.zeros_like(each) for each in self._buffers]

    @torch.no_grad()
    def add(self, loss: Tensor, of_task: Tensor) -> None:
        """Take the losses of a shard whose gradients have been added, and what it wrote to buffers."""
        self._losses.append(torch.stack([loss, of_task]))
        for buffer, before, moved in zip(self._buffers, self._before, self._moved, strict=True):
            if buffer.is_floating_point():
                moved.add_(buffer - before)

    @torch.no_grad()
    def join(self, step: int) -> tuple[Tensor, Tensor]:
        """Make gradients and buffers the means over all shards; return those of the two losses."""
        losses, self._losses = self._losses, []
        shards = self._peers.shards
        if shards == 1:
            return losses[0][0], losses[0][1]
        if not self._are_known:
            self._forget_constant()
        written = [
            (buffer, before, moved)
            for buffer, before, moved in zip(self._buffers, self._before, self._moved, strict=True)
            if buffer.is_floating_point()
        ]
        totals = torch.stack(losses).sum(0)
        if self._peers.size > 1:
            self._sum([moved for _, _, moved in written], totals)
        for buffer, before, moved in written:
            buffer.copy_(before + moved / shards)
        # What is drawn between two steps is drawn alike everywhere.
        torch.manual_seed(step_seed(self._seed, (step + 1) * shards))
        return totals[0] / shards, totals[1] / shards

    def _forget_constant(self) -> None:
        """Keep the buffers that differ, in some process, from what they were before the step."""
        pairs = list(zip(self._buffers, self._before, strict=True))
        own = [place for place, (buffer, before) in enumerate(pairs) if not torch.equal(buffer, before)]
        kept = sorted({place for each in self._peers.gather(own) for place in each})
        self._buffers, self._before, self._moved = (
            [each[place] for place in kept] for each in (self._buffers, self._before, self._moved)
        )
        self._are_known = True

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
