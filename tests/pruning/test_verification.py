"""A ticket is handed out only when it is what it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.helpers import pruned_to
from tests.pruning.nets_structure import Stream, mlp
from tpsprune.errors import PruneError
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import find_groups
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.surgery import copy_model, mask_units, pruned_copy
from tpsprune.pruning.verification import verify
from tpsprune.recipe.prune import Latency, Macs, Params, Prune, Tolerance, Widths


def perceptron() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return mlp((6, 12, 10, 3)), torch.randn(16, 6)


def stream() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream(nn.LayerNorm), torch.randn(16, 4, 5)


def verified(model: nn.Module, batch: Tensor, settings: Prune | None = None, **instead: Any) -> float:
    """Prune every group by half, and verify it; ``instead`` takes the place of an argument."""
    groups = find_groups(model, batch).groups
    widths = [group.width // 2 for group in groups]
    pruned = pruned_to(groups, widths)
    masked = copy_model(model)
    for group, each in zip(groups, pruned, strict=True):
        mask_units(masked, group, each.removed)
    arguments = {
        "ticket": pruned_copy(masked, pruned),
        "masked": masked,
        "dense": model,
        "batches": [batch],
        "groups": groups,
        "widths": widths,
        "dense_count": count_macs(model, batch),
        "settings": settings or Prune(target=Macs(0.9)),
    }
    return verify(**{**arguments, **instead})


@pytest.mark.parametrize("case", [perceptron, stream])
def test_a_ticket_equals_the_masked_model_and_its_share_is_counted(case: Any) -> None:
    """Where units are normed over, the masked model norms over those kept, or it would not."""
    model, batch = case()
    assert 0.2 < verified(model, batch) < 0.6


def test_attention_that_was_opened_is_no_module_in_another_mode() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).eval()
    opened, names = open_layers(model)
    assert names
    assert verified(opened, torch.randn(8, 4, 5), dense=model) < 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Prune(target=Macs(0.1)), r"keeps 0\.\d{4} of the multiply-accumulates, prune.target is macs=0.1"),
        (Prune(target=Params(0.1)), r"keeps 0\.\d{4} of the parameters, prune.target is params=0.1"),
    ],
)
def test_a_ticket_above_its_target_is_refused(settings: Prune, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        verified(*perceptron(), settings)


@pytest.mark.parametrize("target", [Params(0.9), Latency(0.1), Tolerance(0.1), Widths({"0": 1})])
def test_targets_that_are_no_count_are_met_by_the_planned_shapes_alone(target: Any) -> None:
    assert 0 < verified(*perceptron(), Prune(target=target)) < 1


def test_a_ticket_of_another_shape_or_output_is_refused() -> None:
    with pytest.raises(PruneError, match=r"0.weight is \[6, 6\] in the ticket, \[7, 6\] was planned"):
        verified(*perceptron(), widths=[7, 5])
    model, batch = perceptron()
    with pytest.raises(PruneError, match=r"output differs by .* of its spread from that of the model with"):
        verified(model, batch, masked=model)


def spoil_weight(ticket: Any) -> None:
    with torch.no_grad():
        ticket[2].weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weight, r"2.weight is not finite after compensation; set prune.compensate = false"),
        (lambda ticket: ticket[0].weight.requires_grad_(False), "0.weight lost its flags, number type or"),
        (lambda ticket: ticket[1].eval(), "a module is in another mode than it was"),
    ],
)
def test_a_ticket_that_is_not_finite_or_lost_its_flags_or_modes_is_refused(spoil: Any, message: str) -> None:
    model, batch = perceptron()
    groups = find_groups(model, batch).groups
    ticket = pruned_copy(model, pruned_to(groups, [group.width // 2 for group in groups]))
    spoil(ticket)
    with pytest.raises(PruneError, match=message):
        verified(model, batch, ticket=ticket)
