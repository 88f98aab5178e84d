"""The last linear layer alone, on features computed once: as with a pass every epoch; nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tpsprune.data.dataset import Preparation
from tpsprune.errors import ModelError
from tpsprune.numerics.forward import evaluation_mode
from tpsprune.recipe.train import Train
from tpsprune.training import (
    Adapter,
    Execution,
    Tick,
    count_steps,
    features_of,
    find_head,
    fit,
    fit_head,
    make_optimizer,
    steps_per_epoch,
)

CPU = torch.device("cpu")
ITEMS = 48
SETTINGS = Train(epochs=1, batch_size=16, learning_rate=1e-2)


def exact_net() -> nn.Sequential:
    """A net whose encoder computes with small whole numbers, without rounding, whatever a batch is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=0.0), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.randint(-2, 3, (8, 6)))
        net[0].bias.copy_(torch.randint(-2, 3, (8,)))
    return net


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(-3, 4, (ITEMS, 6), generator=generator).float()
    return inputs, torch.randint(0, 3, (ITEMS,), generator=generator)


def on_features(model: nn.Module, settings: Train = SETTINGS) -> Iterator[Tick]:
    inputs, labels = data()
    execution = Execution.of(settings, CPU, model)
    found = features_of(model, inputs, ITEMS, prepare=Preparation(), execution=execution)
    return fit_head(
        find_head(model, inputs[:2]), found, labels, settings=settings, execution=execution, seed=3
    )


def with_every_pass(model: nn.Module, settings: Train = SETTINGS) -> Iterator[Tick]:
    inputs, labels = data()
    adapter = Adapter(model, "head")
    total = count_steps(settings.epochs, steps_per_epoch(ITEMS, settings))
    return fit(
        model,
        make_optimizer(adapter, settings),
        inputs,
        labels,
        prepare=Preparation(),
        settings=settings,
        execution=Execution.of(settings, CPU, model),
        seed=3,
        first_step=0,
        last_step=total,
        total_steps=total,
        adapter=adapter,
    )


@pytest.mark.parametrize("epochs", [1, 4])
def test_features_once_are_a_pass_in_every_epoch_to_the_bit(epochs: int) -> None:
    settings = Train(epochs=epochs, batch_size=16, learning_rate=1e-2, label_smoothing=0.1)
    once, every = exact_net(), exact_net()
    first, second = list(on_features(once, settings)), list(with_every_pass(every, settings))
    assert len(first) == len(second) == 3 * epochs
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert one.learning_rate == other.learning_rate
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, every.state_dict()[name]), name
    assert not torch.equal(once[4].weight, exact_net()[4].weight)


def test_the_encoder_does_not_move_nor_its_batch_norms_nor_the_modes() -> None:
    model = exact_net()
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    for _ in on_features(model):
        pass
    moved = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert moved == {"4.weight", "4.bias"}
    assert [each.training for each in model.modules()] == modes


def test_features_are_what_the_head_reads_in_evaluation_mode() -> None:
    model, (inputs, _) = exact_net(), data()
    found = features_of(
        model, inputs, ITEMS, prepare=Preparation(), execution=Execution.of(SETTINGS, CPU, model)
    )
    with torch.no_grad(), evaluation_mode(model):
        assert torch.equal(found, model[:4](inputs))
    assert find_head(model, inputs[:2]).name == "4"
    assert find_head(model, inputs[:2]).parameters == 27


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "Sequential has no linear layer that comes last"),
        (
            nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)),
            r"no linear layer comes last: '0' is called last, and its outputs, \[2, 3\], are not the model's",
        ),
        (nn.Linear(6, 3), "Linear is a linear layer alone: there is no encoder before it"),
        (tied(), "its last linear layer '2' shares a weight with '0.weight'"),
    ],
)
def test_a_model_without_a_head_of_its_own_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        find_head(model, data()[0][:2])
