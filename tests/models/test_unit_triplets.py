from __future__ import annotations

import pytest
import torch

from tpsprune.errors import ModelError
from tpsprune.models import TokenMlp, Transformer


def test_what_two_tokens_add_to_an_mlps_unit_is_its_pre_activation() -> None:
    model = TokenMlp(7, 2, 5, (11,), 6).double()
    tokens = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    seen: list[torch.Tensor] = []
    handle = model.hidden[0].register_forward_hook(lambda _, __, output: seen.append(output))
    model(tokens)
    handle.remove()
    u, v, o = model.unit_triplets(tokens)
    assert (u.shape, v.shape, o.shape) == ((7, 11), (7, 11), (11, 6))
    torch.testing.assert_close(u[tokens[:, 0]] + v[tokens[:, 1]] + model.hidden[0].bias, seen[0])


def test_an_mlps_answer_can_be_rebuilt_from_its_triplets() -> None:
    model = TokenMlp(7, 2, 5, (11,), 6).double()
    tokens = torch.randint(0, 7, (20, 2))
    u, v, o = model.unit_triplets(tokens)
    units = (u[tokens[:, 0]] + v[tokens[:, 1]] + model.hidden[0].bias).relu()
    torch.testing.assert_close(units @ o + model.head.bias, model(tokens))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformers_main_effects_are_group_means_less_the_grand_mean(layers: int) -> None:
    model = Transformer(6, 8, 2, 10, 6, layers=layers).double()
    tokens = torch.randint(0, 5, (30, 2))  # token 5 never occurs
    seen: list[torch.Tensor] = []
    handle = model.mlp_in.register_forward_hook(lambda _, __, output: seen.append(output))
    model(tokens)
    handle.remove()
    for axis, effect in enumerate(model.unit_triplets(tokens)[:2]):
        for token in range(6):
            rows = [seen[0][i] for i in range(30) if int(tokens[i, axis]) == token]
            expected = torch.stack(rows).mean(0) - seen[0].mean(0) if rows else torch.zeros(10).double()
            torch.testing.assert_close(effect[token], expected)


def test_over_all_pairs_a_transformers_main_effects_sum_to_zero() -> None:
    model = Transformer(6, 8, 2, 10, 6).double()
    u, v, _ = model.unit_triplets(torch.cartesian_prod(torch.arange(6), torch.arange(6)))
    torch.testing.assert_close(u.sum(0), torch.zeros(10).double())
    torch.testing.assert_close(v.sum(0), torch.zeros(10).double())


def test_a_transformers_outgoing_weights_are_what_a_unit_adds_to_each_score() -> None:
    model = Transformer(6, 8, 2, 10, 4).double()
    tokens = torch.randint(0, 6, (3, 2))
    outgoing = model.unit_triplets(tokens)[2]
    # A bias on every pre-activation large enough that ReLU is the identity: adding 1 to unit 2 adds o[2].
    model.mlp_in.bias.data += 1000
    before = model(tokens)
    model.mlp_in.bias.data[2] += 1
    torch.testing.assert_close(model(tokens) - before, outgoing[2].expand(3, 4))


@pytest.mark.parametrize(
    "model",
    [
        TokenMlp(5, 2, 4, (8,), 5),
        TokenMlp(5, 2, 4, (8,), 5, gated=True),
        Transformer(5, 8, 2, 8, 5),
        Transformer(5, 8, 2, 8, 5, layers=2),
    ],
    ids=["mlp", "gated", "transformer", "two-layers"],
)
def test_triplets_carry_gradients_to_the_weights(model: TokenMlp | Transformer) -> None:
    assert model.has_unit_triplets
    u, v, o = model.unit_triplets(torch.tensor([[0, 1], [2, 3], [2, 1]]))
    last = model.head if isinstance(model, TokenMlp) else model.unembed
    for part, weight in ((u, model.embedding.weight), (v, model.embedding.weight), (o, last.weight)):
        (gradient,) = torch.autograd.grad(part.square().sum(), [weight], retain_graph=True)
        assert gradient.any()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TokenMlp(5, 2, 4, (8, 8), 5), "2 hidden layers on 2 tokens are not defined; one hidden layer"),
        (TokenMlp(5, 3, 4, (8,), 5), "1 hidden layers on 3 tokens are not defined; one hidden layer"),
        (TokenMlp(5, 2, 4, (8, 8), 5, gated=True), "2 hidden layers on 2 tokens are not defined; one hidden"),
        (Transformer(5, 8, 2, 8, 5, length=3), "a 'transformer' on 3 tokens are not defined; two tokens"),
    ],
    ids=["two-layers", "three-tokens", "two-gated-layers", "three-tokens-transformer"],
)
def test_where_triplets_are_not_defined_the_model_says_so(model: TokenMlp | Transformer, words: str) -> None:
    assert not model.has_unit_triplets
    with pytest.raises(ModelError, match=words):
        model.unit_triplets(torch.zeros(1, 2, dtype=torch.int64))
