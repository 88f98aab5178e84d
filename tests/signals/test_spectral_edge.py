from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tpsprune.records.readings import Reading, Status
from tpsprune.signals import spectral_edge
from tpsprune.signals.signal import View
from tpsprune.signals.updates import EdgeMemory, SpectralEdge, snapshot


def linear(inputs: int = 30, outputs: int = 20) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def walk(
    signal: SpectralEdge,
    model: nn.Linear,
    updates: list[Tensor],
    memory: EdgeMemory | None = None,
    spacing: int = 25,
    first: int = 0,
) -> tuple[EdgeMemory, list[tuple[Reading, ...]]]:
    """Read, then once more after each update."""
    memory = memory or signal.start()
    all_readings = []
    for round_, update in enumerate([torch.zeros(()), *updates], first):
        model.weight.data += update
        memory, readings = signal.step(memory, View(model, (), round_ * spacing, float(round_), {}))
        all_readings.append(readings)
    return memory, all_readings


def planted_updates(count: int, rank: int, generator: torch.Generator) -> list[Tensor]:
    directions = torch.randn(rank, 20, 30, generator=generator)
    return [
        torch.einsum("k,kab->ab", torch.randn(rank, generator=generator), directions)
        + 0.02 * torch.randn(20, 30, generator=generator)
        for _ in range(count)
    ]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_updates_in_k_directions_put_the_edge_at_k(rank: int, generator: torch.Generator) -> None:
    _, rounds = walk(SpectralEdge(window=8, seed=0), linear(), planted_updates(8, rank, generator))
    ratio, place, gap = rounds[-1]
    assert [each.signal for each in rounds[-1]] == ["spectral_edge", "spectral_edge_k", "gap_23"]
    assert place.value == rank
    assert ratio.value > 3.0
    assert gap.status is Status.OK


def test_readings_equal_a_singular_value_decomposition_of_the_updates(generator: torch.Generator) -> None:
    updates = [torch.randn(20, 30, generator=generator) for _ in range(13)]
    _, rounds = walk(SpectralEdge(window=10, seed=0), linear(), updates)
    sigma = torch.linalg.svdvals(torch.stack(updates[-10:]).flatten(1).double())
    ratios = sigma[:5] / sigma[1:6]
    ratio, place, gap = rounds[-1]
    assert ratio.value == pytest.approx(float(ratios.max()), rel=1e-4)
    assert place.value == int(ratios.argmax()) + 1
    assert gap.value == pytest.approx(float(sigma[1] ** 2 - sigma[2] ** 2), rel=1e-3)


def test_noise_read_far_apart_has_hardly_an_edge(generator: torch.Generator) -> None:
    updates = [torch.randn(200, 300, generator=generator) for _ in range(10)]
    _, rounds = walk(SpectralEdge(window=10, seed=0), linear(300, 200), updates)
    assert rounds[-1][0].value < 1.05


def test_until_the_window_is_full_readings_count_the_updates(generator: torch.Generator) -> None:
    _, rounds = walk(SpectralEdge(window=5, seed=0), linear(), planted_updates(5, 1, generator))
    assert [each[0].reason for each in rounds[:5]] == [f"{count} of 5 updates seen" for count in range(5)]
    assert {reading.status for each in rounds[:5] for reading in each} == {Status.NOT_YET}
    assert rounds[5][0].status is Status.OK


def test_a_cut_starts_the_window_anew(generator: torch.Generator) -> None:
    signal = SpectralEdge(window=4, seed=0)
    memory, _ = walk(signal, linear(), planted_updates(4, 1, generator))
    smaller = linear(30, 10)
    memory, rounds = walk(signal, smaller, [], memory)
    assert rounds[0][0].reason == "0 of 4 updates seen"
    assert len(memory.snapshots) == 1


def test_snapshots_close_together_carry_the_caveat_about_momentum(generator: torch.Generator) -> None:
    updates = planted_updates(4, 1, generator)
    near = walk(SpectralEdge(window=4, seed=0), linear(), updates, spacing=3)[1][-1][0]
    far = walk(SpectralEdge(window=4, seed=0), linear(), updates, spacing=10)[1][-1][0]
    assert near.reason == "snapshots 3 steps apart: momentum alone can make a ratio of 1.8"
    assert far.reason == ""


def test_weights_that_stand_still_have_no_edge() -> None:
    _, rounds = walk(SpectralEdge(window=4, seed=0), linear(), [torch.zeros(())] * 4)
    assert {each.reason for each in rounds[-1]} == {"the parameters have not moved"}
    assert {each.status for each in rounds[-1]} == {Status.NOT_APPLICABLE}


def test_weights_that_are_not_finite_make_readings_that_say_so() -> None:
    _, rounds = walk(SpectralEdge(window=4, seed=0), linear(), [torch.full((), torch.nan)] * 4)
    assert {each.status for each in rounds[-1]} == {Status.NOT_FINITE}


def test_a_model_without_trainable_parameters_has_no_edge() -> None:
    model = linear().requires_grad_(False)
    _, rounds = walk(SpectralEdge(window=4, seed=0), model, [torch.ones(())] * 4)
    assert rounds[-1][0].status is Status.NOT_APPLICABLE


def test_a_memory_packed_and_unpacked_reads_on_as_if_nothing_had_happened(generator: torch.Generator) -> None:
    signal = SpectralEdge(window=5, seed=0)
    updates = planted_updates(9, 2, generator)
    model = linear()
    memory, _ = walk(signal, model, updates[:4])
    weight = model.weight.detach().clone()
    _, straight = walk(signal, model, updates[4:], memory, first=5)
    model.weight.data = weight
    _, resumed = walk(signal, model, updates[4:], signal.unpack(*signal.pack(memory)), first=5)
    assert resumed == straight
    assert resumed[-1][0].status is Status.OK


def test_large_models_are_sketched_and_read_nearly_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [2.0 ** -min(i, 3) * torch.randn(200, 300, generator=generator) for i in range(6)]
    exact = walk(SpectralEdge(window=6, seed=1), linear(300, 200), updates)[1][-1]
    monkeypatch.setattr(spectral_edge, "EXACT_BELOW", 1000)
    model = linear(300, 200)
    assert snapshot(model, 1).shape == (4096,)
    folded = walk(SpectralEdge(window=6, seed=1), model, updates)[1][-1]
    assert folded[0].value == pytest.approx(exact[0].value, rel=0.1)
    assert folded[2].value == pytest.approx(exact[2].value, rel=0.2)
    assert folded[0].value != exact[0].value
