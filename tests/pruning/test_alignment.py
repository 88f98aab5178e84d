"""Units of another tool's pruned model are found by their weights, and the model fitted to its original."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tpsprune
from tests.pruning.helpers import pruned_to
from tpsprune.errors import PruneError
from tpsprune.pruning import PrunedGroup, find_groups
from tpsprune.pruning.alignment import align_units
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.surgery import pruned_copy


class Residual(nn.Module):
    """Convolutions with a sum, batch norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = (
            nn.Conv2d(1, 12, 3, padding=1),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.Conv2d(16, 12, 3, padding=1),
        )
        self.norm, self.inner = nn.BatchNorm2d(12), nn.BatchNorm2d(16)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.b(torch.relu(self.inner(self.a(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 20, bias=False), nn.ReLU(), nn.Linear(20, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))
    )


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, torch.randn(128, 1, 6, 6, generator=torch.Generator().manual_seed(1))),
    "mlp without biases": (mlp, torch.randn(256, 6, generator=torch.Generator().manual_seed(1))),
}


def settled(name: str) -> tuple[nn.Module, Tensor]:
    make, data = NETS[name]
    model = make().train()
    with torch.no_grad():
        for _ in range(3):
            model(data)
    return model.eval(), data


@pytest.mark.parametrize("name", NETS)
@given(seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=15)
def test_units_are_found_whichever_another_tool_has_kept(name: str, seed: int) -> None:
    model, data = settled(name)
    groups = find_groups(model, data[:2]).groups
    generator = torch.Generator().manual_seed(seed)
    pruned = []
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        pruned.append(
            PrunedGroup.of(group, torch.randperm(group.width, generator=generator)[:count].tolist())
        )
    other = pruned_copy(model, pruned)
    found, distance = align_units(groups, model.state_dict(), other.state_dict())
    assert found == {each.name: each.kept for each in pruned if each.removed}
    assert distance < 1e-9


@pytest.mark.parametrize("name", NETS)
def test_units_are_found_after_some_training_too(name: str) -> None:
    model, data = settled(name)
    groups = find_groups(model, data[:2]).groups
    pruned = pruned_to(groups, [group.width - 3 for group in groups])
    state = pruned_copy(model, pruned).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        key: value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and value.numel() > 1
        else value
        for key, value in state.items()
    }
    found, distance = align_units(groups, model.state_dict(), state)
    assert found == {each.name: each.kept for each in pruned}
    assert 0.0 < distance < 0.1


def test_another_model_another_shape_and_another_order_are_refused() -> None:
    model, data = settled("residual")
    groups = find_groups(model, data[:2]).groups
    state = model.state_dict()
    with pytest.raises(PruneError, match=r"has no tensor 'head\.weight'"):
        align_units(groups, state, {name: value for name, value in state.items() if name != "head.weight"})
    with pytest.raises(PruneError, match=r"head\.weight is \[5, 11\] in the pruned model, and \[5, 12\]"):
        align_units(groups, state, {**state, "head.weight": state["head.weight"][:, :11]})
    halved = pruned_copy(model, pruned_to(groups, [group.width // 2 for group in groups]))
    turned = {
        name: value.flip(0) if name.startswith(("a.", "inner.")) and value.ndim else value
        for name, value in halved.state_dict().items()
    }
    turned["b.weight"] = turned["b.weight"].flip(1)
    with pytest.raises(PruneError, match="another order"):
        align_units(groups, state, turned)
    with pytest.raises(PruneError, match="nothing to fit"):
        tpsprune.repair(model, model, data, quality="fast")
    strange = Residual()
    for parameter in strange.parameters():
        nn.init.normal_(parameter)
    strange = pruned_copy(strange.eval(), pruned_to(groups, [group.width // 2 for group in groups]))
    with pytest.raises(PruneError, match=r"another order|are not the dense model's"):
        tpsprune.repair(strange, model, data, quality="fast")


def importance(name: str) -> Any:
    kinds = {
        "magnitude": torch_pruning.importance.MagnitudeImportance(p=2),
        "group-norm": torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "taylor": torch_pruning.importance.TaylorImportance(),
    }
    return kinds[name]


@pytest.mark.parametrize("name", ["magnitude", "group-norm", "taylor"])
def test_what_torch_pruning_has_cut_comes_nearer_to_the_dense_model(name: str) -> None:
    model, data = settled("residual")
    before = copy.deepcopy(model.state_dict())
    other: Any = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MetaPruner(
            other, data[:2], importance=importance(name), pruning_ratio=0.4, ignored_layers=[other.head]
        )
        if name == "taylor":
            other(data).square().sum().backward()
        pruner.step()
    found = tpsprune.repair(other, model, data, quality="fast")
    shapes = {key: value.shape for key, value in found.ticket.state_dict().items()}
    assert all(shapes[key] == value.shape for key, value in other.state_dict().items())
    held = [torch.randn(256, 1, 6, 6, generator=torch.Generator().manual_seed(9))]
    errors = [output_error(each, model, held) for each in (found.ticket, other)]
    assert errors[0] < 0.5 * errors[1]
    assert "the pruned model's outputs err by" in found.notes[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    by_state = tpsprune.repair(other.state_dict(), model, data, quality="fast")
    assert by_state.plan == found.plan


def test_a_pruned_model_to_which_fitting_brings_nothing_is_refused() -> None:
    model, data = settled("residual")
    groups = find_groups(model, data[:2]).groups
    state = pruned_copy(model, pruned_to(groups, [group.width // 2 for group in groups])).state_dict()
    with pytest.raises(PruneError, match="brings nothing"):
        tpsprune.repair(state, model, data, quality="fast", compensate=False)
    assert tpsprune.repair(state, model, data, quality="fast").macs_share < 1.0
