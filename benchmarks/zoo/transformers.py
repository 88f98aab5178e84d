"""Two small transformers: one for images, one for pairs of tokens.

Shape letters: n items, l positions, d width, h heads, k width of a head.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


class FusedAttention(nn.Module):
    """Self-attention with queries, keys and values from one layer, as in timm's vision transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, stream_nld: Tensor) -> Tensor:
        """Return what the heads found (n, l, d)."""
        items, length, _ = stream_nld.shape
        parts = self.qkv(stream_nld).reshape(items, length, 3, self.num_heads, self.head_dim)
        q_nhlk, k_nhlk, v_nhlk = parts.permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(q_nhlk, k_nhlk, v_nhlk)
        out: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return out


class SeparateAttention(nn.Module):
    """Causal self-attention whose queries, keys and values have a layer each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, stream_nld: Tensor) -> Tensor:
        """Return what the heads found (n, l, d)."""
        items, length, _ = stream_nld.shape
        q_nhlk, k_nhlk, v_nhlk = (
            layer(stream_nld).view(items, length, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(q_nhlk, k_nhlk, v_nhlk, is_causal=True)
        out: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and an MLP, each added to the stream, each after a layer norm where ``norm`` says so."""

    def __init__(self, attention: nn.Module, width: int, mlp_width: int, *, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = attention
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc1 = nn.Linear(width, mlp_width)
        self.act = nn.GELU() if norm else nn.ReLU()
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, stream_nld: Tensor) -> Tensor:
        """Return the stream (n, l, d) with what attention and the MLP add."""
        stream_nld = stream_nld + self.attention(self.norm1(stream_nld))
        after: Tensor = stream_nld + self.fc2(self.act(self.fc1(self.norm2(stream_nld))))
        return after


@final
class Vit(nn.Module):
    """A vision transformer: patches by a strided convolution, learned positions, mean over positions.

    Source: Dosovitskiy et al. 2020 (arXiv:2010.11929), with the mean in place of a class token.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (height // patch) * (breadth // patch), width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(FusedAttention(width, heads), width, 4 * width, norm=True) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Return scores (n, classes)."""
        stream_nld = self.patches(images_nchw).flatten(2).transpose(1, 2) + self.positions
        scores: Tensor = self.head(self.norm(self.blocks(stream_nld)).mean(1))
        return scores


@final
class TokenTransformer(nn.Module):
    """Two layers over ``a b =``, no norms, ReLU: Nanda et al. 2023 (arXiv:2301.05217) with one layer more."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Embedding(3, width)
        self.blocks = nn.Sequential(
            *(Block(SeparateAttention(width, heads), width, 4 * width, norm=False) for _ in range(depth))
        )
        self.unembed = nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            for table in (self.embedding, self.positions):
                table.weight.normal_(std=width**-0.5)

    def forward(self, tokens_n2: Tensor) -> Tensor:
        """Return scores (n, classes) read at "="."""
        equals_n1 = tokens_n2.new_full((tokens_n2.shape[0], 1), self.vocabulary)
        places_l = torch.arange(3, device=tokens_n2.device)
        stream_nld = self.embedding(torch.cat((tokens_n2, equals_n1), dim=1)) + self.positions(places_l)
        scores: Tensor = self.unembed(self.blocks(stream_nld)[:, -1])
        return scores
