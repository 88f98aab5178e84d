"""Dimension of a point cloud from distances between neighbours: of what is curved too.

Shape letters: n points, d coordinates, k neighbours.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tpsprune.numerics.geometry import scaled_distances

NEIGHBOURS: Final = 20
LEAST_POINTS: Final = 2 * NEIGHBOURS
"""Distinct points below which neighbours are the cloud itself, and a dimension says nothing."""
DISCARDED: Final = 0.1
"""The share of points with the largest r₂ / r₁ that ``two_nn`` leaves out."""
SAME: Final = 1e-6
"""Two points closer than this share of the mean distance are one: what is nearer is rounding."""


def neighbour_distances(points_nd: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return, for each distinct point, the distances to its nearest others, ``distances_nk``, nearest first.

    Of points in one place the first is kept: an r₁ of rounding would make any cloud look flat. Fewer
    neighbours come back where there are fewer points. Invariant to shift, rotation and scale (distances are
    over the mean distance of all points). Points that are not finite give NaN. Cost: n²·d multiply-adds, and
    a few n × n matrices in double precision: 8 MB each at 1,024 points.
    """
    if not bool(points_nd.isfinite().all()):
        return torch.full((len(points_nd), neighbours), torch.nan)
    # On the processor, where double precision always is: in single, neighbours are mostly rounding.
    distances_nn = scaled_distances(points_nd.cpu())
    is_first_n = ~(distances_nn <= SAME).tril(-1).any(1)
    distances_nn = distances_nn[is_first_n][:, is_first_n].fill_diagonal_(torch.inf)
    found = min(neighbours, len(distances_nn) - 1)
    return distances_nn.topk(found, largest=False, sorted=True).values


def levina_bickel(distances_nk: Tensor) -> float:
    """Return the maximum-likelihood dimension: 1 / mean_i (1 / d_i), d_i = (k − 1) / Σ_{j<k} ln(r_k / r_j).

    It takes the points near each point for uniform on a flat piece: a k-dimensional piece gives about k,
    whatever the number of coordinates. Below the truth where that is large beside ln n (edges are near
    everywhere): 4.5 of a ball in R⁵ and 8.2 of one in R¹⁰ at 1,000 points. It does not see linear directions:
    a curve through all axes is 1. Infinite where all neighbours are equally far. Cost: n·k.

    Source: Levina and Bickel 2004; the mean of inverses MacKay and Ghahramani 2005.
    """
    inverse_n = (distances_nk[:, -1:] / distances_nk[:, :-1]).log().mean(1)
    return float(inverse_n.mean().reciprocal())


def two_nn(distances_nk: Tensor) -> float:
    """Return the slope through the origin of −ln(1 − F) over ln(r₂ / r₁), F the share of points up to there.

    F_i = i / n of the sorted ratios; the tenth with the largest is left out, whose F is the least sure. It
    asks only that the density be even as far as the second neighbour, so it bends with the data
    sooner than ``levina_bickel``, and scatters more. Cost: a sort of n.

    Source: Facco et al. 2017 (Scientific Reports 7, 12140).
    """
    points = len(distances_nk)
    kept = int((1 - DISCARDED) * points)
    ratio_n = (distances_nk[:, 1] / distances_nk[:, 0]).log().sort().values[:kept]
    share_n = torch.arange(1, kept + 1, device=ratio_n.device, dtype=ratio_n.dtype) / points
    return float(-(ratio_n * torch.log1p(-share_n)).sum() / ratio_n.square().sum())
