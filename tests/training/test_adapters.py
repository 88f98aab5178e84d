"""Adapters: counts, the start, symmetry, a slow twin by parametrisation, resuming, and what stays still."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.training.test_loop import CPU, run, task, unchanged
from tpsprune.errors import RecipeError
from tpsprune.recipe.train import Train
from tpsprune.training import (
    Adapter,
    evaluate,
    find_adapted,
    load_state_by_name,
    make_optimizer,
    state_by_name,
)
from tpsprune.training.adapters import LowRankChange

SETTINGS = Train(epochs=10, batch_size=32, learning_rate=0.02, weight_decay=0.0, clip_norm=1.0)
KINDS = ("head", "lora", "singlora")
LOW_RANK = KINDS[1:]


def net(*, convolutional: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    if convolutional:
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def train(model: nn.Module, adapter: Adapter, settings: Train = SETTINGS, **options: Any) -> None:
    run(model, make_optimizer(adapter, settings), settings, adapter=adapter, **options)


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_singlora_has_the_longer_side_times_the_rank_and_lora_both(
    rows: int, columns: int, rank: int
) -> None:
    layer = nn.Linear(columns, rows)
    kept = min(rank, rows, columns)
    assert count(Adapter(layer, "singlora", rank=rank)) == max(rows, columns) * kept
    layer.weight.requires_grad = True
    assert count(Adapter(layer, "lora", rank=rank)) == (rows + columns) * kept
    assert count(Adapter(nn.Linear(columns, rows), "head")) == rows * columns + rows


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (5, 9), (9, 5)])
def test_the_change_of_singlora_is_that_of_its_formula_and_blind_to_rotations(
    rows: int, columns: int
) -> None:
    weight = nn.Parameter(torch.randn(rows, columns))
    change = LowRankChange(weight, "singlora", rank=3, scale=2.0, start=1.0, seed=1)
    a_xr = change.a_xr.detach()
    shorter_r = a_xr[: min(rows, columns)]
    wanted = shorter_r @ a_xr.T if rows < columns else a_xr @ shorter_r.T  # s u = 1
    before = change.at(0.5).detach()
    torch.testing.assert_close(before, wanted)
    assert before.abs().max() > 0.01
    if rows == columns:
        torch.testing.assert_close(before, before.T)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    with torch.no_grad():
        change.a_xr.copy_(a_xr @ rotation)
    torch.testing.assert_close(change.at(0.5).detach(), before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_the_model_exactly_and_draws_nothing_from_torch(kind: Any) -> None:
    model = net(convolutional=True)
    before, random = tensors(model), torch.get_rng_state()
    adapter = Adapter(model, kind, ramp_steps=3)
    with torch.no_grad():
        for each in adapter.changes:
            assert isinstance(each, LowRankChange)
            assert torch.equal(each.original + each.at(adapter.ramp), each.weight)
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_change_is_let_in_step_by_step_and_then_stays() -> None:
    adapter = Adapter(net(), "singlora", ramp_steps=4)
    ramps = []
    for _ in range(6):
        ramps.append(adapter.ramp)
        adapter.write()
    assert ramps == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert Adapter(net(), "lora", ramp_steps=4).ramp == 1.0


class AsParametrised(nn.Module):
    """The same change inside the forward pass, W = W₀ + change, as autograd sees it: the slow twin."""

    def __init__(self, change: LowRankChange, adapter: Adapter) -> None:
        super().__init__()
        self.change, self.adapter = change, (adapter,)

    def forward(self, original: Tensor) -> Tensor:
        return original + self.change.at(self.adapter[0].ramp)


@pytest.mark.parametrize("kind", LOW_RANK)
@pytest.mark.parametrize("convolutional", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_is_that_of_a_model_whose_weights_are_computed_from_the_factors(
    kind: Any, convolutional: bool, name: Any
) -> None:
    settings = Train(epochs=10, batch_size=32, learning_rate=0.05, optimizer=name, clip_norm=0.5)
    ours = net(convolutional=convolutional)
    slow = copy.deepcopy(ours)
    torch.manual_seed(1)  # dropout
    train(ours, Adapter(ours, kind, rank=2, ramp_steps=5, start=1.0), settings, total=20)

    twin = Adapter(slow, kind, rank=2, ramp_steps=5, start=1.0)
    layers = [each for each in slow if isinstance(each, nn.Linear | nn.Conv2d)]
    for layer, change in zip(layers, twin.changes, strict=True):
        assert isinstance(change, LowRankChange)
        layer.weight.requires_grad = False
        parametrize.register_parametrization(layer, "weight", AsParametrised(change, twin))
    optimizer = make_optimizer(twin, settings)
    torch.manual_seed(1)
    for step in range(20):  # one by one: u follows the steps
        run(slow, optimizer, settings, first=step, last=step + 1, total=20)
        twin.steps[0] += 1
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, slow.state_dict()[key], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_moves_only_what_is_its_own(kind: Any) -> None:
    model = net()
    inputs, labels = task()
    before = tensors(model)
    losses = []
    adapter = Adapter(model, kind, rank=3, ramp_steps=10)
    for first, last in ((0, 0), (0, 150)):
        train(model, adapter, first=first, last=last, total=150)
        losses.append(evaluate(model, inputs, labels, prepare=unchanged, execution=CPU).loss)
    assert losses[1] < 0.8 * losses[0]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    of_head = {"4.weight", "4.bias"}
    assert moved == (of_head if kind == "head" else {"0.weight", "4.weight"} | statistics)
    assert all(each.grad is None for name, each in model.named_parameters() if name not in of_head)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_the_change_has_the_rank_that_was_asked_for(kind: Any) -> None:
    model = net()
    before = model[0].weight.detach().clone()
    train(model, Adapter(model, kind, rank=2, ramp_steps=5), total=40)
    values = torch.linalg.svdvals(model[0].weight.detach() - before)
    assert values[1] > 1e-3
    assert values[2] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken_at", [1, 7, 30])
def test_a_training_broken_off_goes_on_bit_for_bit(kind: Any, broken_at: int) -> None:
    def begin() -> tuple[nn.Sequential, Adapter, torch.optim.Optimizer]:
        model = net(convolutional=True)
        adapter = Adapter(model, kind, rank=2, ramp_steps=9)
        return model, adapter, make_optimizer(adapter, SETTINGS)

    straight, adapter, optimizer = begin()
    run(straight, optimizer, SETTINGS, adapter=adapter)
    left, adapter, optimizer = begin()
    run(left, optimizer, SETTINGS, last=broken_at, adapter=adapter)
    saved = tensors(left), tensors(adapter), state_by_name(optimizer, adapter)
    again, adapter, optimizer = begin()
    again.load_state_dict(saved[0])
    adapter.load_state_dict(saved[1])
    load_state_by_name(optimizer, adapter, saved[2])
    run(again, optimizer, SETTINGS, first=broken_at, adapter=adapter)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_released_all_trains_again_but_what_was_frozen_before() -> None:
    model = net()
    model[1].weight.requires_grad = False
    adapter = Adapter(model, "head")
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["4.weight", "4.bias"]
    adapter.release()
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    assert frozen == ["1.weight"]


def test_a_weight_that_two_layers_share_is_changed_once_and_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    adapter = Adapter(model, "lora", rank=2)
    assert len(adapter.changes) == 2
    train(model, adapter, total=20)
    assert model[2].weight is model[0].weight
    assert not torch.equal(model[0].weight, adapter.changes[0].original)


def test_channels_last_weights_stay_so() -> None:
    model = nn.Sequential(nn.Unflatten(1, (3, 2, 1)), nn.Conv2d(3, 4, 2, padding=1), nn.Flatten())
    model = model.append(nn.Linear(24, 3)).to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for each in (model, contiguous):
        train(each, Adapter(each, "singlora", rank=2, ramp_steps=2), total=20)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model[1].weight, contiguous[1].weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (
            nn.Conv2d(3, 4, 3),
            "head",
            "retrain.adapter: 'head' has nothing to train here: the model has no linear",
        ),
        (
            nn.Embedding(3, 4),
            "lora",
            "'lora' has nothing .* no linear layer and no convolution that is not froz",
        ),
        (nn.Linear(3, 4).requires_grad_(False), "singlora", "not frozen; use 'none'"),
    ],
)
def test_a_model_without_anything_to_adapt_is_refused(model: nn.Module, kind: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        find_adapted(model, kind)
