"""Steps from shards: the mean of all, whoever computes them; what one shard writes another never sees."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.test_loop import CPU, noisy, unchanged
from tpsprune.errors import PeersError
from tpsprune.numerics.peers import Alone
from tpsprune.recipe.train import Train
from tpsprune.training import evaluate, fit, make_optimizer
from tpsprune.training.loop import shuffled_shards

INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
LABELS = (INPUTS[:, 0] > 0).long()


def net(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(6, 8)]
    layers += [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def train(model: nn.Module, shards: int, steps: int = 4, first: int = 0, **changed: Any) -> list[Tensor]:
    recipe = Train(**{"epochs": 4.0, "batch_size": 24, "schedule": "constant", **changed})
    optimizer = make_optimizer(model, recipe)
    ticks = fit(
        model,
        optimizer,
        INPUTS,
        LABELS,
        prepare=noisy,
        settings=recipe,
        execution=CPU,
        seed=5,
        first_step=first,
        last_step=first + steps,
        total_steps=16,
        peers=Alone(shards),
    )
    return [tick.loss for tick in ticks]


def state_of(model: nn.Module) -> Tensor:
    return torch.cat([each.double().flatten() for each in model.state_dict().values()])


@pytest.mark.parametrize("shards", [2, 3, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_batch_norms_a_step_of_shards_is_that_of_the_whole_batch(shards: int, optimizer: str) -> None:
    whole, cut = net(), net()
    torch.testing.assert_close(
        train(cut, shards, optimizer=optimizer), train(whole, 1, optimizer=optimizer), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(state_of(cut), state_of(whole), rtol=1e-4, atol=1e-6)


def test_running_statistics_are_the_mean_of_those_of_each_shard() -> None:
    model, start = net(norm=True), net(norm=True)
    recipe = Train(epochs=4.0, batch_size=24)
    batches = shuffled_shards(INPUTS, 96, prepare=noisy, execution=CPU, size=24, seed=5, peers=Alone(3))
    found = []
    for _, batch in next(batches):
        twin = copy.deepcopy(start).train()
        twin(batch)
        norm = twin[1]
        assert isinstance(norm, nn.BatchNorm1d)
        found.append(torch.stack([norm.running_mean, norm.running_var]))  # type: ignore[list-item]
    train(model, 3, steps=1, schedule=recipe.schedule)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(
        torch.stack([norm.running_mean, norm.running_var]),  # type: ignore[list-item]
        torch.stack(found).mean(0),
    )
    assert int(norm.num_batches_tracked or 0) == 1


def test_buffers_that_no_pass_writes_to_keep_their_bits() -> None:
    class Scaled(nn.Sequential):
        scale: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    model = Scaled(*net(norm=True))
    model.register_buffer("scale", torch.tensor(1.0) / 3)
    before = model.scale.clone()
    train(model, 3, steps=4)
    assert torch.equal(model.scale, before)


def test_two_shards_of_a_step_draw_different_numbers() -> None:
    drawn: list[Tensor] = []

    class Drawing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(torch.rand(4))
            return super().forward(x)

    train(nn.Sequential(Drawing(6, 2)), 2, steps=2)
    assert len({tuple(each.tolist()) for each in drawn}) == 4


def test_shards_draw_numbers_of_their_own_and_a_run_repeats_them() -> None:
    first, again, other = (net(dropout=0.5) for _ in range(3))
    train(first, 2)
    torch.manual_seed(123)  # the state of torch's generator says nothing
    train(again, 2)
    assert torch.equal(state_of(first), state_of(again))
    train(other, 4)
    assert not torch.allclose(state_of(first), state_of(other))


def test_a_run_of_shards_goes_on_from_any_step_to_the_bit() -> None:
    straight, resumed = net(dropout=0.3, norm=True), net(dropout=0.3, norm=True)
    train(straight, 2, steps=6, optimizer="sgd", momentum=0.0)
    train(resumed, 2, steps=3, optimizer="sgd", momentum=0.0)
    torch.manual_seed(99)
    train(resumed, 2, steps=3, first=3, optimizer="sgd", momentum=0.0)
    assert torch.equal(state_of(straight), state_of(resumed))


def test_a_parameter_that_no_shard_reaches_keeps_no_gradient() -> None:
    model = net()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    train(model, 2, weight_decay=0.5)
    assert torch.equal(dict(model.named_parameters())["unused"], torch.ones(2))


@settings(max_examples=30, deadline=None)
@given(items=st.integers(1, 40), shards=st.integers(1, 12))
def test_a_score_does_not_hang_on_the_shards(items: int, shards: int) -> None:
    model = net(norm=True)
    whole, cut = (
        evaluate(model, INPUTS[:items], LABELS[:items], prepare=unchanged, execution=CPU, peers=Alone(number))
        for number in (1, shards)
    )
    assert cut.accuracy == whole.accuracy
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(shards=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), step=st.integers(0, 9))
def test_shards_are_the_batch_cut_in_order(shards: int, step: int) -> None:
    def at(number: int) -> tuple[Tensor, Tensor]:
        batches = shuffled_shards(
            INPUTS, 96, prepare=noisy, execution=CPU, size=24, seed=5, first_step=step, peers=Alone(number)
        )
        parts = next(batches)
        assert len(parts) == number
        return torch.cat([index for index, _ in parts]), torch.cat([batch for _, batch in parts])

    for cut, whole in zip(at(shards), at(1), strict=True):
        assert torch.equal(cut, whole)


class Branching(nn.Sequential):
    """Calls its batch norm from a step on, and counts in whole numbers as it is told."""

    counts: Tensor

    def __init__(self, first: int, *, counts: str = "calls") -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.first, self.passes, self.counting = first, 0, counts
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.counting == "calls" or (self.counting == "later" and self.passes > self.first):
            self.counts += 1
        if self.counting == "passes":
            self.counts += self.passes
        x = self[0](x)
        return self[2](self[1](x) if self.passes > self.first else x)


def test_a_batch_norm_that_the_first_step_leaves_out_is_averaged_from_then_on() -> None:
    model = Branching(first=2)
    train(model, 2, steps=3)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert int(norm.num_batches_tracked or 0) == 2
    assert model.counts.tolist() == [3, 3]


def test_a_counter_that_moves_differently_in_two_shards_is_refused_by_name() -> None:
    with pytest.raises(PeersError, match="the buffer 'counts' holds whole numbers"):
        train(Branching(first=0, counts="passes"), 2)


def test_a_buffer_first_written_to_after_the_first_step_is_refused_by_name() -> None:
    with pytest.raises(PeersError, match="the buffer 'counts' is written to in step 2 for the first time"):
        train(Branching(first=2, counts="later"), 2)
