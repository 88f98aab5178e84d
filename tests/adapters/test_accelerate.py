"""The example for Accelerate runs as it stands, and a wrapped optimiser moves as the one in it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import small_data, small_net, weights_of

accelerate = pytest.importorskip("accelerate")


@pytest.mark.filterwarnings("ignore")
def test_the_example_draws_a_ticket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(Path(__file__).parents[2] / "examples" / "accelerate_loop.py")
    monkeypatch.setattr("sys.argv", [example, "--epochs", "12"])
    runpy.run_path(example, run_name="__main__")
    *_, drawn, ticket = capsys.readouterr().out.splitlines()
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
