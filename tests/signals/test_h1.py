"""Loops of the weights' cloud, in line and from the process: the same readings, at the same rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tpsprune.records.readings import Reading, Status
from tpsprune.signals.h1 import H1, H1Memory, cloud_of
from tpsprune.signals.h1_worker import LoopCounter
from tpsprune.signals.signal import View


@pytest.fixture(scope="module")
def in_line() -> LoopCounter:
    return LoopCounter(in_line_seconds_per_step=1e9)


@pytest.fixture(scope="module")
def in_process() -> Iterator[LoopCounter]:
    counter = LoopCounter(in_line_seconds_per_step=0.0)
    yield counter
    counter.close()


def signal_of(counter: LoopCounter, points: int = 64, every: int = 1, seed: int = 0) -> H1:
    return H1(points=points, every=every, seed=seed, counter=counter)


def embedding(points_nd: Tensor) -> nn.Module:
    return nn.Sequential(nn.Embedding.from_pretrained(points_nd, freeze=False))


def ring(points: int, dimension: int = 2) -> Tensor:
    angles = 2 * math.pi * torch.arange(points) / points
    flat = torch.zeros(points, dimension)
    flat[:, 0], flat[:, 1] = angles.cos(), angles.sin()
    return flat


def view(model: nn.Module, step: int = 0, groups: tuple[str, ...] = ()) -> View:
    return View(model, (), step, step / 10, {group: {} for group in groups})


def read_once(signal: H1, model: nn.Module) -> dict[str, Reading]:
    memory, immediate = signal.step(signal.start(), view(model))
    _, late = signal.finish(memory)
    return {each.signal: each for each in (*immediate, *late)}


def test_a_ring_of_embeddings_is_one_loop_in_closed_form(in_line: LoopCounter) -> None:
    mean = sum(2 * math.sin(math.pi * k / 12) for k in range(1, 12)) / 11
    lifetime = (2 * math.sin(math.pi * 4 / 12) - 2 * math.sin(math.pi / 12)) / mean
    readings = read_once(signal_of(in_line), embedding(ring(12)))
    assert readings["h1_max"].value == pytest.approx(lifetime, rel=1e-5)
    assert readings["h1_total"].value == pytest.approx(lifetime, rel=1e-5)
    assert readings["h1_sum_of_squares"].value == pytest.approx(lifetime**2, rel=1e-5)
    assert readings["h1"].reason == "12 of 12 points of 0"


def test_a_noisy_ring_stands_out_from_its_null_and_noise_does_not(
    in_line: LoopCounter, generator: torch.Generator
) -> None:
    noise = torch.randn(60, 32, generator=generator)
    loop = read_once(signal_of(in_line), embedding(ring(60, 32) + 0.05 * noise))["h1"].value
    none = read_once(signal_of(in_line), embedding(noise))["h1"].value
    assert loop is not None
    assert none is not None
    assert loop > 10.0
    assert abs(none) < 5.0


def test_the_length_of_the_weights_does_not_show(in_line: LoopCounter) -> None:
    points = torch.randn(40, 8)
    small, large = (read_once(signal_of(in_line), embedding(scale * points)) for scale in (0.01, 100.0))
    for name, reading in small.items():
        assert reading.value == pytest.approx(large[name].value, rel=1e-3)


def test_landmarks_find_a_ring_among_many_points(in_line: LoopCounter, generator: torch.Generator) -> None:
    points = ring(500) + 0.02 * torch.randn(500, 2, generator=generator)
    readings = read_once(signal_of(in_line, points=32), embedding(points))
    assert readings["h1"].reason == "32 of 500 points of 0"
    assert readings["h1_max"].value == pytest.approx(1.0, abs=0.3)


def rounds(signal: H1, model: nn.Module, count: int, memory: H1Memory | None = None, first: int = 0):
    memory = memory or signal.start()
    found = []
    for step in range(first, first + count):
        memory, readings = signal.step(memory, view(model, step))
        found.append(readings)
    return memory, found


def test_answers_come_one_round_late_with_the_step_of_asking_and_none_is_lost(in_line: LoopCounter) -> None:
    signal = signal_of(in_line)
    memory, found = rounds(signal, embedding(ring(9)), 4)
    memory, last = signal.finish(memory)
    assert [len(readings) for readings in found] == [0, 4, 4, 4]
    assert [readings[0].step for readings in (*found[1:], last)] == [0, 1, 2, 3]
    assert last[0].epoch == 0.3
    assert signal.finish(memory) == (memory, ())


def test_every_third_round_asks_and_the_round_after_collects(in_line: LoopCounter) -> None:
    signal = signal_of(in_line, every=3)
    _, found = rounds(signal, embedding(ring(9)), 8)
    assert [len(readings) for readings in found] == [0, 4, 0, 0, 4, 0, 0, 4]
    assert [readings[0].step for readings in found if readings] == [0, 3, 6]


def test_landmarks_and_null_are_kept_until_the_number_of_points_changes(in_line: LoopCounter) -> None:
    signal = signal_of(in_line, points=16)
    memory, _ = rounds(signal, embedding(torch.randn(50, 6)), 3)
    kept = memory.landmarks_l
    assert memory.draws == 8 + 1 + 1
    memory, _ = rounds(signal, embedding(torch.randn(50, 6)), 1, memory)
    assert memory.landmarks_l is kept
    memory, _ = rounds(signal, embedding(torch.randn(49, 6)), 1, memory)
    assert memory.landmarks_l is not kept
    assert len(memory.landmarks_l) == 16
    assert memory.null == ()
    assert memory.draws == 11 + 8
    memory, _ = signal.finish(memory)
    assert len(memory.null) == 8


def test_a_packed_memory_reads_on_as_if_nothing_had_happened_in_line_or_from_the_process(
    in_line: LoopCounter, in_process: LoopCounter
) -> None:
    signal = signal_of(in_line, points=16, seed=3)
    models = [embedding(torch.randn(30, 4)) for _ in range(6)]
    memory = signal.start()
    for step, model in enumerate(models[:3]):
        memory, _ = signal.step(memory, view(model, step))
    tensors, plain = signal.pack(memory)
    resumed_signal = signal_of(in_process, points=16, seed=3)
    resumed = resumed_signal.unpack({name: tensor.clone() for name, tensor in tensors.items()}, plain)
    for step, model in enumerate(models[3:], 3):
        memory, straight = signal.step(memory, view(model, step))
        resumed, again = resumed_signal.step(resumed, view(model, step))
        assert straight == again
        assert len(straight) == 4
    assert signal.finish(memory)[1] == resumed_signal.finish(resumed)[1]


def test_a_counter_closed_in_between_is_asked_again(in_line: LoopCounter, in_process: LoopCounter) -> None:
    for counter in (in_line, in_process):
        signal = signal_of(counter)
        memory, _ = signal.step(signal.start(), view(embedding(ring(8))))
        counter.close()
        assert signal.finish(memory)[1][0].status is Status.OK


def test_an_answer_that_takes_too_long_becomes_a_reading_that_says_so() -> None:
    slow = LoopCounter(limit_seconds=0.0, in_line_seconds_per_step=0.0)
    signal = signal_of(slow)
    memory, _ = signal.step(signal.start(), view(embedding(ring(8))))
    memory, readings = signal.finish(memory)
    assert {each.status for each in readings} == {Status.NOT_APPLICABLE}
    assert {each.reason for each in readings} == {"counting loops took longer than 0 s"}
    slow.limit_seconds = 20.0
    memory, _ = signal.step(memory, view(embedding(ring(8)), 1))
    assert signal.finish(memory)[1][1].status is Status.OK
    slow.close()


@pytest.mark.parametrize(
    ("model", "status", "reason"),
    [
        (embedding(torch.full((9, 2), torch.nan)), Status.NOT_FINITE, "the weights of 0 are not finite"),
        (embedding(torch.randn(3, 2)), Status.NOT_APPLICABLE, "3 points of 0 cannot make a loop"),
        (nn.Sequential(nn.ReLU()), Status.NOT_APPLICABLE, "the model has no layer of points"),
    ],
)
def test_a_cloud_that_cannot_be_read_is_told_of_at_once(
    in_line: LoopCounter, model: nn.Module, status: Status, reason: str
) -> None:
    memory, readings = signal_of(in_line).step(H1Memory(), view(model))
    assert memory.pending is None
    assert len(readings) == 4
    assert {each.status for each in readings} == {status}
    assert {each.reason for each in readings} == {reason}


def test_points_in_one_place_have_no_loops_and_no_z(in_line: LoopCounter) -> None:
    readings = read_once(signal_of(in_line), embedding(torch.ones(9, 3)))
    assert readings["h1"].reason == "the null has no spread"
    assert readings["h1_max"].value == 0.0


def test_points_are_embedding_rows_before_prunable_units_before_any_units() -> None:
    layers = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(5, 20), "c": nn.Linear(5, 20)})
    assert cloud_of(layers, [])[0] == "b"
    name, points_nd = cloud_of(layers, ["a"])
    assert name == "a"
    assert torch.equal(points_nd, layers["a"].weight.flatten(1))
    layers["e"], layers["f"] = nn.Embedding(6, 2), nn.Embedding(7, 2)
    assert cloud_of(layers, ["a"])[0] == "f"
    assert cloud_of(nn.ReLU(), ["a"]) is None
