"""One of two processes that train one model together; ``test_two_processes`` starts both."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import tpsprune
from tests.loop.conftest import small_data, small_net, trained


def main(rank: int, meet: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    data = small_data()
    mine = tuple(part.chunk(2)[rank] for part in data)
    trained_weights = {}
    for variant in ("neurons", "moments"):
        model = nn.parallel.DistributedDataParallel(small_net(seed=rank))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tps = tpsprune.TPS(model, optimizer, variant=variant, apply="auto", data=data)  # type: ignore[arg-type]
        trained(model, optimizer, tps, mine, 4)  # type: ignore[arg-type]
        trained_weights[variant] = [each.detach() for each in model.parameters()]
    torch.save(trained_weights, Path(out))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
