"""The loop: learns, repeats bit for bit, goes on where it was broken off, refuses to diverge quietly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import DeviceError, DivergedError
from tpsprune.recipe.train import Train
from tpsprune.training import (
    Execution,
    Penalty,
    Tick,
    choose_device,
    evaluate,
    fit,
    load_random_state,
    load_state_by_name,
    make_optimizer,
    random_state,
    state_by_name,
    steps_per_epoch,
)

CPU = Execution(torch.device("cpu"), None, channels_last=False)


def plain(inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return inputs


def noisy(inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return inputs if generator is None else inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def task() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(210, 6, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Train,
    first: int = 0,
    last: int | None = None,
    total: int = 60,
    penalty: Penalty | None = None,
) -> list[Tick]:
    inputs, labels = task()
    return list(
        fit(
            model,
            optimizer,
            inputs,
            labels,
            prepare=noisy,
            settings=settings,
            execution=CPU,
            seed=5,
            first_step=first,
            last_step=total if last is None else last,
            total_steps=total,
            penalty=penalty,
        )
    )


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.03), ("sgd", 0.3)])
def test_it_learns_a_task_that_can_be_learned(name: str, rate: float) -> None:
    settings = Train(epochs=20, batch_size=32, optimizer=name, learning_rate=rate)  # type: ignore[arg-type]
    model = net()
    run(model, make_optimizer(model, settings), settings, total=200)
    inputs, labels = task()
    assert evaluate(model, inputs, labels, prepare=plain, execution=CPU).accuracy > 0.95


def test_equal_seeds_give_equal_runs_bit_for_bit() -> None:
    settings = Train(epochs=10, batch_size=32)
    losses = []
    for _ in range(2):
        model = net()
        losses.append([tick.loss.item() for tick in run(model, make_optimizer(model, settings), settings)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("broken_at", [1, 17, 59])
def test_a_loop_broken_off_anywhere_goes_on_bit_for_bit(name: str, broken_at: int) -> None:
    settings = Train(epochs=10, batch_size=32, optimizer=name, clip_norm=1.0)  # type: ignore[arg-type]
    straight = net()
    run(straight, make_optimizer(straight, settings), settings)

    first = net()
    optimizer = make_optimizer(first, settings)
    run(first, optimizer, settings, last=broken_at)
    saved, moments, dice = first.state_dict(), state_by_name(optimizer, first), random_state()
    second = net()
    torch.manual_seed(999)
    second.load_state_dict(saved)
    optimizer = make_optimizer(second, settings)
    load_state_by_name(optimizer, second, moments)
    load_random_state(dice)
    run(second, optimizer, settings, first=broken_at)
    for ours, theirs in zip(second.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_parameter_that_is_new_to_the_optimiser_begins_afresh_beside_the_others(name: str) -> None:
    settings = Train(epochs=10, batch_size=32, optimizer=name)  # type: ignore[arg-type]
    old = net()
    optimizer = make_optimizer(old, settings)
    run(old, optimizer, settings, last=5)
    moments = state_by_name(optimizer, old)
    del moments["3.bias"]
    new = net()
    optimizer = make_optimizer(new, settings)
    load_state_by_name(optimizer, new, moments)
    run(new, optimizer, settings, first=5, last=6)
    assert "3.bias" in state_by_name(optimizer, new)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_moments_are_laid_out_as_their_channels_last_weights(name: str) -> None:
    """Fused kernels walk memory: contiguous moments were taken for those of other elements."""
    settings = Train(epochs=1, optimizer=name)  # type: ignore[arg-type]
    model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, settings)
    model(torch.randn(2, 4, 8, 8)).square().sum().backward()
    optimizer.step()
    saved = {
        parameter: {key: value.contiguous() for key, value in moments.items()}
        for parameter, moments in state_by_name(optimizer, model).items()
    }
    again = copy.deepcopy(model)
    resumed = make_optimizer(again, settings)
    load_state_by_name(resumed, again, saved)
    for net_, optimizer_ in ((model, optimizer), (again, resumed)):
        optimizer_.zero_grad()
        net_(torch.ones(2, 4, 8, 8)).square().sum().backward()
        optimizer_.step()
    assert torch.equal(model.weight, again.weight)


def test_every_epoch_visits_each_item_at_most_once_in_an_order_of_its_own() -> None:
    seen: list[Tensor] = []

    def spy(inputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        seen.append(inputs[:, 0])
        return inputs

    settings = Train(epochs=2, batch_size=50)
    model = net()
    inputs, labels = task()
    ticks = list(
        fit(
            model,
            make_optimizer(model, settings),
            inputs,
            labels,
            prepare=spy,
            settings=settings,
            execution=CPU,
            seed=0,
            first_step=0,
            last_step=8,
            total_steps=8,
        )
    )
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert len(first.unique()) == 200
    assert not torch.equal(first, second)
    assert [tick.epoch for tick in ticks] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_a_diverging_loss_ends_the_run_and_names_step_and_cause() -> None:
    settings = Train(epochs=10, batch_size=32, optimizer="sgd", learning_rate=1e30, schedule="constant")
    model = net()
    with pytest.raises(
        DivergedError,
        match=r"the loss is not finite at step \d+ \(epoch \d.\d\d\): .*lower train.learning_rate",
    ):
        run(model, make_optimizer(model, settings), settings)


def test_inputs_that_are_not_finite_are_named_as_the_cause() -> None:
    settings = Train(epochs=1, batch_size=32)
    model = net()
    inputs, labels = task()
    inputs[:] = float("nan")
    loop = fit(
        model,
        make_optimizer(model, settings),
        inputs,
        labels,
        prepare=plain,
        settings=settings,
        execution=CPU,
        seed=0,
        first_step=0,
        last_step=1,
        total_steps=1,
    )
    with pytest.raises(DivergedError, match=r"at step 1 .*the inputs of that batch hold values"):
        next(loop)


def test_evaluation_leaves_the_mode_of_every_module_alone() -> None:
    model = net().train()
    model[2].eval()
    inputs, labels = task()
    score = evaluate(model, inputs, labels, prepare=plain, execution=CPU)
    assert [module.training for module in model] == [True, True, False, True]
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert score.accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_a_batch_is_never_larger_than_the_data() -> None:
    assert steps_per_epoch(100, Train(epochs=1, batch_size=512)) == 1
    assert steps_per_epoch(100, Train(epochs=1, batch_size="full")) == 1
    assert steps_per_epoch(100, Train(epochs=1, batch_size=30)) == 3


def test_weight_decay_leaves_biases_alone() -> None:
    settings = Train(epochs=1, weight_decay=0.5)
    decays = {
        parameter.ndim: group["weight_decay"]
        for group in make_optimizer(net(), settings).param_groups
        for parameter in group["params"]
    }
    assert decays == {2: 0.5, 1: 0.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_cuda_device_is_refused_in_words() -> None:
    with pytest.raises(
        DeviceError, match=r"--device cuda: no CUDA device is available .* use --device cpu or auto"
    ):
        choose_device("cuda")
