from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tpsprune.pruning import PrunedGroup, find_groups
from tpsprune.pruning.surgery import mask_units, pruned_copy
from tpsprune.pruning.trial import randomised_copy

CASES = ["cnn", "residual", "mixed", "mlp", "token-mlp", "transformer"]


def random_cuts(model: nn.Module, batch: Tensor, seed: int) -> tuple[nn.Module, nn.Module, list[PrunedGroup]]:
    """Cut every group at random; return the ticket and the same model with the units silenced."""
    generator = torch.Generator().manual_seed(seed)
    silenced = copy.deepcopy(model)
    cuts = []
    for group in find_groups(model, batch[:2]).groups:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        cut = PrunedGroup.of(group, torch.randperm(group.width, generator=generator)[:count].tolist())
        mask_units(silenced, group, cut.removed)
        cuts.append(cut)
    return pruned_copy(model, cuts), silenced, cuts


@pytest.mark.parametrize("name", CASES)
def test_the_cut_model_says_what_the_dense_one_says_with_the_units_silenced(
    zoo: SimpleNamespace, name: str
) -> None:
    model, batch = zoo.case(name)
    model = randomised_copy(model).double()
    batch = batch.double() if batch.is_floating_point() else batch
    ticket, silenced, cuts = random_cuts(model, batch, seed=1)
    assert any(cut.removed for cut in cuts)
    assert not torch.allclose(silenced(batch), model(batch))
    torch.testing.assert_close(ticket(batch), silenced(batch), rtol=1e-9, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    kind=st.sampled_from(["cnn", "mlp"]),
    seed=st.integers(0, 1000),
)
def test_so_it_is_on_networks_of_any_widths(
    zoo: SimpleNamespace, widths: list[int], kind: str, seed: int
) -> None:
    model = zoo.Cnn(tuple(widths)) if kind == "cnn" else zoo.mlp((5, *widths, 3))
    batch = (zoo.images(4) if kind == "cnn" else zoo.vectors(4)).double()
    model = randomised_copy(model).double()
    ticket, silenced, _ = random_cuts(model, batch, seed)
    torch.testing.assert_close(ticket(batch), silenced(batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed"])
def test_the_slices_are_those_that_torch_pruning_takes(zoo: SimpleNamespace, name: str) -> None:
    model, batch = zoo.case(name)
    cuts, twin = [], copy.deepcopy(model)
    for group in find_groups(model, batch[:2]).groups:
        cut = PrunedGroup.of(group, range(0, group.width, 2))
        cuts.append(cut)
        graph = torch_pruning.DependencyGraph().build_dependency(
            twin,
            batch[:2],
            unwrapped_parameters=[],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
        )
        root = twin.get_submodule(group.name)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, prune, list(cut.removed)).prune()
    cut_by_us = pruned_copy(model, cuts)
    expected = twin.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in cut_by_us.state_dict().items())
    assert str(cut_by_us) == str(twin)


def test_frozen_flags_modes_number_types_and_memory_formats_are_kept(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("cnn")
    model = model.to(memory_format=torch.channels_last)
    model.body[0].weight.requires_grad_(False)
    model.body[1].eval()
    model.head.half()
    group = find_groups(zoo.case("cnn")[0], batch[:2]).groups
    ticket = pruned_copy(model, [PrunedGroup.of(each, range(3)) for each in group])
    assert ticket.body[3].weight.shape == (3, 3, 3, 3)
    assert ticket.body[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not ticket.body[0].weight.requires_grad
    assert ticket.body[3].weight.requires_grad
    assert ticket.head.weight.dtype == torch.float16
    assert [m.training for m in ticket.modules()] == [m.training for m in model.modules()]


def test_cutting_nothing_gives_an_equal_model_with_its_own_tensors(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("residual")
    cuts = [PrunedGroup.of(group, range(group.width)) for group in find_groups(model, batch[:2]).groups]
    ticket = pruned_copy(model, cuts)
    for name, value in ticket.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
        assert value.data_ptr() != model.state_dict()[name].data_ptr()


def test_layers_know_their_new_sizes(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mixed")
    cuts = {each.name: PrunedGroup.of(each, range(3)) for each in find_groups(model, batch[:2]).groups}
    ticket = pruned_copy(model, list(cuts.values()))
    assert (ticket.depthwise.groups, ticket.depthwise.in_channels, ticket.depthwise.out_channels) == (3, 3, 3)
    assert (ticket.merge.in_channels, ticket.merge.out_channels) == (6, 3)
    assert (ticket.up.in_channels, ticket.up.out_channels) == (3, 3)
    assert ticket.slope.num_parameters == 3
    assert (ticket.excite.in_features, ticket.excite.out_features) == (3, 3)
