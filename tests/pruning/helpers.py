"""What several tests of pruning do: a model pruned at random and masked alike, plans written by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.pruning import Group, Plan, PrunedGroup, find_groups, replay
from tpsprune.pruning.plan import signature_of, versions
from tpsprune.pruning.surgery import mask_units, pruned_copy
from tpsprune.pruning.trial import randomised_copy


def groups_of(model: nn.Module, batch: Any) -> dict[str, Group]:
    return {group.name: group for group in find_groups(model, batch).groups}


def reasons(model: nn.Module, batch: Any) -> dict[str, str]:
    return {each.name: each.reason for each in find_groups(model, batch).unpruned}


def pruned_to(groups: Any, widths: Any) -> list[PrunedGroup]:
    """Return groups that keep their first units, to these widths."""
    return [PrunedGroup.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]


def pruned_and_masked(
    model: nn.Module, batch: Tensor, seed: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a randomised model in double precision, the same masked, and pruned, every group at random."""
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(model, batch[:2]).groups
    model = randomised_copy(model).double()
    masked = copy.deepcopy(model)
    pruned = []
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        kept = torch.randperm(group.width, generator=generator)[:count].tolist()
        pruned.append(PrunedGroup.of(group, kept))
        mask_units(masked, group, pruned[-1].removed)
    return model, masked, pruned_copy(model, pruned)


def halved(model: nn.Module, batch: Any) -> tuple[nn.Module, list[str]]:
    """Return a model without every other unit of each group, and the groups' names."""
    groups = find_groups(model, batch).groups
    pruned = [PrunedGroup.of(group, range(0, group.width, 2)) for group in groups]
    return pruned_copy(model, pruned), [group.name for group in groups]


def plan_of(model: nn.Module, groups: tuple[PrunedGroup, ...], **settings: Any) -> Plan:
    plan = {"target": "widths", "groups": groups, "new_biases": (), "versions": versions()}
    return Plan(**{**plan, "model": signature_of(model), **settings})


def elements_kept_by(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return for each parameter of the ticket where its elements lie, flat, in the dense parameter.

    ``model`` is overwritten.
    """
    for parameter in model.double().parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    ticket = replay(model, replace(plan, model=signature_of(model)))
    return {name: value.long() for name, value in ticket.named_parameters()}


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert str(ours) == str(theirs)
