"""A loss over two directions in the space of weights, and how rugged it is there.

Shape letters: a, b places along the two directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from ripser import lower_star_img
from torch import Tensor


def total_persistence(heights_ab: Tensor) -> float:
    """Return Σ (death − birth) of the components of a grid's sublevel sets, that which never dies left out.

    0 of a single basin; of two wells the height of the lower rim above the shallower. It sees basins alone,
    neither their width nor their slope. Source: 0-dimensional persistence, Edelsbrunner and Harer 2010;
    computed by ripser's ``lower_star_img``, neighbours diagonal too.
    """
    bars = lower_star_img(heights_ab.double().cpu().numpy())
    lives = bars[:, 1] - bars[:, 0]
    return float(lives[np.isfinite(lives)].sum())


def filter_normalised(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return a random direction: in each row of a weight of two axes or more as long as the row, else zero.

    So a step of one is as far for a net with large weights as for one with small ones. Biases, gains and
    running moments stay.

    Source: Li et al. 2018 (arXiv 1712.09913), section 4.
    """
    direction = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.ndim < 2:
            direction[name] = torch.zeros_like(tensor)
            continue
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor)
        lengths = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (tensor, drawn)]
        shape = (-1, *[1] * (tensor.ndim - 1))
        direction[name] = drawn * (lengths[0] / lengths[1].clamp_min(1e-12)).view(shape)
    return direction
