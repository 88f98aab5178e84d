"""Nets of the studies, each for ``kind = "custom"`` of ``[task.model]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


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
