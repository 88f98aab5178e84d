"""Gated units: a product of two readings, and triplets that are 1 where the product is that of characters."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tpsprune.models import Mlp, TokenMlp
from tpsprune.models.architectures import Gated
from tpsprune.records import TaskFacts
from tpsprune.tps.labels import Labels

P = 7
QUARTERS = (0.0, 0.25, 0.5, 0.75)
FACTS = TaskFacts(input_kind="tokens", input_shape=(2,), classes=P, vocabulary=P, cyclic=True)


def whole_table() -> Tensor:
    return torch.cartesian_prod(torch.arange(P), torch.arange(P))


def of_characters() -> TokenMlp:
    """A net made by hand that adds mod 7: with x = cos(ka + α) + cos(kb + β), 16 units for each frequency k.

    relu(x) · x at the phases (α, β) and (α + π, β + π) sums to x², which holds 2 cos(ka + α) cos(kb + β).
    Read out by cos(kc + α + β) and summed over all quarter turns of both phases, 4 cos(k(a + b − c)) is all
    that is left.
    """
    units = [
        (2 * torch.pi * k / P, 2 * torch.pi * turn, 2 * torch.pi * other)
        for k, turn, other in product((1, 2, 3), QUARTERS, QUARTERS)
    ]
    model = TokenMlp(P, 2, P, (len(units),), P, gated=True).double()
    ids = torch.arange(P).double()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(P))
        for half in (model.hidden[0].gate, model.hidden[0].up):
            half.bias.zero_()
            for unit, (speed, first, second) in enumerate(units):
                half.weight[unit, :P] = (speed * ids + first).cos()
                half.weight[unit, P:] = (speed * ids + second).cos()
        model.head.bias.zero_()
        for unit, (speed, first, second) in enumerate(units):
            model.head.weight[:, unit] = (speed * ids + first + second).cos()
    return model


def test_a_gated_layer_multiplies_its_open_gates_with_what_they_let_through() -> None:
    layer = Gated(2, 3)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        layer.gate.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        layer.up.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
        layer.up.bias.copy_(torch.tensor([0.0, 0.0, -5.0]))
    assert layer(torch.tensor([[2.0, 3.0]])).tolist() == [[6.0, 0.0, -12.0]]


def test_a_gated_mlp_has_as_many_parameters_as_its_formula_says() -> None:
    size = sum(parameter.numel() for parameter in Mlp(64, (32, 16), 10, gated=True).parameters())
    assert size == 2 * (65 * 32 + 33 * 16) + 17 * 10


def test_a_gated_mlps_answer_can_be_rebuilt_from_its_triplets() -> None:
    model = TokenMlp(P, 2, 5, (11,), 6, gated=True).double()
    tokens = torch.randint(0, P, (20, 2))
    u, v, o = model.unit_triplets(tokens)
    assert (u.shape, v.shape, o.shape) == ((P, 22), (P, 22), (22, 6))
    (gate_a, up_a), (up_b, gate_b) = u.chunk(2, dim=1), v.chunk(2, dim=1)
    layer = model.hidden[0]
    gates = gate_a[tokens[:, 0]] + gate_b[tokens[:, 1]] + layer.gate.bias
    ups = up_a[tokens[:, 0]] + up_b[tokens[:, 1]] + layer.up.bias
    rebuilt = (gates.relu() * ups) @ o[:11] + model.head.bias
    torch.testing.assert_close(rebuilt, model(tokens))
    assert torch.equal(o[:11], o[11:])


def test_what_both_tokens_do_together_in_a_linear_unit_is_the_sum_of_its_two_triplets() -> None:
    """Without the ReLU, in the mixed difference over both tokens all else falls away."""
    model = TokenMlp(P, 2, 5, (3,), 4, gated=True).double()
    tokens = whole_table()
    rows = model.embedding(tokens).flatten(1)
    products = (model.hidden[0].gate(rows) * model.hidden[0].up(rows)).view(P, P, 3)
    mixed = products - products[:1] - products[:, :1] + products[:1, :1]
    u, v, _ = model.unit_triplets(tokens)
    both = ((u - u[:1])[:, None] * (v - v[:1])[None]).unflatten(2, (2, 3)).sum(2)
    torch.testing.assert_close(mixed, both)


def test_a_gated_net_of_characters_adds_and_each_of_its_triplets_is_coherent() -> None:
    model, tokens = of_characters(), whole_table()
    labels = tokens.sum(1) % P
    assert torch.equal(model(tokens).argmax(1), labels)
    apart = 2 * torch.pi * (labels[:, None] - torch.arange(P)).double() / P
    torch.testing.assert_close(model(tokens), sum(4 * (k * apart).cos() for k in (1, 2, 3)))
    coherence = Labels(model, FACTS, tokens, labels).coherences()
    torch.testing.assert_close(coherence, torch.ones(2 * 48).double())


def test_triplets_of_characters_cancel_out_on_the_answers_of_another_task() -> None:
    """On a − b a triplet of phases (α, β) has cos 2β: 1, −1, 1 and −1 at the quarter turns."""
    model, tokens = of_characters(), whole_table()
    coherence = Labels(model, FACTS, tokens, (tokens[:, 0] - tokens[:, 1]) % P).coherences()
    torch.testing.assert_close(coherence, torch.tensor([1.0, -1.0]).double().repeat(48))


@pytest.mark.parametrize("factor", [0, 1])
def test_a_unit_whose_gate_sees_the_first_token_alone_has_one_triplet_that_is_nothing(factor: int) -> None:
    model, tokens = of_characters(), whole_table()
    with torch.no_grad():
        model.hidden[0].gate.weight[:, P:] = 0.0
    first, mirrored = model.unit_triplets(tokens)[factor].chunk(2, dim=1)
    assert bool(first.any())
    assert bool(mirrored.any()) == (factor == 0)
