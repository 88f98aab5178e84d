"""The loop: learns, repeats bit for bit, resumes where it was interrupted, refuses to diverge quietly."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpsprune.errors import DeviceError, DivergedError
from tpsprune.numerics.objective import Objective
from tpsprune.recipe.train import Train
from tpsprune.training import (
    Execution,
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
from tpsprune.training.device import augmentation_generator, epoch_order
from tpsprune.training.evaluate import BATCH_ITEMS
from tpsprune.training.optimizers import learning_rate_at

CPU = Execution(torch.device("cpu"), None, channels_last=False)
INPUTS = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))


class Unchanged:
    """Prepares nothing and draws nothing."""

    def __call__(self, inputs: Any, draws: Tensor | None = None) -> Any:
        return inputs

    def draw(self, inputs: Any, generator: torch.Generator) -> Tensor | None:
        return None


class Noisy(Unchanged):
    """Adds noise, drawn for every item."""

    def __call__(self, inputs: Any, draws: Tensor | None = None) -> Any:
        return inputs if draws is None else inputs + 0.1 * draws

    def draw(self, inputs: Any, generator: torch.Generator) -> Tensor | None:
        return torch.randn(inputs.shape, generator=generator)


unchanged, noisy = Unchanged(), Noisy()


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
    *,
    data: tuple[Any, Tensor] | None = None,
    **options: Any,
) -> list[Tick]:
    inputs, labels = data or task()
    steps = {"first_step": first, "last_step": total if last is None else last, "total_steps": total}
    options = {"prepare": noisy, "execution": CPU, "seed": 5, **options}
    return list(fit(model, optimizer, inputs, labels, settings=settings, **steps, **options))


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.03), ("sgd", 0.3), ("muon", 0.03)])
def test_it_learns_a_task_that_can_be_learned(name: str, rate: float) -> None:
    settings = Train(epochs=20, batch_size=32, optimizer=name, learning_rate=rate)  # type: ignore[arg-type]
    model = net()
    run(model, make_optimizer(model, settings), settings, total=200)
    inputs, labels = task()
    assert evaluate(model, inputs, labels, prepare=unchanged, execution=CPU).accuracy > 0.95


def test_equal_seeds_give_equal_runs_bit_for_bit() -> None:
    settings = Train(epochs=10, batch_size=32)
    losses = []
    for _ in range(2):
        model = net()
        losses.append([tick.loss.item() for tick in run(model, make_optimizer(model, settings), settings)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("broken_at", [1, 17, 59])
def test_a_loop_interrupted_anywhere_resumes_bit_for_bit(name: str, broken_at: int) -> None:
    settings = Train(epochs=10, batch_size=32, optimizer=name, clip_norm=1.0)  # type: ignore[arg-type]
    straight = net()
    run(straight, make_optimizer(straight, settings), settings)

    first = net()
    optimizer = make_optimizer(first, settings)
    run(first, optimizer, settings, last=broken_at)
    saved, moments, randomness = first.state_dict(), state_by_name(optimizer, first), random_state()
    second = net()
    torch.manual_seed(999)
    second.load_state_dict(saved)
    optimizer = make_optimizer(second, settings)
    load_state_by_name(optimizer, second, moments)
    load_random_state(randomness)
    run(second, optimizer, settings, first=broken_at)
    for ours, theirs in zip(second.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_parameter_that_is_new_to_the_optimiser_starts_without_momentum(name: str) -> None:
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


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_moments_are_laid_out_as_their_channels_last_weights(name: str) -> None:
    """Fused kernels traverse memory: contiguous moments were taken for those of other elements."""
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

    class Spy(Unchanged):
        def __call__(self, inputs: Any, draws: Tensor | None = None) -> Any:
            seen.append(inputs[:, 0])
            return inputs

    settings = Train(epochs=2, batch_size=50)
    model = net()
    ticks = run(model, make_optimizer(model, settings), settings, total=8, prepare=Spy())
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert len(first.unique()) == 200
    assert not torch.equal(first, second)
    assert [tick.epoch for tick in ticks] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_augmentation_differs_between_steps_and_depends_on_seed_and_step_alone() -> None:
    settings = Train(epochs=1, batch_size=70)
    model = net()
    drawn: list[int] = []

    def augmentations(first_step: int) -> list[list[float]]:
        seen: list[list[float]] = []

        class Record(Noisy):
            def __call__(self, inputs: Any, draws: Tensor | None = None) -> Any:
                assert draws is not None
                assert draws.shape == inputs.shape
                seen.append(draws[:4].flatten().tolist())
                return inputs

            def draw(self, inputs: Any, generator: torch.Generator) -> Tensor | None:
                drawn.append(len(inputs))
                return super().draw(inputs, generator)

        run(model, make_optimizer(model, settings), settings, first_step, 6, prepare=Record())
        return seen

    whole = augmentations(0)
    assert drawn == [210, 210], "once an epoch, for every item"
    assert len({tuple(numbers) for numbers in whole}) == 6
    assert augmentations(4) == whole[4:], "begun in the middle of the second epoch"


def test_a_diverging_loss_ends_the_run_and_names_step_and_cause() -> None:
    settings = Train(epochs=10, batch_size=32, optimizer="sgd", learning_rate=1e30, schedule="constant")
    model = net()
    words = r"the loss is not finite at step \d+ \(epoch \d.\d\d\): .*lower train.learning_rate"
    with pytest.raises(DivergedError, match=words):
        run(model, make_optimizer(model, settings), settings)


@pytest.mark.parametrize("by_name", [True, False])
def test_inputs_that_are_not_finite_are_named_as_the_cause_in_any_part(by_name: bool) -> None:
    broken, labels = torch.full((300, 4), torch.inf), (INPUTS[:, 0] > 0).long()
    parts = {"right": broken, "left": INPUTS[:, :2]} if by_name else (INPUTS[:, :2], broken)
    with pytest.raises(DivergedError, match=r"at step 1 .*the inputs of that batch hold values that are not"):
        train(Halves(), parts, labels, Objective.of("cross-entropy"))


def test_evaluation_leaves_the_mode_of_every_module_alone() -> None:
    model = net().train()
    model[2].eval()
    inputs, labels = task()
    score = evaluate(model, inputs, labels, prepare=unchanged, execution=CPU)
    assert [module.training for module in model] == [True, True, False, True]
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert score.accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_a_batch_is_never_larger_than_the_data() -> None:
    assert steps_per_epoch(100, Train(epochs=1, batch_size=512)) == 1
    assert steps_per_epoch(100, Train(epochs=1, batch_size="full")) == 1
    assert steps_per_epoch(100, Train(epochs=1, batch_size=30)) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_cuda_device_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"--device cuda: no CUDA device is available .* use --device cpu or auto"
    ):
        choose_device("cuda")


class Places(nn.Module):
    """Scores for each of six places, from the sign of the number there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.net(inputs[..., None])
        return scores


class Halves(nn.Module):
    """The same net, its inputs in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = scorer(2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        scores: Tensor = self.net(torch.cat((left, right), dim=1))
        return scores


def scorer(outputs: int) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, outputs))


def train(model: nn.Module, inputs: Any, labels: Tensor, objective: Objective) -> nn.Module:
    settings = Train(epochs=30, batch_size=50, learning_rate=0.02)
    optimizer = make_optimizer(model, settings)
    run(model, optimizer, settings, total=180, data=(inputs, labels), prepare=unchanged, objective=objective)
    return model


def score(model: nn.Module, inputs: Any, labels: Tensor, objective: Objective) -> float:
    return evaluate(model, inputs, labels, prepare=unchanged, execution=CPU, objective=objective).accuracy


@pytest.mark.parametrize(
    ("word", "model", "labels"),
    [
        ("mse", lambda: scorer(2), torch.stack((INPUTS[:, 0] * 2, INPUTS[:, 1].square()), dim=1)),
        ("mse", lambda: scorer(1), INPUTS[:, 0] - INPUTS[:, 3]),
        ("bce", lambda: scorer(3), (INPUTS[:, :3] > 0).float()),
        ("next-token", Places, (INPUTS > 0).long() + (INPUTS > 1).long()),
        ("cross-entropy", lambda: scorer(2), (INPUTS[:, 0] > 0).long()),
    ],
)
def test_what_can_be_learned_is_learned(word: str, model: Callable[[], nn.Module], labels: Tensor) -> None:
    objective = Objective.of(word)
    made = model()
    before = score(made, INPUTS, labels, objective)
    assert before < 0.8
    assert score(train(made, INPUTS, labels, objective), INPUTS, labels, objective) > 0.95


@pytest.mark.parametrize("by_name", [True, False])
def test_inputs_of_several_parts_are_learned_from_as_they_would_be_in_one(by_name: bool) -> None:
    labels, objective = (INPUTS[:, 0] > 0).long(), Objective.of("cross-entropy")
    whole = train(scorer(2), INPUTS, labels, objective)
    left, right = INPUTS[:, :2], INPUTS[:, 2:]
    parts: Any = {"right": right, "left": left} if by_name else (left, right)
    halves = train(Halves(), parts, labels, objective)
    for one, two in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, two)
    assert score(halves, parts, labels, objective) == score(whole, INPUTS, labels, objective)


def test_long_sequences_are_evaluated_few_at_a_time() -> None:
    seen: list[int] = []

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            return torch.nn.functional.one_hot(inputs, 5).float() * self.scale

    tokens = torch.randint(5, (9, BATCH_ITEMS // 4))
    assert score(Seen(), tokens, tokens, Objective.of("next-token")) == 1.0
    assert seen == [4, 4, 1]


class SquaredSize:
    """Squared weights, or where it rides the squared scores of the forward pass."""

    def __init__(self, model: nn.Module, *, rides: bool) -> None:
        self.shares_forward_pass = rides
        self._model = model
        self._scores = torch.zeros(())
        self.labels: list[Tensor] = []
        self.losses: list[Tensor | None] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        hook = self._model.register_forward_hook(lambda module, given, scores: self._keep(scores))
        yield
        hook.remove()

    def _keep(self, scores: Tensor) -> None:
        self._scores = scores

    def penalty(self, step: int, label_i: Tensor | None = None, task_loss: Tensor | None = None) -> Tensor:
        assert label_i is not None
        self.labels.append(label_i)
        self.losses.append(task_loss)
        if self.shares_forward_pass:
            return self._scores.square().sum()
        return sum((p.square().sum() for p in self._model.parameters()), torch.zeros(()))


@pytest.mark.parametrize("rides", [False, True])
def test_the_penalty_adds_its_gradient_and_nothing_else(rides: bool) -> None:
    settings = Train(epochs=1, batch_size="full", optimizer="sgd", momentum=0.0, weight_decay=0.0)
    with_penalty, in_loss = net().eval(), net().eval()
    inputs, labels = task()
    for model in (with_penalty, in_loss):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    penalty = SquaredSize(with_penalty, rides=rides)
    run(with_penalty, make_optimizer(with_penalty, settings), settings, total=1, penalty=penalty)
    order = epoch_order(210, 5, 0)
    assert torch.equal(penalty.labels[0], labels[order])
    batch = noisy(inputs[order], noisy.draw(inputs, augmentation_generator(5, 0)))
    scores = in_loss(batch)
    term = scores.square().sum() if rides else SquaredSize(in_loss, rides=False).penalty(0, labels)
    loss = nn.functional.cross_entropy(scores, labels[order])
    assert penalty.losses[0] is not None
    torch.testing.assert_close(penalty.losses[0], loss.detach())
    assert not penalty.losses[0].requires_grad
    (loss + term).backward()
    with torch.no_grad():
        for parameter in in_loss.parameters():
            assert parameter.grad is not None
            parameter.sub_(learning_rate_at(0, 1, settings) * parameter.grad)
    for ours, theirs in zip(with_penalty.parameters(), in_loss.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_compiled_module_trains_the_tensors_of_its_model_and_a_plain_run_compiles_nothing() -> None:
    model = net()
    assert CPU.compiled(model) is model
    compiled = Execution(CPU.device, None, channels_last=False, compiles=True).compiled(model)
    assert compiled is not model
    ours, theirs = compiled.parameters(), model.parameters()
    assert all(one is other for one, other in zip(ours, theirs, strict=True))


class Patches(nn.Module):
    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, kernel, stride=stride)


@pytest.mark.parametrize(("capability", "expected"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_a_resnet_is_channels_last_only_where_its_shortcuts_have_a_sound_kernel(
    capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    resnet = nn.Sequential(Patches(3, 1), Patches(1, 2))
    assert Execution.of(Train(epochs=1), CPU.device, resnet).channels_last is expected
    assert Execution.of(Train(epochs=1), CPU.device, resnet[:1]).channels_last


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        (Patches(3, 1), "auto", True),
        (Patches(3, 2), "auto", True),
        (Patches(4, 4), "auto", False),
        (Patches(1, 1), "auto", False),
        (nn.Linear(3, 3), "auto", False),
        (None, "auto", False),
        (Patches(3, 1), "contiguous", False),
        (nn.Linear(3, 3), "channels-last", True),
    ],
)
def test_on_a_cpu_the_layout_follows_from_the_model_by_a_rule(
    model: nn.Module | None, wanted: Any, expected: bool
) -> None:
    settings = Train(epochs=1, memory_format=wanted)
    execution = Execution.of(settings, CPU.device, model)
    assert execution.channels_last is expected
    assert execution.describe() == ("cpu, channels-last" if expected else "cpu")
    assert execution == Execution.of(settings, CPU.device, model)


def test_an_optimiser_takes_the_steps_of_torchs_own_without_importing_the_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from tpsprune.recipe.train import Train\n"
        "from tpsprune.training import make_optimizer\n"
        "plain = {'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD, 'muon': torch.optim.Optimizer}\n"
        "for name, kind in plain.items():\n"
        "    model = torch.nn.Linear(3, 2)\n"
        "    layers = torch.nn.Sequential(model, torch.nn.Linear(2, 2))\n"
        "    for each in layers.parameters():\n"
        "        each.grad = torch.ones_like(each)\n"
        "    optimizer = make_optimizer(layers, Train(epochs=1, optimizer=name))\n"
        "    assert isinstance(optimizer, kind)\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
        "    assert model.weight.grad is None\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_moves_weights_as_torchs_own_does(name: Any) -> None:
    settings = Train(epochs=1, optimizer=name, weight_decay=0.0)
    plain = {
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True),
        "sgd": lambda parameters: torch.optim.SGD(
            parameters, lr=1e-3, momentum=0.9, nesterov=True, fused=True
        ),
    }
    ours, theirs = net().eval(), net().eval()
    optimizers = (make_optimizer(ours, settings), plain[name](theirs.parameters()))
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(INPUTS).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
