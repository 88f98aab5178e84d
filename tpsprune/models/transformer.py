"""A transformer of one layer for pairs of tokens, ``a b =``.

Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability"
(arXiv:2301.05217), section 3 and the code that goes with it.
Shapes: i pairs, d width, h heads, m MLP units, c classes, a first token, b second token.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Transformer"]

LENGTH = 3


@final
class Transformer(nn.Module):
    """Embedding, learned positions, causal attention without biases, an MLP with ReLU, no layer norm.

    The answer is read at "=", the last position, which sees all three; as there is one layer, nothing
    is computed at the other positions but keys and values. Weights are normal with standard deviation
    width^(−1/2), (vocabulary + 1)^(−1/2) for the unembedding, biases zero. Parameters, with vocabulary p:
    (p + 4)·d + 4d² + 2dm + m + d + dc.
    """

    def __init__(self, vocabulary: int, width: int, heads: int, mlp_width: int, classes: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.num_heads = heads
        self.embedding = nn.Embedding(vocabulary + 1, width)
        # A table rather than a bare parameter: dependency graphs follow it when the width is cut.
        self.positions = nn.Embedding(LENGTH, width)
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

    def forward(self, tokens_i2: Tensor) -> Tensor:
        """Return scores (i, c) of token ids (i, 2)."""
        stream_id = self._after_attention(tokens_i2)
        hidden_im = functional.relu(self.mlp_in(stream_id))
        scores: Tensor = self.unembed(stream_id + self.mlp_out(hidden_im))
        return scores

    @property
    def has_unit_triplets(self) -> bool:
        """Whether ``unit_triplets`` is defined: always."""
        return True

    def unit_triplets(self, tokens_i2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u (a, m), v (b, m) and o (m, c): main effects of tokens on MLP units, and units on classes.

        With h (i, m) the pre-activations of the MLP at the last position, u[a] is the mean of h over the
        pairs whose first token is a, less the mean over all pairs; v[b] likewise for the second; a token
        that does not occur gets 0. o = (W_unembed · W_mlp_out)ᵀ, what a unit adds to each score directly.
        All are differentiable. What h holds of the two tokens together is not seen.
        """
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

    def _after_attention(self, tokens_i2: Tensor) -> Tensor:
        """Return the residual stream (i, d) at the last position, attention added."""
        equals_i1 = tokens_i2.new_full((tokens_i2.shape[0], 1), self.vocabulary)
        places_l = torch.arange(LENGTH, device=tokens_i2.device)
        stream_ild = self.embedding(torch.cat((tokens_i2, equals_i1), dim=1)) + self.positions(places_l)
        last_i1d = stream_ild[:, -1:]
        q, k, v = (
            # The width of a head is left open, so that it may be cut.
            values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for values in (self.q(last_i1d), self.k(stream_ild), self.v(stream_ild))
        )
        seen = functional.scaled_dot_product_attention(q, k, v)
        after_i1d: Tensor = last_i1d + self.o(seen.transpose(1, 2).flatten(2))
        return after_i1d.squeeze(1)
