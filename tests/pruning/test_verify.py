"""A ticket is handed out only when it is what it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets_structure import Stream
from tpsprune.errors import PruneError
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning import GroupCut, survey
from tpsprune.pruning.cutting import cut_copy, fresh_copy, silence
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.verify import verify
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths


def perceptron() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)
    ), torch.randn(16, 6)


def stream() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream(nn.LayerNorm), torch.randn(16, 4, 5)


def cut(model: nn.Module, batch: Tensor, settings: Prune = Prune(target=Macs(0.9)), **instead: Any) -> float:  # noqa: B008
    """Cut every group by half, and have it verified; ``instead`` takes the place of an argument."""
    groups = survey(model, batch).groups
    widths = [group.width // 2 for group in groups]
    cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
    silenced = fresh_copy(model)
    for group, each in zip(groups, cuts, strict=True):
        silence(silenced, group, each.removed)
    given = {
        "ticket": cut_copy(silenced, cuts),
        "silenced": silenced,
        "dense": model,
        "probe": [batch],
        "groups": groups,
        "widths": widths,
        "dense_count": count_macs(model, batch),
        "settings": settings,
    }
    return verify(**{**given, **instead})


@pytest.mark.parametrize("case", [perceptron, stream])
def test_a_ticket_equals_the_silenced_model_and_its_share_is_counted(case: Any) -> None:
    """Where units are normed over, the silenced model norms over those that stay, or it would not."""
    model, batch = case()
    assert 0.2 < cut(model, batch) < 0.6


def test_attention_that_was_opened_is_no_module_in_another_mode() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).eval()
    opened, names = open_attention(model)
    assert names
    assert cut(opened, torch.randn(8, 4, 5), dense=model) < 0.9


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Prune(target=Macs(0.1)), r"keeps 0\.\d{4} of the multiply-accumulates, prune.target is macs=0.1"),
        (Prune(target=Params(0.1)), r"keeps 0\.\d{4} of the parameters, prune.target is params=0.1"),
    ],
)
def test_a_ticket_above_its_target_is_refused(settings: Prune, words: str) -> None:
    with pytest.raises(PruneError, match=words):
        cut(*perceptron(), settings)


@pytest.mark.parametrize("target", [Params(0.9), Latency(0.1), Tolerance(0.1), Widths({"0": 1})])
def test_targets_that_are_no_count_are_met_by_the_planned_shapes_alone(target: Any) -> None:
    assert 0 < cut(*perceptron(), Prune(target=target)) < 1


def test_a_ticket_of_another_shape_than_planned_is_refused_and_the_tensor_is_named() -> None:
    with pytest.raises(PruneError, match=r"0.weight is \[6, 6\] in the ticket, \[7, 6\] was planned"):
        cut(*perceptron(), widths=[7, 5])


def test_a_ticket_that_says_something_else_than_the_silenced_model_is_refused() -> None:
    model, batch = perceptron()
    with pytest.raises(PruneError, match=r"output differs by .* of its spread from that of the model with"):
        cut(model, batch, silenced=model)


def test_a_ticket_with_a_number_that_is_not_finite_is_refused_with_what_would_do() -> None:
    model, batch = perceptron()
    groups = survey(model, batch).groups
    ticket = cut_copy(model, [GroupCut.of(group, range(group.width // 2)) for group in groups])
    with torch.no_grad():
        ticket[2].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(PruneError, match=r"2.weight is not finite after the fold; more probe items"):
        cut(model, batch, ticket=ticket)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda ticket: ticket[0].weight.requires_grad_(False),
            "0.weight lost its flags, number type or device",
        ),
        (lambda ticket: ticket[1].eval(), "a module is in another mode than it was"),
    ],
)
def test_a_ticket_whose_flags_or_modes_changed_is_refused(spoil: Any, words: str) -> None:
    model, batch = perceptron()
    groups = survey(model, batch).groups
    ticket = cut_copy(model, [GroupCut.of(group, range(group.width // 2)) for group in groups])
    spoil(ticket)
    with pytest.raises(PruneError, match=words):
        cut(model, batch, ticket=ticket)
