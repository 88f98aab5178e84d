"""The loop API in two processes: what each of them finds; ``test_loop`` compares."""

from __future__ import annotations

import hashlib
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import small_data, small_net, trained
from tpsprune.errors import TpspruneError
from tpsprune.loop import replicas
from tpsprune.numerics import peers
from tpsprune.pruning import Extraction, carry_state


class Net(nn.Module):
    """A classifier with batch norms, whose running statistics differ between processes, and a mask."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU()
        )
        self.head = nn.Linear(16, 3)
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x * self.mask))
        return scores


def own_items(count: int = 256) -> Tensor:
    """Return inputs that are this process's alone."""
    rank = distributed.get_rank()
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(rank)) * (1 + rank) + rank


def replicated() -> tuple[nn.parallel.DistributedDataParallel, torch.optim.Optimizer]:
    model = nn.parallel.DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 5)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    x = own_items(48)
    for _ in range(steps):
        cross_entropy(model(x), torch.arange(48) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()


def digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, each in state.items():
        found.update(name.encode() + each.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def describe(found: Extraction) -> list[Any]:
    plain = (found.plan.to_json(), digest(found.ticket.state_dict()), found.macs_share, *found.notes)
    return [*map(str, (*plain, *found.changes, *found.unpruned)), found.ticket.training]


def statistics_of(model: nn.Module) -> str:
    return digest(dict(model.named_buffers()))


def tickets() -> dict[str, Any]:
    model, optimizer = replicated()
    dense, x = model.module, own_items()
    seen = {
        "statistics": statistics_of(model),
        "parameters": digest(dict(model.named_parameters())),
        "alone": describe(tpsprune.extract(dense, x)),
    }
    found = tpsprune.extract(model, x)
    seen["together"] = describe(found)
    wrapped = nn.parallel.DistributedDataParallel(found.ticket)
    again = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    held = {name: optimizer.state[each] for name, each in dense.named_parameters()}
    carried = carry_state(held, found.plan)
    for name, each in found.ticket.named_parameters():
        again.state[each].update(carried.get(name, {}))
    train(wrapped, again, 5)
    seen["trained"] = digest(dict(wrapped.named_parameters()))
    seen["mask"] = bool(found.ticket.get_buffer("mask").all())
    return seen


def other_tickets() -> dict[str, Any]:
    model, _ = replicated()
    dense, x = model.module, own_items()
    by_argument = tpsprune.extract(dense, x, replicated=True, quality="fast")
    sizes = tpsprune.family(model, x, sizes=(0.75, 0.4), quality="fast")
    sizes.add(0.5)
    seen = {
        "family": {str(size): describe(sizes[size]) for size in sizes.sizes},
        "picked": describe(sizes.pick(macs=8 * 24 + 24 * 16)),
        "synthetic": describe(tpsprune.extract(model, "synthetic", example=torch.zeros(2, 8))),
        "repaired": describe(tpsprune.repair(tpsprune.replay(dense, by_argument.plan), model, x)),
        "by argument": describe(by_argument),
    }
    faults = {
        "of the first": lambda: tpsprune.extract(model, x, target=tpsprune.Macs(1e-9)),
        "of the second": lambda: tpsprune.extract(model, x if distributed.get_rank() == 0 else {}),
        "of a part": lambda: tpsprune.extract(held_by_one(), x),
    }
    return seen | {"faults": {name: message_of(call) for name, call in faults.items()}}


def told_tensors() -> dict[str, list[Any]]:
    """Return what arrives of tensors of the first process, of kinds that gloo knows and does not know."""
    kinds = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int16, torch.bool, torch.complex64)

    def make() -> dict[str, Tensor]:
        made = {str(kind): torch.tensor([[0.0, 1.0, 1.0]]).to(kind) for kind in kinds}
        return made | {"one": torch.tensor(7), "empty": torch.empty(0, 3)}

    found = replicas.peers_of([], True, "told_tensors").first_tensors(make)
    return {
        name: [str(each.dtype), list(each.shape), str(each.to(torch.complex64).tolist())]
        for name, each in found.items()
    }


def verdicts() -> dict[str, Any]:
    model, _ = replicated()
    rank = distributed.get_rank()

    def read(level: float, **settings: Any) -> tuple[list[Any], float, list[str]]:
        rule = tpsprune.Threshold(monitor="d_eff", threshold=level)
        called = []
        with tpsprune.Watch(
            model, own_items(), signals=["d_eff", "norm"], every_steps=2, draw=rule, **settings
        ) as watch:
            decisions = watch.step(1)
            decisions += watch.step(2, score=lambda: called.append("called") or 7.0 + rank)
            assert watch["d_eff"] is not None
            readings = [str(each) for each in watch.readings]
            memories = [str(each) for each in watch.rule_memories.values()]
            return [str(each) for each in decisions], watch["d_eff"], readings + memories + called

    _, own, _ = read(0.5, replicated=False)
    found = [0.0, 0.0]
    distributed.all_gather_object(found, own)
    level = sum(found) / 2
    return {
        "level": level,
        "own": own,
        "alone": read(level, replicated=False)[0],
        "together": read(level),
        "steps": message_of(lambda: uneven(model)),
    }


def uneven(model: nn.Module) -> None:
    with tpsprune.Watch(model, own_items(), signals=["norm"], every_steps=1) as watch:
        watch.step(1 + distributed.get_rank())


def held_by_one() -> nn.Module:
    """Return a model in a wrapper that spans this process alone."""
    groups = [distributed.new_group([rank]) for rank in range(2)]
    return nn.parallel.DistributedDataParallel(Net(), process_group=groups[distributed.get_rank()])


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except TpspruneError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def one_alone(comes: int) -> str:
    """Return what a process is told that comes to a reading alone."""
    model, _ = replicated()
    replicas._MET.clear()
    usual, peers.MEETING = peers.MEETING, timedelta(seconds=1.5)  # type: ignore[misc]
    try:
        watch = tpsprune.Watch(model, own_items(), signals=["norm"], every_steps=1)
        if distributed.get_rank() != comes:
            time.sleep(6.0)
            return ""
        began = time.monotonic()
        told = message_of(lambda: watch.step(1))
        assert time.monotonic() - began < 5.0
        return told
    finally:
        peers.MEETING = usual  # type: ignore[misc]
        replicas._MET.clear()


def penalised(variant: str) -> dict[str, Any]:
    """Return the weights that two halves of a batch train together, and those of the whole batch."""
    rank = distributed.get_rank()
    data = small_data()
    mine = (data[0].chunk(2)[rank], data[1].chunk(2)[rank])
    model = nn.parallel.DistributedDataParallel(small_net(seed=rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tps = tpsprune.TPS(model, optimizer, variant=variant, apply="auto", data=data)  # type: ignore[arg-type]
    trained(model, optimizer, tps, mine, 4)  # type: ignore[arg-type]
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trained(net, optimizer, tpsprune.TPS(net, optimizer, variant=variant, data=data), data, 4)  # type: ignore[arg-type]
    pairs = zip(model.parameters(), net.parameters(), strict=True)
    return {
        "weights": digest(dict(model.named_parameters())),
        "off": max(float((one - other).abs().max()) for one, other in pairs),
    }


def metered(by: str) -> dict[str, Any]:
    """Return what a meter of this process says, where the launcher says which is the machine's first."""
    local = os.environ.pop("LOCAL_RANK")
    try:
        if by == "launcher":
            os.environ["LOCAL_RANK"] = local
        return _metered()
    finally:
        os.environ["LOCAL_RANK"] = local


def _metered() -> dict[str, Any]:
    with tpsprune.Meter("fake") as meter:
        with meter.window("train"):
            pass
        spent = meter.take()
    return {"joules": spent.joules, "seconds": spent.seconds, "excluded": spent.method.excluded}


def example() -> None:
    path = str(Path(__file__).parents[2] / "examples" / "accelerate_loop.py")
    before, sys.argv = sys.argv, [path, "--epochs", "12"]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
