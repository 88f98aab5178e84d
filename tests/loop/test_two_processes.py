"""Two processes, half a batch each: what reads weights acts as in one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import tpsprune
from tests.loop.conftest import small_data, small_net, trained, weights_of

ROOT = Path(__file__).parents[2]


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.loop.two_processes"]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet"), str(tmp_path / f"{rank}")], cwd=ROOT)
        for rank in range(2)
    ]
    assert [each.wait(timeout=120) for each in started] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trained(net, optimizer, tpsprune.TPS(net, optimizer, variant="neurons"), small_data(), 4)
    torch.testing.assert_close(one["neurons"], weights_of(net))
