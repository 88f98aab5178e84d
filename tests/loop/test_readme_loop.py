"""The loop of the README, where steps are left out by a gradient scaler or made in parts."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tpsprune
from tests.loop.conftest import Data, small_net
from tpsprune.records import Decision

CALM = tpsprune.Plateau(monitor="norm", tolerance=1.0, patience=3, min_adjusted_accuracy=0.0)


def looped(
    data: Data, batches: int, *, parts: int = 1, spoilt: Collection[int] = ()
) -> tuple[tpsprune.TPS, tpsprune.Watch, list[Decision], int]:
    """Train as the README does; return also every verdict, and how often the accuracy was read."""
    x, y = data
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tps = tpsprune.TPS(model, optimizer, variant="moments", data=data)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=bool(spoilt))
    verdicts: list[Decision] = []
    read = 0

    def accuracy(model: nn.Module) -> float:
        nonlocal read
        read += 1
        return float((model(x).argmax(1) == y).float().mean())

    with tpsprune.Watch(model, x, signals=["norm"], every_steps=2, draw=CALM) as watch:
        for batch in range(batches):
            for part, (x_part, y_part) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True), 1):
                with tps.listening():
                    loss = cross_entropy(model(x_part), y_part) * (torch.inf if batch in spoilt else 1.0)
                scaler.scale((loss + tps(y_part, loss)) / parts).backward()
                if part == parts:
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                verdicts += watch.step(tps.steps, validation_accuracy=lambda: accuracy(model))
    return tps, watch, verdicts, read


def steps_of(watch: tpsprune.Watch) -> list[int]:
    return [each.step for each in watch.readings if each.signal == "norm"]


def test_a_loop_in_which_nothing_happens_reads_every_second_step(data: Data) -> None:
    tps, watch, verdicts, read = looped(data, 6)
    assert (tps.steps, read, steps_of(watch)) == (6, 3, [2, 4, 6])
    assert [(each.step, each.act) for each in verdicts] == [(2, False), (4, False), (6, True)]


@pytest.mark.parametrize("spoilt", [{2}, {2, 3}, {3}])
def test_a_step_that_a_scaler_leaves_out_is_neither_counted_nor_read_again(
    spoilt: set[int], data: Data
) -> None:
    tps, watch, verdicts, read = looped(data, 6 + len(spoilt), spoilt=spoilt)
    assert (tps.steps, read, steps_of(watch)) == (6, 3, [2, 4, 6])
    assert [(each.step, each.act) for each in verdicts] == [(2, False), (4, False), (6, True)]


def test_where_the_first_step_is_left_out_the_model_is_read_before_training_once(data: Data) -> None:
    tps, watch, _, read = looped(data, 5, spoilt={0, 1})
    assert (tps.steps, read, steps_of(watch)) == (3, 2, [0, 2])


def test_parts_of_a_step_are_read_once_and_before_training_too(data: Data) -> None:
    tps, watch, verdicts, read = looped(data, 4, parts=4)
    assert (tps.steps, read, steps_of(watch)) == (4, 3, [0, 2, 4])
    assert [(each.step, each.act) for each in verdicts] == [(0, False), (2, False), (4, True)]


def test_a_reading_that_failed_is_made_when_its_step_is_named_again(data: Data) -> None:
    def broken() -> float:
        raise KeyError("no accuracy yet")

    with tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=2) as watch:
        with pytest.raises(KeyError, match="no accuracy yet"):
            watch.step(2, validation_accuracy=broken)
        watch.step(2, validation_accuracy=0.5)
        watch.step(2, validation_accuracy=0.5)
    assert steps_of(watch) == [2]


def test_a_watch_that_was_put_back_does_not_read_its_last_step_again(data: Data) -> None:
    def made() -> tpsprune.Watch:
        return tpsprune.Watch(small_net(), data[0], signals=["norm"], every_steps=2)

    first, second = made(), made()
    first.step(2)
    second.load_state_dict(first.state_dict())
    second.step(2)
    second.step(4)
    assert steps_of(second) == [2, 4]
