"""Points of many coordinates: distances, landmarks, a cloud without structure, and a short sketch.

Shape letters: n points, d coordinates, m = n (n − 1) / 2 pairs; of the sketch p coordinates of all tensors
end to end, r rows, b buckets of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpsprune.numerics.forward import widened
from tpsprune.numerics.peers import whole


def scaled_distances(points_nd: Tensor) -> Tensor:
    """Return the Euclidean distances ``distances_nn`` between points over their mean: 1 on average.

    Exactly symmetric with a zero diagonal; invariant to shift, rotation, reflection and scale. Taken from the
    centred Gram matrix in double precision: the float32 formula is off by a quarter for a cloud far from the
    origin. A cloud of one place gives zeros. Cost: n²·d multiply-adds.
    """
    centred_nd = widened(points_nd)
    centred_nd = centred_nd - centred_nd.mean(0)
    gram_nn = centred_nd @ centred_nd.T
    square_n = gram_nn.diagonal()
    # Sums of two are the same either way round, so this is symmetric to the last bit.
    squares_nn = (square_n[:, None] + square_n[None, :]) - (gram_nn + gram_nn.T)
    distances_nn = squares_nn.clamp_min(0.0).fill_diagonal_(0.0).sqrt()
    pairs = max(1, len(points_nd) * (len(points_nd) - 1))
    mean = distances_nn.sum() / pairs
    return distances_nn / torch.where(mean == 0, 1.0, mean)


def condensed(distances_nn: Tensor) -> Tensor:
    """Return the strict upper triangle row by row, ``distances_m``, in float32."""
    points = len(distances_nn)
    rows, columns = torch.triu_indices(points, points, offset=1, device=distances_nn.device)
    return distances_nn[rows, columns].to(torch.float32)


def maxmin_landmarks(points_nd: Tensor, count: int, start: int) -> Tensor:
    """Return the indices of ``count`` landmarks: from ``start``, always the point farthest from all so far.

    With as many landmarks as points or more, all points in order. The landmarks leave no point
    farther than twice the best possible radius (Gonzalez 1985); big loops survive, while noise is
    spread out. Cost: count · n · d multiply-adds, no n × n matrix.
    """
    if count >= len(points_nd):
        return torch.arange(len(points_nd), device=points_nd.device)
    centred_nd = widened(points_nd)
    centred_nd = centred_nd - centred_nd.mean(0)
    square_n = centred_nd.square().sum(1)
    chosen = torch.tensor(start, device=points_nd.device)
    landmarks = [chosen]
    nearest_n = torch.full_like(square_n, torch.inf)
    for _ in range(count - 1):
        distance_n = square_n - 2 * (centred_nd @ centred_nd[chosen]) + square_n[chosen]
        nearest_n = torch.minimum(nearest_n, distance_n)
        # A point taken is never taken again, not even by rounding among duplicates.
        nearest_n[chosen] = -torch.inf
        chosen = nearest_n.argmax()
        landmarks.append(chosen)
    return torch.stack(landmarks)


def column_permuted(points_nd: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cloud with each coordinate shuffled over the points by itself.

    Every coordinate keeps its values; their dependence on one another is lost. ``generator``
    lives on the CPU, so that one seed gives one cloud on every device.
    """
    order_nd = torch.rand(points_nd.shape, generator=generator).argsort(0)
    return points_nd.gather(0, order_nd.to(points_nd.device))


def signed_fold(
    tensors: Sequence[Tensor], *, seed: int, size: int = 4096, buckets: int = 64 * 4096
) -> Tensor:
    """Return a float32 sketch of ``size`` numbers of all ``tensors`` laid end to end.

    Stage one splits the p coordinates into rows of ``buckets`` and adds the rows, each with a sign of its
    own; stage two gives each bucket a sign and folds to ``size``. With signs sampled from ``seed`` inner
    products are kept on average, E⟨Sx, Sy⟩ = ⟨x, y⟩, and the map is linear: the sketch of a difference is the
    difference of sketches, so that no copy of the tensors need be kept. Singular values of real update
    windows came out within 4 % at these sizes; low-rank rows aligned with ``buckets`` err more.

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
        flat = whole(tensor.detach()).reshape(-1).to(torch.float32)
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
