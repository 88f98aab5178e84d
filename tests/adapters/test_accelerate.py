"""The example for Accelerate runs as it stands, and a wrapped optimiser moves as the one in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import small_data, small_net, weights_of

accelerate = pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]


def test_the_example_draws_a_ticket() -> None:
    command = [sys.executable, "examples/accelerate_loop.py", "--epochs", "12"]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    *_, drawn, ticket = found.stdout.splitlines()
    assert drawn.startswith("drawn after ")
    assert float(ticket.split("accuracy ")[1].split(",")[0]) > 0.5


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_step_count_and_move_once() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = small_net()
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    tps = tpsprune.TPS(model, optimizer, variant="weights")
    reference = small_net()
    its_own = torch.optim.SGD(reference.parameters(), lr=0.1)
    tpsprune.TPS(reference, its_own, variant="weights")
    x, y = small_data()
    for x_part, y_part in zip(x.chunk(4), y.chunk(4), strict=True):
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x_part), y_part) + tps())
            optimizer.step()
            optimizer.zero_grad()
    for number, (x_part, y_part) in enumerate(zip(x.chunk(4), y.chunk(4), strict=True), 1):
        (cross_entropy(reference(x_part), y_part) / 2).backward()
        if number % 2 == 0:
            its_own.step()
            its_own.zero_grad()
    assert tps.steps == 2
    torch.testing.assert_close(weights_of(net), weights_of(reference))
