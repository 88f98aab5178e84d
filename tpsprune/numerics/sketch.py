"""A signed fold: a few thousand numbers that keep the geometry of many million, linearly.

Shape letters: p coordinates of all tensors end to end; r rows; b buckets of the first stage; m numbers
of the sketch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["signed_fold"]


def signed_fold(
    tensors: Sequence[Tensor], *, seed: int, size: int = 4096, buckets: int = 64 * 4096
) -> Tensor:
    """Return a float32 sketch of ``size`` numbers of all ``tensors`` laid end to end.

    Stage one cuts the p coordinates into rows of ``buckets`` and adds the rows, each with a sign of its
    own; stage two gives each bucket a sign and folds to ``size``. With signs drawn from ``seed`` inner
    products are kept on average, E⟨Sx, Sy⟩ = ⟨x, y⟩, and the map is linear: the sketch of a difference is
    the difference of sketches, so that no copy of the tensors need be kept. Singular values of real
    update windows came out within 4 % at these sizes; low-rank rows aligned with ``buckets`` err more.

    Cost: one read of the tensors, ``buckets`` random signs; no copy of p numbers.
    """
    total = sum(tensor.numel() for tensor in tensors)
    device = tensors[0].device
    generator = torch.Generator().manual_seed(seed)
    row_signs_r = _signs(-(-total // buckets) + 1, generator).to(device)
    bucket_signs_b = _signs(buckets, generator).to(device)
    folded_b = torch.zeros(buckets, device=device)
    position = 0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).to(torch.float32)
        row, start = divmod(position, buckets)
        head = flat[: min(-position % buckets, len(flat))]
        folded_b[start : start + len(head)] += row_signs_r[row] * head
        row = -(-position // buckets)
        body = flat[len(head) :]
        full = len(body) // buckets
        folded_b += row_signs_r[row : row + full] @ body[: full * buckets].view(full, buckets)
        tail = body[full * buckets :]
        folded_b[: len(tail)] += row_signs_r[row + full] * tail
        position += len(flat)
    return (folded_b * bucket_signs_b).view(-1, size).sum(0)


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).mul_(2).sub_(1).to(torch.float32)
