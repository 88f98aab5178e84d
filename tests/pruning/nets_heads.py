"""Attention whose heads are narrowed, and what its tests ask of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.nets_attention import WIDTH, Net, Packed, Separate, sequences
from tpsprune.numerics.moments import input_moments
from tpsprune.pruning.groups import Group, Prunability, PrunedGroup, Scores
from tpsprune.pruning.head_width import ScoreMoments, second_moment
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.prunability import find_groups
from tpsprune.pruning.surgery import copy_model, hold_scale, mask_units, pruned_copy


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
        q = self.q_proj(x_btd).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = (
            layer(source).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
            for layer in (self.k_proj, self.v_proj)
        )
        times = self.num_heads // self.num_kv_heads
        k, v = (
            each.repeat(1, times, 1, 1) if self.tiled else each.repeat_interleave(times, 1) for each in (k, v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


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

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(4)

    def forward(self, x_btd: Tensor) -> Tensor:
        q, k, v = (
            layer(x_btd).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(functional.rms_norm(q, q.shape[-1:]), k, v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


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


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return open_attention(Net(NARROWED[name]()).eval())[0]


def found_in(model: nn.Module) -> Prunability:
    return find_groups(model, sequences(2), head_width=True)


def the_width(model: nn.Module) -> Group:
    (group,) = (each for each in found_in(model).groups if each.kind == "head-width")
    return group


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


def silenced(model: nn.Module, group: Group, kept: int) -> nn.Module:
    deaf = copy_model(model)
    mask_units(deaf, group, range(kept, group.width))
    return deaf
