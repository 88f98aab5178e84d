"""Forms of attention, as published, in plain PyTorch: for models that are trained, pruned and compared here.

Shape letters: i items, h heads, s query positions (the last of the l), l positions (j and k where a score has
two), d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attend(query_ihsd: Tensor, key_ihld: Tensor, value_ihld: Tensor, *, causal: bool) -> Tensor:
    """Return softmax(QKᵀ / √d) V; ``causal`` hides later positions where s = l."""
    return functional.scaled_dot_product_attention(query_ihsd, key_ihld, value_ihld, is_causal=causal)


def attend_forgetting(query_ihsd: Tensor, key_ihld: Tensor, value_ihld: Tensor, gate_ihl: Tensor) -> Tensor:
    """Return softmax(QKᵀ / √d + D) V with D_sl = Σ_{l < t ≤ s} ln σ(gate_t), and −∞ where l > s.

    Each head forgets at a rate that it reads from the tokens; positions need no embedding. With gates at +∞
    it is causal softmax attention; with a constant gate f a decay by ln f a step.

    Source: Lin et al. 2025, "Forgetting Transformer" (arXiv 2503.02130), equations 4 to 6.
    """
    sums_ihl = functional.logsigmoid(gate_ihl).cumsum(-1)
    first = key_ihld.shape[2] - query_ihsd.shape[2]
    decay_ihsl = sums_ihl[:, :, first:, None] - sums_ihl[:, :, None]
    scores_ihsl = query_ihsd @ key_ihld.mT / query_ihsd.shape[-1] ** 0.5 + decay_ihsl
    mixed: Tensor = (
        scores_ihsl.masked_fill(_is_later(query_ihsd, key_ihld), -torch.inf).softmax(-1) @ value_ihld
    )
    return mixed


def attend_in_pairs(
    query_ihsd: Tensor,
    key_ihjd: Tensor,
    key_ihkd: Tensor,
    value_ihjd: Tensor,
    value_ihkd: Tensor,
    windows: tuple[int, int] | None = None,
) -> Tensor:
    """Return Σ_jk P_sjk (v_j ∘ v'_k), P the softmax over all (j, k) of Σ_d q_s k_j k'_k / √d.

    2-simplicial attention: a query looks at pairs of positions, none of them later than itself; with
    ``windows`` (w₁, w₂) j is among the last w₁ and k among the last w₂. With k' and v' of ones and a window
    w₂ of one it is causal softmax attention.

    Source: Roy et al. 2025, "Fast and Simplex" (arXiv 2507.02754), equations 5 to 7; its rotary form is not
    built.

    Cost: s·l² scores a head, of which none is left out: for short sequences.
    """
    pairs_ihjkd = key_ihjd[:, :, :, None] * key_ihkd[:, :, None]
    pairs = pairs_ihjkd.shape[2:4]
    scores_ihsjk = (query_ihsd @ pairs_ihjkd.flatten(2, 3).mT).reshape(*query_ihsd.shape[:3], *pairs)
    hidden_sj, hidden_sk = (_is_later(query_ihsd, each) for each in (key_ihjd, key_ihkd))
    if windows is not None:
        hidden_sj, hidden_sk = (
            hidden | _is_before(query_ihsd, key_ihjd, window)
            for hidden, window in zip((hidden_sj, hidden_sk), windows, strict=True)
        )
    hidden_sjk = hidden_sj[:, :, None] | hidden_sk[:, None]
    scores_ihsjk = (scores_ihsjk / query_ihsd.shape[-1] ** 0.5).masked_fill(hidden_sjk, -torch.inf)
    values_ihjkd = value_ihjd[:, :, :, None] * value_ihkd[:, :, None]
    mixed: Tensor = scores_ihsjk.flatten(3).softmax(-1) @ values_ihjkd.flatten(2, 3)
    return mixed


def _distance(query_ihsd: Tensor, key_ihld: Tensor) -> Tensor:
    """Return by how many positions each key lies before each query."""
    queries, keys = query_ihsd.shape[2], key_ihld.shape[2]
    places = torch.arange(keys, device=key_ihld.device)
    return places[keys - queries :, None] - places


def _is_later(query_ihsd: Tensor, key_ihld: Tensor) -> Tensor:
    return _distance(query_ihsd, key_ihld) < 0


def _is_before(query_ihsd: Tensor, key_ihld: Tensor, window: int) -> Tensor:
    return _distance(query_ihsd, key_ihld) >= window
