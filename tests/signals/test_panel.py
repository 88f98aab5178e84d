"""All signals of a run together: none is lost, nothing is disturbed, and a resumed run reads on."""

from __future__ import annotations

import json

import torch
from torch import nn

from tests.unchanged import unchanged
from tpsprune.recipe.train import Watch
from tpsprune.records.readings import Status
from tpsprune.signals import Panel, View

SETTINGS = Watch(calibration_items=16, h1_points=12, h1_every=2, edge_window=4)
CONSUMERS = {"0": {"3": 6}, "3": {"6": 8}}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def train_and_read(panel, memories, model, optimizer, generator, steps):
    batch = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    readings = []
    for step in steps:
        loss = model(torch.randn(16, 1, 6, 6, generator=generator)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memories, found = panel.read(memories, View(model, (batch,), step, step / 4, CONSUMERS))
        readings.extend(found)
    return memories, readings


def test_all_signals_are_read_together_and_none_is_lost(generator: torch.Generator) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Panel.of(SETTINGS, seed=5) as panel:
        memories, readings = train_and_read(panel, panel.start(), model, optimizer, generator, range(7))
        memories, late = panel.finish(memories)
        assert panel.finish(memories)[1] == ()
        assert panel.worker_cpu_seconds == 0.0, "small clouds are counted in line"
    by_signal = {
        name: [r for r in (*readings, *late) if r.signal == name] for name in ("norm", "d_eff", "h1")
    }
    assert [r.step for r in by_signal["norm"]] == list(range(7))
    assert [r.step for r in by_signal["d_eff"] if not r.group] == list(range(7))
    assert [r.step for r in by_signal["h1"]] == [0, 2, 4, 6]
    assert {r.status for r in readings} == {Status.OK, Status.NOT_YET}


def test_reading_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = net().train()
    torch.manual_seed(3)
    with unchanged(model), Panel.of(SETTINGS, seed=5) as panel:
        panel.read(panel.start(), View(model, (torch.zeros(4, 1, 6, 6),), 0, 0.0, CONSUMERS))
    after = torch.rand(4)
    assert torch.equal(after, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_a_panel_packed_as_tensors_and_json_gives_the_same_readings_as_without_a_break() -> None:
    def run(steps_before: int) -> list:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        first = Panel.of(SETTINGS, seed=5)
        memories, before = train_and_read(
            first, first.start(), model, optimizer, generator, range(steps_before)
        )
        tensors, values = first.pack(memories)
        first.close()
        with Panel.of(SETTINGS, seed=5) as second:
            memories = second.unpack(
                {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values))
            )
            memories, after = train_and_read(
                second, memories, model, optimizer, generator, range(steps_before, 9)
            )
            return [*before, *after, *second.finish(memories)[1]]

    straight = run(0)
    assert any(r.signal == "spectral_edge" and r.status is Status.OK for r in straight)
    for steps_before in (3, 6):
        assert run(steps_before) == straight


def test_weights_that_are_not_numbers_never_raise() -> None:
    model = net()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    with Panel.of(SETTINGS, seed=5) as panel:
        memories = panel.start()
        for step in range(6):
            seen = View(model, (torch.zeros(4, 1, 6, 6),), step, 0.0, CONSUMERS)
            memories, readings = panel.read(memories, seen)
        assert panel.finish(memories)[1] == ()
    assert {r.status for r in readings} == {Status.NOT_FINITE}
    assert all(r.reason for r in readings)


def test_only_the_signals_named_are_read() -> None:
    with Panel.of(Watch(signals=("norm",)), seed=0) as panel:
        memories, readings = panel.read(panel.start(), View(net(), (), 0, 0.0, {}))
        assert panel.pack(memories) == ({}, {"norm": {}})
    assert [r.signal for r in readings] == ["norm"]
    assert panel.worker_cpu_seconds == 0.0
