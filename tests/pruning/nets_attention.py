"""Small attention networks of every layout in use, and what tests need of their heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.nets_structure import Conv1D
from tpsprune.models.attention_forms import attend_forgetting, attend_in_pairs
from tpsprune.numerics.moments import input_moments
from tpsprune.pruning.attention import propose_head_groups
from tpsprune.pruning.groups import Group, Prunability, PrunedGroup, Scores
from tpsprune.pruning.head_width import ScoreMoments, second_moment
from tpsprune.pruning.opening import open_layers
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import copy_model, hold_scale, mask_units, pruned_copy
from tpsprune.pruning.trial import joint_fault, outputs_of, randomised_copy

WIDTH, HEADS, LENGTH = 12, 3, 5


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Return the mixed values, the heads side by side again."""
    mixed = functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def by_head(x: Tensor, heads: int, width: int = -1) -> Tensor:
    return x.unflatten(-1, (heads, width)).transpose(1, 2)


def shared(x: Tensor, times: int, *, tiled: bool = False) -> Tensor:
    """Return keys or values of as many heads as there are of queries."""
    return x.repeat(1, times, 1, 1) if tiled else x.repeat_interleave(times, 1)


class Separate(nn.Module):
    """Separate projections, as in most libraries; ``num_heads`` is all it remembers."""

    def __init__(self, bias: bool = True, value_width: int = 4) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.to_q, self.to_k = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(2))
        self.to_v = nn.Linear(WIDTH, HEADS * value_width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(HEADS * value_width, WIDTH), nn.Dropout(0.1))

    def forward(self, x_btd: Tensor) -> Tensor:
        layers = (self.to_q, self.to_k, self.to_v)
        return self.to_out(attend(*(by_head(layer(x_btd), self.num_heads) for layer in layers)))


class FusedByPart(nn.Module):
    """timm's ViT: one layer, all queries before all keys; every size is remembered; norms over a head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, WIDTH // HEADS, WIDTH
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        items, length, _ = x_btd.shape
        qkv = self.qkv(x_btd).reshape(items, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (self.q_norm(q) * self.scale @ self.k_norm(k).transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(items, length, self.attn_dim))


class FusedByHead(nn.Module):
    """BLOOM and GPT-NeoX: q, k and v of one head side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.hidden_size = HEADS, WIDTH // HEADS, WIDTH
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        fused = self.query_key_value(x_btd)
        q, k, v = fused.reshape(*fused.shape[:2], self.num_heads, 3, self.head_dim).unbind(-2)
        mixed = attend(*(each.transpose(1, 2) for each in (q, k, v)))
        return self.dense(mixed.reshape(*fused.shape[:2], self.hidden_size))


class Gpt2(nn.Module):
    """Hugging Face's GPT-2: transposed weights, a split size, the width of a head in the view."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.layer_idx = WIDTH, HEADS, 0
        self.head_dim, self.split_size = WIDTH // HEADS, WIDTH
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        parts = self.c_attn(x_btd).split(self.split_size, dim=2)
        return self.c_proj(attend(*(by_head(each, -1, self.head_dim) for each in parts)))


class Rotary(nn.Module):
    """Llama: query heads share keys and values, rotary positions, no number of heads anywhere."""

    def __init__(self, queries: int = 6, keys: int = 3, tiled: bool = False) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups, self.tiled = 4, queries // keys, tiled
        self.q_proj = nn.Linear(WIDTH, queries * 4, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, keys * 4, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(queries * 4, WIDTH, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (by_head(layer(x_btd), -1, self.head_dim) for layer in layers)
        angles = torch.outer(torch.arange(x_btd.shape[1]), torch.tensor([1.0, 0.1])).repeat(1, 2)
        q, k = (
            each * angles.cos() + torch.cat((-each[..., 2:], each[..., :2]), -1) * angles.sin()
            for each in (q, k)
        )
        k, v = (shared(each, self.num_key_value_groups, tiled=self.tiled) for each in (k, v))
        return self.o_proj(attend(q, k, v))


class FusedGrouped(nn.Module):
    """One fused layer in which four query heads share two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = 4, 2, 3
        self.wqkv = nn.Linear(WIDTH, (4 + 2 * 2) * 3)
        self.wo = nn.Linear(12, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        sizes = [heads * self.head_size for heads in (self.n_head, self.n_kv_head, self.n_kv_head)]
        q, k, v = (by_head(each, -1, self.head_size) for each in self.wqkv(x_btd).split(sizes, -1))
        return self.wo(attend(q, *(shared(each, self.n_head // self.n_kv_head) for each in (k, v))))


class OneKey(nn.Module):
    """Multi-query attention: all heads read the same keys and values, fused in a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * WIDTH // HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        k, v = (each[:, None].expand(-1, self.heads, -1, -1) for each in self.kv(x_btd).chunk(2, -1))
        return self.out(attend(by_head(self.query(x_btd), self.heads), k, v))


class Cross(nn.Module):
    """Queries of the stream attend to a part of it through fused keys and values; a table per head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)
        self.position_bias = nn.Parameter(torch.zeros(LENGTH, HEADS))

    def forward(self, x_btd: Tensor) -> Tensor:
        source = x_btd.roll(1, 1) * 2
        q = by_head(self.to_q(x_btd), self.num_heads)
        k, v = self.to_kv(source).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / 2 + self.position_bias.T[:, None, : k.shape[2]]
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class BertSelf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = HEADS, WIDTH // HEADS, WIDTH
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x_btd: Tensor) -> Tensor:
        sizes = (self.num_attention_heads, self.attention_head_size)
        mixed = attend(*(by_head(layer(x_btd), *sizes) for layer in (self.query, self.key, self.value)))
        return mixed.reshape(*x_btd.shape[:2], self.all_head_size)


class Bert(nn.Module):
    """BERT: the output projection lies in a module next to that of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.self = BertSelf()
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.output["dense"](self.self(x_btd))


class Packed(nn.Module):
    """torch's own module, closed until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.attn(x_btd, x_btd, x_btd, need_weights=False)[0]


class Talking(nn.Module):
    """Heads that are mixed with one another before the output projection: none of them can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = self.qkv(x_btd).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    """An embedding, a residual block around an attention, an MLP, a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = attention
        self.fc1, self.fc2 = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btd = self.embed(x_btc)
        x_btd = x_btd + self.attention(self.norm(x_btd))
        x_btd = x_btd + self.fc2(functional.gelu(self.fc1(x_btd)))
        return self.head(x_btd.mean(1))


class Forgetting(nn.Module):
    """A gate that gives each head a number at each place, after the Forgetting Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fgate_proj = nn.Linear(WIDTH, HEADS)

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = (by_head(each(x_btd), self.num_heads) for each in (self.q_proj, self.k_proj, self.v_proj))
        mixed = attend_forgetting(q, k, v, self.fgate_proj(x_btd).mT)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class InPairs(nn.Module):
    """Second keys and values, after 2-simplicial attention, and a gate for the output of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.wq, self.wk, self.wk2, self.wv, self.wv2, self.wo = (nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.opened = nn.Linear(WIDTH, HEADS)

    def forward(self, x_btd: Tensor) -> Tensor:
        layers = (self.wq, self.wk, self.wk2, self.wv, self.wv2)
        mixed = attend_in_pairs(*(by_head(layer(x_btd), self.num_heads) for layer in layers))
        mixed = mixed * self.opened(x_btd).sigmoid().mT[..., None]
        return self.wo(mixed.transpose(1, 2).flatten(2))


class GatedBesideRouter(nn.Module):
    """A gate for each head, and a layer of as many outputs that mixes what all heads gave."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate = nn.Linear(WIDTH, HEADS)
        self.router = nn.Linear(WIDTH, HEADS)
        self.experts = nn.Linear(HEADS, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = (by_head(each(x_btd), self.num_heads) for each in (self.q_proj, self.k_proj, self.v_proj))
        mixed = functional.scaled_dot_product_attention(q, k, v) * self.gate(x_btd).sigmoid().mT[..., None]
        heard = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return heard + self.experts(self.router(x_btd).softmax(-1))


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "separate": Separate,
    "separate without biases": lambda: Separate(bias=False),
    "values of another width": lambda: Separate(value_width=5),
    "fused by part": FusedByPart,
    "fused by head": FusedByHead,
    "gpt-2": Gpt2,
    "grouped queries, rotary": Rotary,
    "grouped queries, tiled": lambda: Rotary(tiled=True),
    "grouped queries, fused": FusedGrouped,
    "multi-query": OneKey,
    "cross, fused keys and values": Cross,
    "bert": Bert,
    "forgetting": Forgetting,
    "second keys and values, gated heads": InPairs,
    "gated beside a router": GatedBesideRouter,
}
"""Attentions whose heads can be pruned, by what is particular about them."""


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(ATTENTIONS[name]())


def sequences(items: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(items, LENGTH, 4, generator=torch.Generator().manual_seed(seed))


def proved(model: nn.Module, batch: Any) -> dict[str, Group]:
    """Return by name the first candidate of each attention that stands its trial."""
    subject = randomised_copy(model)
    whole = outputs_of(subject, batch)
    found: dict[str, Group] = {}
    for group in propose_head_groups(model):
        if group.name not in found and not joint_fault(subject, (group,), batch, whole):
            found[group.name] = group
    return found


def the_heads(model: nn.Module, batch: Any) -> Group:
    (group,) = proved(model, batch).values()
    return group


class Attend(nn.Module):
    """Attention of every kind: heads that share keys, keys read from elsewhere, a scale of one's own."""

    def __init__(
        self, queries: int = 3, keys: int = 3, *, tiled: bool = False, elsewhere: int = 0, fixed: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.tiled = queries, keys, tiled
        self.scale = 0.5 if fixed else None
        self.source = nn.Linear(WIDTH, elsewhere) if elsewhere else nn.Identity()
        self.q_proj = nn.Linear(WIDTH, queries * 4)
        self.k_proj = nn.Linear(elsewhere or WIDTH, keys * 4)
        self.v_proj = nn.Linear(elsewhere or WIDTH, keys * 4)
        self.o_proj = nn.Linear(queries * 4, WIDTH)

    def forward(self, x_btd: Tensor) -> Tensor:
        source = self.source(x_btd)
        q = self.normed(by_head(self.q_proj(x_btd), self.num_heads))
        k, v = (by_head(layer(source), self.num_kv_heads) for layer in (self.k_proj, self.v_proj))
        times = self.num_heads // self.num_kv_heads
        k, v = (shared(each, times, tiled=self.tiled) for each in (k, v))
        return self.o_proj(attend(q, k, v, self.scale))

    def normed(self, q: Tensor) -> Tensor:
        return q


class Remembers(nn.Module):
    """The width of a head and of all heads are numbers: of queries and keys, or of values."""

    def __init__(self, *, own: bool = True, inner: bool = True) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.qk_proj_dim, self.scale = 3, 4, 12, 0.5
        self.own, self.inner = own, inner
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x_btd: Tensor) -> Tensor:
        places = x_btd.shape[:2]
        by_width, by_count = (-1, self.head_dim), (self.n_heads, -1)
        q, k = (
            layer(x_btd)
            .reshape(*places, self.qk_proj_dim if self.inner else -1)
            .unflatten(-1, by_width if self.own else by_count)
            .transpose(1, 2)
            for layer in (self.q, self.k)
        )
        v = self.v(x_btd).unflatten(-1, by_count if self.own else by_width).transpose(1, 2)
        mixed = (q @ k.mT * self.scale).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).reshape(*places, -1 if self.inner else self.qk_proj_dim))


class Normed(Attend):
    """A norm over each head of queries, as many large models have it."""

    def normed(self, q: Tensor) -> Tensor:
        return functional.rms_norm(q, q.shape[-1:])


NARROWED: dict[str, Callable[[], nn.Module]] = {
    "opened": Packed,
    "separate": Separate,
    "separate without biases": lambda: Separate(bias=False),
    "values of another width": lambda: Separate(value_width=5),
    "a scale of its own": lambda: Attend(fixed=True),
    "one head": lambda: Attend(1, 1),
    "grouped queries": lambda: Attend(6, 3),
    "grouped queries, tiled": lambda: Attend(6, 3, tiled=True),
    "multi-query": lambda: Attend(3, 1),
    "keys from elsewhere": lambda: Attend(elsewhere=7),
    "remembers widths": Remembers,
}
SCALE_STAYS = {"opened", "a scale of its own", "remembers widths"}


def narrowed(name: str) -> nn.Module:
    torch.manual_seed(0)
    return open_layers(Net(NARROWED[name]()).eval())[0]


def found_in(model: nn.Module) -> Prunability:
    return find_groups(model, sequences(2), head_width=True)


def the_width(model: nn.Module) -> Group:
    (group,) = (each for each in found_in(model).groups if each.kind == "head-width")
    return group


@cache
def width_of(name: str) -> Group:
    return the_width(narrowed(name))


def of(group: Group) -> Scores:
    assert group.scores is not None
    return group.scores


def products(model: nn.Module, group: Group) -> list[Tensor]:
    """Return [W_q b_q]ᵀ [W_k b_k] of each query head, written out."""

    def by_head(name: str, heads: int) -> Tensor:
        layer = model.get_submodule(name)
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        return torch.cat([layer.weight, bias[:, None]], 1).detach().double().unflatten(0, (heads, -1))

    scores = of(group)
    a_hde, b_gde = by_head(scores.query, scores.queries), by_head(scores.key, scores.keys)
    times = scores.queries // scores.keys
    b_hde = b_gde.repeat(times, 1, 1) if scores.tiled else b_gde.repeat_interleave(times, 0)
    return [a.T @ b for a, b in zip(a_hde, b_hde, strict=True)]


def moments_of(model: nn.Module, group: Group, batch: Tensor) -> ScoreMoments:
    scores = of(group)
    widths = {name: model.get_submodule(name).in_features for name in (scores.query, scores.key)}
    found = input_moments(model, [batch], widths)
    query, key = (second_moment(found[name].mean_n, found[name].covariance_nn) for name in widths)
    return ScoreMoments(query, key)


def ticket_of(model: nn.Module, group: Group, kept: int, *more: PrunedGroup) -> nn.Module:
    ticket = pruned_copy(model, (PrunedGroup.of(group, range(kept)), *more))
    hold_scale(ticket, group, kept)
    return ticket


def masked(model: nn.Module, group: Group, kept: int) -> nn.Module:
    masked_model = copy_model(model)
    mask_units(masked_model, group, range(kept, group.width))
    return masked_model
