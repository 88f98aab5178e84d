"""The models that recipes name: what couples their units is found, and a cut to half of them is proved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tpsprune.data import load
from tpsprune.models import Mlp, TokenMlp, Transformer
from tpsprune.numerics.forward import count_macs
from tpsprune.pruning import GroupCut, survey
from tpsprune.pruning.cutting import cut_copy
from tpsprune.pruning.reach import cost_model
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.task import BracketsData

PAIRS = torch.cartesian_prod(torch.arange(11), torch.arange(11))
BRACKETS = load(BracketsData(length=9, items=100, held_out=20)).train.inputs
VECTORS = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))

MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "gated": (
        lambda: Mlp(12, (32, 16), 3, gated=True),
        VECTORS,
        {"hidden.0.gate": 32, "hidden.1.gate": 16},
    ),
    "gated on tokens": (
        lambda: TokenMlp(11, 2, 8, (32,), 11, gated=True),
        PAIRS,
        {"embedding": 8, "hidden.0.gate": 32},
    ),
    "two layers": (
        lambda: Transformer(11, 16, 4, 32, 11, layers=2),
        PAIRS,
        {"embedding": 16, "earlier.0.q": 4, "earlier.0.mlp_in": 32, "q": 4, "mlp_in": 32},
    ),
    "mlp on brackets": (
        lambda: TokenMlp(2, 9, 4, (32,), 5),
        BRACKETS,
        {"embedding": 4, "hidden.0": 32},
    ),
    "one layer on brackets": (
        lambda: Transformer(2, 16, 4, 32, 5, length=9),
        BRACKETS,
        {"embedding": 16, "q": 4, "mlp_in": 32},
    ),
    "two layers on brackets": (
        lambda: Transformer(2, 16, 4, 32, 5, length=9, layers=2),
        BRACKETS,
        {"embedding": 16, "earlier.0.q": 4, "earlier.0.mlp_in": 32, "q": 4, "mlp_in": 32},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_named_model_is_cut_to_half_of_its_operations_and_verified(name: str) -> None:
    make, batch, _ = MODELS[name]
    torch.manual_seed(0)
    extraction = tpsprune.extract(make(), batch, target=tpsprune.Macs(0.5))
    assert 0.4 < extraction.macs_share <= 0.5
    assert extraction.ticket(batch).shape == make()(batch).shape


@pytest.mark.parametrize("name", MODELS)
def test_its_groups_are_found_and_cost_what_is_counted_without_a_unit_of_each(name: str) -> None:
    """One attention lies inside the other's module here, and each takes its own products along."""
    make, batch, expected = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    groups = survey(model, batch).groups
    assert {group.name: group.width for group in groups} == expected
    costs = cost_model(model, groups, count_macs(model, batch[:2]), Prune())
    for rank in range(len(groups)):
        widths = [group.width - (place == rank) for place, group in enumerate(groups)]
        cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
        assert costs.at(widths) == pytest.approx(count_macs(cut_copy(model, cuts), batch[:2]).total)


def test_an_attention_left_alone_inside_anothers_module_costs_what_it_did() -> None:
    model = Transformer(11, 16, 4, 32, 11, layers=2).eval()
    groups = survey(model, PAIRS, ["earlier.*"]).groups
    assert [group.name for group in groups] == ["q", "mlp_in"]
    costs = cost_model(model, groups, count_macs(model, PAIRS[:2]), Prune())
    cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, (2, 32), strict=True)]
    assert costs.at((2, 32)) == pytest.approx(count_macs(cut_copy(model, cuts), PAIRS[:2]).total)


def test_a_gate_goes_with_the_half_that_it_multiplies() -> None:
    model = TokenMlp(11, 2, 8, (32,), 11, gated=True)
    ticket = tpsprune.extract(model, PAIRS, target=tpsprune.Widths({"hidden.0.gate": 10})).ticket
    layer = ticket.hidden[0]
    assert (layer.gate.out_features, layer.up.out_features, ticket.head.in_features) == (10, 10, 10)
    assert ticket.unit_triplets(PAIRS)[2].shape == (20, 11)
