"""Two models in lock step: where each batch is, what is done on the way, and that nothing is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from greenlet import greenlet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning import nets_structure as zoo
from tests.pruning.nets_structure import DrawnNet
from tests.pruning.observed import disturbed, layer_inputs, noise
from tests.unchanged import unchanged
from tpsprune.pruning import lockstep
from tpsprune.pruning.layers import is_mixer
from tpsprune.pruning.lockstep import collect_all_calls, traverse_in_step


def mixers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_mixer(module)]


@pytest.fixture(autouse=True)
def coroutines(monkeypatch: pytest.MonkeyPatch) -> list[greenlet]:
    """Every coroutine that the traversal starts."""
    started: list[greenlet] = []

    def start(run: Callable[[], Any]) -> greenlet:
        started.append(greenlet(run))
        return started[-1]

    monkeypatch.setattr(lockstep, "greenlet", start)
    return started


def nothing_is_left(coroutines: list[greenlet], *models: nn.Module) -> bool:
    """Return whether no coroutine waits and no module has a hook."""
    modules = [each for model in models for each in model.modules()]
    return not any(coroutines) and not any(m._forward_pre_hooks or m._forward_hooks for m in modules)


class Wandering(nn.Module):
    """Its input decides which layers are called and in which order; ``ended`` counts forwards that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.last, self.never = (nn.Linear(3, 3) for _ in range(5))
        self.ended = 0

    def forward(self, x_bd: Tensor) -> Tensor:
        try:
            x_bd = self.first(x_bd)
            order = [self.left, self.right] if float(x_bd.mean()) > 0 else [self.right, self.left]
            for layer in order[: 1 if float(x_bd[0, 0]) > 0 else 2]:
                x_bd = torch.tanh(layer(x_bd))
            return self.last(x_bd)
        finally:
            self.ended += 1


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "token-mlp", "transformer"])
def test_stops_come_in_the_order_of_calls_and_each_batch_is_where_it_should_be(name: str) -> None:
    dense, batch = zoo.case(name)
    dense, pruned, batches = dense.eval(), disturbed(dense.eval()), batch.split(12)
    called: list[str] = []
    for each in mixers(dense):
        dense.get_submodule(each).register_forward_pre_hook(lambda *_, each=each: called.append(each))
    dense(batch)
    expected = list(called)
    stops = []
    for stop in traverse_in_step(dense, pruned, batches, mixers(dense)[::-1]):
        stops.append(stop.module)
        assert len(stop.batches) == len(batches)
        for found, part in zip(stop.batches, batches, strict=True):
            torch.testing.assert_close(found.dense, layer_inputs(dense, stop.module, part))
            torch.testing.assert_close(found.pruned, layer_inputs(pruned, stop.module, part))
            layer = dense.get_submodule(stop.module)
            if found.output is None:
                assert any(layer.children())
            else:
                torch.testing.assert_close(found.output, layer.forward(found.dense).detach())
    assert stops == expected


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["plain", "grouped", "depthwise", "residual"]), min_size=1, max_size=3),
    norm=st.sampled_from(["batch", "layer", "none"]),
    parts=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_traversal_continues_with_the_layer_as_changed_at_its_stop(
    kinds: list[str], norm: str, parts: int, seed: int
) -> None:
    dense = DrawnNet(kinds, [4, 6, 4, 6], norm, 5).eval()
    pruned, batches = copy.deepcopy(dense), noise(6, 2, 6, 6, seed=seed).tensor_split(parts)
    with unchanged(dense):
        for stop in traverse_in_step(dense, pruned, batches, mixers(dense)):
            copied = copy.deepcopy(pruned)
            for module in copied.modules():
                module._forward_pre_hooks.clear()
            for found, part in zip(stop.batches, batches, strict=True):
                torch.testing.assert_close(found.pruned, layer_inputs(copied, stop.module, part))
                assert torch.equal(found.pruned, found.dense) == (stop.module == "stem")
            with torch.no_grad():
                pruned.get_submodule(stop.module).weight.mul_(1.5).add_(0.1)


def test_later_calls_of_a_layer_do_not_stop_and_can_be_had_in_full(coroutines: list[greenlet]) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x_bd: Tensor) -> Tensor:
            for _ in range(3):
                x_bd = torch.tanh(self.again(x_bd))
            return self.out(x_bd)

    dense = Loop()
    pruned, batch = disturbed(dense), noise(5, 3)
    assert [stop.module for stop in traverse_in_step(dense, pruned, [batch], ["out", "again"])] == [
        "again",
        "out",
    ]
    pairs = collect_all_calls(dense, pruned, batch.split(4), "again")
    assert [len(each.dense) for each in pairs] == [len(each.pruned) for each in pairs] == [4] * 3 + [1] * 3
    torch.testing.assert_close(pairs[1].pruned, torch.tanh(pruned.again(batch[:4])).detach())
    assert nothing_is_left(coroutines, dense, pruned)


def test_layers_that_are_never_called_are_left_out_and_other_paths_do_not_hang(
    coroutines: list[greenlet],
) -> None:
    torch.manual_seed(0)
    dense = Wandering()
    pruned = disturbed(dense)
    batches = [noise(2, 3, seed=seed) for seed in range(12)]
    taken: dict[str, list[Tensor]] = {}
    for stop in traverse_in_step(dense, pruned, batches, ["never", "last", "left", "right", "first"]):
        taken[stop.module] = [each.dense.clone() for each in stop.batches]
    assert set(taken) == {"first", "left", "right", "last"}
    assert len(taken["first"]) == len(batches)
    assert 0 < len(taken["left"]) < len(batches)
    for inputs in taken["left"]:
        assert any(
            torch.equal(inputs, layer_inputs(dense, "left", each))
            for each in batches
            if _comes_by(dense, each)
        )
    assert nothing_is_left(coroutines, dense, pruned)


def _comes_by(model: nn.Module, batch: Tensor) -> bool:
    try:
        layer_inputs(model, "left", batch)
    except IndexError:
        return False
    return True


@pytest.mark.parametrize("layer", ["first", "last"])
@pytest.mark.parametrize("broken", [0, 1])
def test_what_a_model_raises_comes_through_and_nothing_is_left_behind(
    coroutines: list[greenlet], layer: str, broken: int
) -> None:
    models = (Wandering(), Wandering())
    setattr(models[broken], layer, nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(traverse_in_step(*models, list(noise(3, 2, 3)), mixers(models[0])))
    assert nothing_is_left(coroutines, *models)
    # The dense model is called first, and what was not begun has nothing to end.
    assert [model.ended for model in models] == ([1, 0] if (layer, broken) == ("first", 0) else [3, 3])


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.b(input=self.a(input=left - right))


@pytest.mark.parametrize(
    "batch_of",
    [lambda x, y: {"right": y, "left": x}, lambda x, y: (x, y)],
    ids=["by keyword", "by position"],
)
def test_models_and_layers_may_be_called_by_keyword(batch_of: Callable[..., Any]) -> None:
    dense, x, y = Keywords(), noise(4, 3), noise(4, 3, seed=1)
    stops = {
        stop.module: stop.batches[0].dense.clone()
        for stop in traverse_in_step(dense, disturbed(dense), [batch_of(x, y)], ["a", "b"])
    }
    torch.testing.assert_close(stops["a"], x - y)
    torch.testing.assert_close(stops["b"], dense.a(x - y).detach())


def test_leaving_early_ends_every_forward_and_leaves_nothing_behind(coroutines: list[greenlet]) -> None:
    dense, pruned = Wandering(), Wandering()
    stops = traverse_in_step(dense, pruned, list(noise(6, 2, 3)), mixers(dense))
    assert next(stops).module == "first"
    assert (dense.ended, pruned.ended) == (0, 0)
    assert not nothing_is_left(coroutines, dense, pruned)
    stops.close()
    assert (dense.ended, pruned.ended) == (6, 6)
    assert nothing_is_left(coroutines, dense, pruned)


def test_no_gradients_are_kept_and_the_caller_has_those_it_had() -> None:
    dense = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for stop in traverse_in_step(dense, copy.deepcopy(dense), [noise(2, 3)], ["0", "1"]):
        assert torch.is_grad_enabled()
        found = stop.batches[0]
        assert not any(
            each is not None and each.requires_grad for each in (found.dense, found.pruned, found.output)
        )
    assert torch.is_grad_enabled()
    assert not list(traverse_in_step(dense, copy.deepcopy(dense), [], ["0"]))
    assert not list(traverse_in_step(dense, copy.deepcopy(dense), [noise(2, 3)], []))


def test_outputs_come_before_hooks_change_them_and_a_later_module_may_be_replaced() -> None:
    dense = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).eval()
    pruned, batch = disturbed(dense), noise(5, 3)
    dense[0].register_forward_hook(lambda _module, _args, out: torch.relu(out) + 7)
    for stop in traverse_in_step(dense, pruned, [batch], ["0", "2"]):
        if stop.module == "0":
            pruned[1] = nn.ReLU()
            torch.testing.assert_close(stop.batches[0].output, dense[0].forward(batch).detach())
        else:
            torch.testing.assert_close(stop.batches[0].pruned, torch.relu(pruned[0](batch)).detach())
            torch.testing.assert_close(stop.batches[0].output, dense(batch).detach())
