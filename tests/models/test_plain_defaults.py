"""What was added to a model leaves the plain one as it was, bit for bit: tickets and figures stand on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.models import Mlp, TokenMlp, Transformer


def drawn(*layers: tuple[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict(dict(layers))


def one_layer(p: int, d: int, heads: int, m: int, c: int) -> tuple[dict[str, Tensor], object]:
    net = drawn(
        ("embedding", nn.Embedding(p + 1, d)),
        ("positions", nn.Embedding(3, d)),
        *((name, nn.Linear(d, d, bias=False)) for name in "qkvo"),
        ("mlp_in", nn.Linear(d, m)),
        ("mlp_out", nn.Linear(m, d)),
        ("unembed", nn.Linear(d, c, bias=False)),
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=(p + 1 if name.startswith("unembed") else d) ** -0.5)

    def answer(tokens: Tensor) -> Tensor:
        equals = tokens.new_full((len(tokens), 1), p)
        stream = net["embedding"](torch.cat((tokens, equals), 1)) + net["positions"](torch.arange(3))
        last = stream[:, -1:]
        q, k, v = (
            values.unflatten(-1, (heads, -1)).transpose(1, 2)
            for values in (net["q"](last), net["k"](stream), net["v"](stream))
        )
        seen = functional.scaled_dot_product_attention(q, k, v)
        after = (last + net["o"](seen.transpose(1, 2).flatten(2))).squeeze(1)
        return net["unembed"](after + net["mlp_out"](functional.relu(net["mlp_in"](after))))

    return net.state_dict(), answer


def test_a_transformer_of_one_layer_has_the_names_weights_and_answers_that_it_always_had() -> None:
    torch.manual_seed(3)
    expected, answer = one_layer(7, 12, 3, 20, 5)
    torch.manual_seed(3)
    model = Transformer(7, 12, 3, 20, 5)
    found = model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    tokens = torch.randint(0, 7, (9, 2))
    assert torch.equal(model(tokens), answer(tokens))


@pytest.mark.parametrize("widths", [(11,), (11, 6)])
def test_an_mlp_without_gates_has_the_names_and_weights_that_it_always_had(widths: tuple[int, ...]) -> None:
    def layers(features: int) -> list[nn.Module]:
        sizes = (features, *widths)
        hidden = [nn.Linear(sizes[rank], sizes[rank + 1]) for rank in range(len(widths))]
        return [*hidden, nn.Linear(widths[-1], 4)]

    names = [f"hidden.{2 * rank}.{part}" for rank in range(len(widths)) for part in ("weight", "bias")]
    names += ["head.weight", "head.bias"]
    torch.manual_seed(3)
    expected = [tensor for layer in layers(10) for tensor in layer.parameters()]
    torch.manual_seed(3)
    found = Mlp(10, widths, 4).state_dict()
    assert list(found) == names
    assert all(torch.equal(*pair) for pair in zip(found.values(), expected, strict=True))

    torch.manual_seed(3)
    table = nn.Embedding(7, 5).weight.detach().normal_(std=5**-0.5)
    expected = [table, *(tensor for layer in layers(10) for tensor in layer.parameters())]
    torch.manual_seed(3)
    found = TokenMlp(7, 2, 5, widths, 4).state_dict()
    assert list(found) == ["embedding.weight", *names]
    assert all(torch.equal(*pair) for pair in zip(found.values(), expected, strict=True))
