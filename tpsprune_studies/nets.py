"""Nets of the studies, each for ``kind = "custom"`` of ``[task.model]``.

Shape letters: n items, k places of a command, l places, d width, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn


def plain_mlp(
    features: int,
    widths: Sequence[int],
    classes: int,
    *,
    norm: bool = True,
    dropout: float = 0.0,
    init_scale: float = 1.0,
) -> nn.Sequential:
    """Return linear layers with ReLU, each with a batch norm if asked and dropout behind it, and a head.

    ``init_scale`` multiplies torch's initial weights of every linear layer.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for wide in widths:
        layers += [nn.Linear(features, wide), *([nn.BatchNorm1d(wide)] if norm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        features = wide
    layers.append(nn.Linear(features, classes))
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(init_scale)
    return nn.Sequential(*layers)


_FORM: Final[dict[str, Any]] = {
    "dropout": 0.0,
    "activation": "gelu",
    "batch_first": True,
    "norm_first": True,
}


@final
class Embedding(nn.Module):
    """Tokens and their places, each with a learned vector, added up."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)

    def forward(self, tokens_nl: Tensor) -> Tensor:
        """Return vectors (n, l, d)."""
        places_l = torch.arange(tokens_nl.shape[1], device=tokens_nl.device)
        found: Tensor = self.tokens(tokens_nl) + self.places(places_l)
        return found


@final
class CausalTransformer(nn.Module):
    """Scores (n, l, c) at every place, which sees itself and those before it; norms before each part, GELU.

    Source: Xu 2026 (arXiv:2602.16967), its code; there 128 wide, two layers of four heads, MLPs 256 wide.
    """

    def __init__(
        self, vocabulary: int, length: int, classes: int, width: int, layers: int, heads: int, mlp_width: int
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, length, width)
        layer = nn.TransformerEncoderLayer(width, heads, mlp_width, **_FORM)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens_nl: Tensor) -> Tensor:
        """Return the scores of token ids (n, l)."""
        later_ll = _later(tokens_nl)
        stream_nld = self.layers(self.embedding(tokens_nl), mask=later_ll, is_causal=True)
        scores: Tensor = self.head(self.norm(stream_nld))
        return scores


@final
class Translator(nn.Module):
    """An encoder that reads a command, a decoder that scores what follows each place of what is written.

    Token 0 fills up and is not seen. Norms before each part, GELU.

    Source: Xu 2026 (arXiv:2602.16967), its code; there 256 wide, three layers each, MLPs 512 wide.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        lengths: Sequence[int],
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
    ) -> None:
        super().__init__()
        self.read = Embedding(vocabulary, lengths[0], width)
        self.write = Embedding(classes, lengths[1], width)
        layer = nn.TransformerEncoderLayer(width, heads, mlp_width, **_FORM)
        # As it would be made, but for nested tensors, which norms before each part rule out with a warning.
        encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.layers = nn.Transformer(width, heads, layers, layers, mlp_width, custom_encoder=encoder, **_FORM)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, command: Tensor, written: Tensor) -> Tensor:
        """Return scores (n, l, c) of a command (n, k) and what is written (n, l)."""
        filling_nk = command == 0
        stream_nld = self.layers(
            self.read(command),
            self.write(written),
            tgt_mask=_later(written),
            src_key_padding_mask=filling_nk,
            memory_key_padding_mask=filling_nk,
            tgt_is_causal=True,
        )
        scores: Tensor = self.head(self.norm(stream_nld))
        return scores


def _later(tokens_nl: Tensor) -> Tensor:
    """Return (l, l), true where the second place is later than the first and not to be seen."""
    length = tokens_nl.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=tokens_nl.device).triu(1)
