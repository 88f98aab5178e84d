"""A cut on weights in files is the cut in memory, in less memory; what needs all of them there is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tpsprune
from tpsprune.errors import ArtifactError, CannotWriteError, PruneError
from tpsprune.numerics import offload

INPUTS = torch.randn(64, 4, 16, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A block of a transformer, of whose attention the packed weights are opened."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.net = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x_btd: Tensor) -> Tensor:
        inputs = self.norms[0](x_btd)
        x_btd = x_btd + self.attention(inputs, inputs, inputs, need_weights=False)[0]
        return x_btd + self.net(self.norms[1](x_btd))


class Tied(nn.Module):
    """Its last layer's weight is its first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(16, 16, bias=False), nn.Sequential(Block(), Block())
        self.last = nn.Linear(16, 16, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(x_btd)))  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make()


@pytest.fixture
def nearly_all_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "LEAST_BYTES", 2**9)
    monkeypatch.setattr(offload, "RESIDENT_BYTES", 2**16)


def assert_equal(found: tpsprune.Extraction, plain: tpsprune.Extraction) -> None:
    assert found.plan == plain.plan
    assert found.macs_share == plain.macs_share
    ours, theirs = found.ticket.state_dict(), plain.ticket.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.usefixtures("nearly_all_in_files")
@pytest.mark.parametrize(
    ("make", "inputs", "settings"),
    [
        (Tied, INPUTS, {}),
        (Tied, INPUTS, {"head_width": True, "quality": "best"}),
        (convolutions, IMAGES, {}),
    ],
    ids=["attention", "raced", "convolutions"],
)
def test_the_ticket_is_that_of_a_cut_in_memory_to_the_bit(
    make: Callable[[], nn.Module], inputs: Tensor, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = made(make)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = tpsprune.extract(model, inputs, offload=tmp_path, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_equal(found, tpsprune.extract(model, inputs, repair=False, **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nearly_all_in_files")
def test_weights_that_were_never_in_memory_are_read_from_files(tmp_path: Path) -> None:
    model = made(Tied)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "last.weight"}
    names = sorted(tensors)
    for part in range(2):
        save_file({name: tensors[name] for name in names[part::2]}, tmp_path / f"part{part}.safetensors")
    with torch.device("meta"):
        shell = Tied()
    shell.last.weight = shell.first.weight
    found = tpsprune.extract(shell, INPUTS, offload=tmp_path, weights=tmp_path)
    assert_equal(found, tpsprune.extract(model, INPUTS, repair=False))
    assert found.ticket.last.weight is found.ticket.first.weight
    assert all(each.is_meta for each in shell.parameters())
    assert found.ticket.blocks[0].net[0].weight.untyped_storage().filename is not None
    assert sorted(each.name for each in tmp_path.iterdir()) == ["part0.safetensors", "part1.safetensors"]


def test_a_disk_that_is_full_for_a_moment_ends_the_cut_and_chooses_no_other_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    allocate = os.posix_fallocate

    def full_once(*arguments: int) -> None:
        calls.append(1)
        if len(calls) == place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(*arguments)

    monkeypatch.setattr(offload, "LEAST_BYTES", 2**8)
    monkeypatch.setattr(os, "posix_fallocate", full_once)
    model, place = made(Tied), 0
    tpsprune.extract(model, INPUTS, quality="best", offload=tmp_path)
    most = len(calls)
    for place in (1, most // 3, most // 2, most // 4 * 3, most - 50):
        calls.clear()
        with pytest.raises(CannotWriteError, match="cannot hold"):
            tpsprune.extract(model, INPUTS, quality="best", offload=tmp_path)
        assert len(calls) >= place
    assert not list(tmp_path.iterdir())


def test_a_note_says_that_nothing_was_repaired_where_something_would_be(tmp_path: Path) -> None:
    notes = tpsprune.extract(made(convolutions), IMAGES, offload=tmp_path).notes
    assert any("the ticket was not repaired: that takes its gradients" in each for each in notes)
    notes = tpsprune.extract(made(convolutions), IMAGES, offload=tmp_path, repair=False).notes
    assert not any("repair" in each for each in notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": tpsprune.Latency(0.5)}, "the target latency=0.5 is measured"),
        ({"target": tpsprune.Joules(0.5)}, "the target joules=0.5 is measured"),
        ({"units": "taylor"}, "units = 'taylor' reads the gradients"),
        ({"units": "synflow"}, "units = 'synflow' reads the gradients"),
        ({"low_rank": True}, "low_rank holds every layer's directions"),
        ({"repair": True}, "a repair holds the ticket's gradients"),
        ({"repair_steps": 5}, "a repair holds the ticket's gradients"),
    ],
)
def test_what_needs_all_in_memory_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=f"offload: {message}"):
        tpsprune.extract(made(convolutions), IMAGES, offload=tmp_path, **settings)


def test_a_model_without_values_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        shell = convolutions()
    with pytest.raises(PruneError, match=r"'0.weight' has no values .it lies on meta.; weights= names"):
        tpsprune.extract(shell, IMAGES, offload=tmp_path)
    with pytest.raises(PruneError, match="weights= is read with offload= alone"):
        tpsprune.extract(shell, IMAGES, weights=tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shell = convolutions().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    tensors = shell.state_dict()
    with pytest.raises(ArtifactError, match=r"holds no .*safetensors file"):
        tpsprune.extract(shell, IMAGES, offload=tmp_path, weights=tmp_path)
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="damaged or not a safetensors file"):
        tpsprune.extract(shell, IMAGES, offload=tmp_path, weights=path)
    save_file({**tensors, "0.weight": tensors["0.weight"].half(), "more": torch.zeros(2)}, path)
    fault = "more is not known; 0.weight is .16, 3, 3, 3. float16 where .16, 3, 3, 3. float32 is needed"
    with pytest.raises(ArtifactError, match=fault):
        tpsprune.extract(shell, IMAGES, offload=tmp_path, weights=path)
    save_file(tensors, tmp_path / "again.safetensors")
    with pytest.raises(ArtifactError, match=r"is in .*again.safetensors and in .*some.safetensors"):
        tpsprune.extract(shell, IMAGES, offload=tmp_path, weights=tmp_path)


CUT = """
import resource, sys
import torch
from torch import nn
import tpsprune

def net():
    pair = lambda: nn.Sequential(nn.Linear(1536, 1536), nn.ReLU())
    return nn.Sequential(*(each for _ in range(33) for each in pair()), nn.Linear(1536, 16))

folder, offloads = sys.argv[1], sys.argv[2] == "offload"
quick = dict(units="magnitude", widths="uniform", compensate=False)
inputs = torch.randn(32, 1536)
# What the imports take, those that a cut of a large model makes late among them, is no part of the bound.
tpsprune.extract(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), torch.randn(16, 8), repair=False)
torch.nn.Linear(4, 4, device="meta")(torch.zeros(2, 4, device="meta"))

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

base, data, most = memory("VmRSS:"), memory("VmData:"), 250 * 10**6
resource.setrlimit(resource.RLIMIT_DATA, (data + most, data + most))
try:
    if offloads:
        with torch.device("meta"):
            model = net()
        found = tpsprune.extract(model, inputs, offload=folder, weights=folder, **quick)
    else:
        found = tpsprune.extract(net(), inputs, repair=False, **quick)
except (MemoryError, RuntimeError) as error:
    assert "memory" in str(error), error
    print("ended by its limit")
else:
    used = memory("VmHWM:") - base  # ru_maxrss would be that of the process that started this one, if larger
    print(f"share {found.macs_share:.1f} within" if used <= most else f"used {used:,}")
"""


def test_three_hundred_megabytes_are_cut_within_two_hundred_and_fifty(tmp_path: Path) -> None:
    """RLIMIT_DATA ends the process at the bound; what the kernel calls resident counts pages of files too."""
    tensors = {
        f"{2 * rank}.{name}": each
        for rank in range(34)
        for name, each in nn.Linear(1536, 1536 if rank < 33 else 16).state_dict().items()
    }
    save_file(tensors, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_size > 300 * 10**6

    def cut(way: str) -> str:
        command = [sys.executable, "-c", CUT, str(tmp_path), way]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert cut("plain") == "ended by its limit"
    assert cut("offload") == "share 0.5 within"
