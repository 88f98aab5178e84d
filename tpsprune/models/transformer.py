"""A transformer for a few tokens and "=", after which stands the answer: ``a b =``.

Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability"
(arXiv:2301.05217), section 3 and the code that goes with it: one layer, two tokens.
Shapes: i items, l positions, s positions that ask, d width, h heads, m MLP units, c classes, a first token, b
second token.
"""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.errors import ModelError

__all__ = ["Transformer"]


@final
class Transformer(nn.Module):
    """Embedding, learned positions, causal attention without biases, MLPs with ReLU, no layer norm.

    The answer is read at "=", the last position, which sees all tokens. The last layer computes nothing at
    the other positions but keys and values; those before it, in ``earlier``, compute every position. Weights
    are normal with standard deviation width^(−1/2), (vocabulary + 1)^(−1/2) for the unembedding, biases
    zero. Parameters, with vocabulary p, l tokens and n layers:
    (p + l + 2)·d + n·(4d² + 2dm + m + d) + dc.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        mlp_width: int,
        classes: int,
        *,
        length: int = 2,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.length = length
        self.num_heads = heads
        self.embedding = nn.Embedding(vocabulary + 1, width)
        # A table rather than a bare parameter: dependency graphs follow it when the width is cut.
        self.positions = nn.Embedding(length + 1, width)
        self.earlier = nn.ModuleList(_Layer(width, heads, mlp_width) for _ in range(layers - 1))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.unembed = nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    fan = vocabulary + 1 if name.startswith("unembed") else width
                    parameter.normal_(std=fan**-0.5)

    def forward(self, tokens_il: Tensor) -> Tensor:
        """Return scores (i, c) of token ids (i, length)."""
        stream_id = self._after_attention(tokens_il)
        hidden_im = functional.relu(self.mlp_in(stream_id))
        scores: Tensor = self.unembed(stream_id + self.mlp_out(hidden_im))
        return scores

    @property
    def unit_layers(self) -> tuple[str, ...]:
        """The layer that TPS variant ``moments`` couples: the last MLP's, where the answer is read."""
        return ("mlp_in",)

    @property
    def has_unit_triplets(self) -> bool:
        """Whether ``unit_triplets`` is defined: for two tokens, with any number of layers."""
        return self.length == 2

    @property
    def triplets_from_weights(self) -> bool:
        """Whether triplets are all that joins two tokens: never, attention multiplies them already."""
        return False

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u (a, m), v (b, m) and o (m, c): main effects of tokens on MLP units, and units on classes.

        The units are those of the last layer. With h (i, m) their pre-activations at the last position,
        u[a] is the mean of h over the pairs whose first token is a, less the mean over all pairs; v[b]
        likewise for the second; a token that does not occur gets 0. o = (W_unembed · W_mlp_out)ᵀ, what a
        unit adds to each score directly. All are differentiable. What h holds of the two tokens together
        is not seen.

        Raises:
            ModelError: ``has_unit_triplets`` does not hold.
        """
        if not self.has_unit_triplets:
            raise ModelError(
                f"task.model: unit triplets of a 'transformer' on {self.length} tokens are not defined; "
                "two tokens would do"
            )
        pre_activation_im = self.mlp_in(self._after_attention(tokens_i2))
        grand_mean_m = pre_activation_im.mean(0)
        first_am, second_bm = (
            self._main_effect(pre_activation_im - grand_mean_m, token_i) for token_i in tokens_i2.unbind(1)
        )
        return first_am, second_bm, (self.unembed.weight @ self.mlp_out.weight).T

    def _main_effect(self, deviation_im: Tensor, token_i: Tensor) -> Tensor:
        sums_am = deviation_im.new_zeros(self.vocabulary, deviation_im.shape[1])
        counts_a = token_i.bincount(minlength=self.vocabulary).clamp(min=1)
        return sums_am.index_add(0, token_i, deviation_im) / counts_a[:, None]

    def _after_attention(self, tokens_il: Tensor) -> Tensor:
        """Return the residual stream (i, d) at the last position, the last layer's attention added."""
        equals_i1 = tokens_il.new_full((tokens_il.shape[0], 1), self.vocabulary)
        places_l = torch.arange(self.length + 1, device=tokens_il.device)
        stream_ild = self.embedding(torch.cat((tokens_il, equals_i1), dim=1)) + self.positions(places_l)
        for layer in self.earlier:
            stream_ild = layer(stream_ild)
        last_i1d = stream_ild[:, -1:]
        after_i1d: Tensor = last_i1d + _attention(self, last_i1d, stream_ild, causal=False)
        return after_i1d.squeeze(1)


@final
class _Layer(nn.Module):
    """One layer at every position (i, l, d), each of which sees itself and those before it."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)

    def forward(self, stream_ild: Tensor) -> Tensor:
        stream_ild = stream_ild + _attention(self, stream_ild, stream_ild, causal=True)
        after_ild: Tensor = stream_ild + self.mlp_out(functional.relu(self.mlp_in(stream_ild)))
        return after_ild


class _Projections(Protocol):
    num_heads: int
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear


def _attention(layer: _Projections, asking_isd: Tensor, stream_ild: Tensor, *, causal: bool) -> Tensor:
    """Return what the asking positions (i, s, d) hear of the stream's."""
    q, k, v = (
        # The width of a head is left open, so that it may be cut.
        values.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for values in (layer.q(asking_isd), layer.k(stream_ild), layer.v(stream_ild))
    )
    seen = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    heard_isd: Tensor = layer.o(seen.transpose(1, 2).flatten(2))
    return heard_isd
