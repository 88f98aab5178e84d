"""A ticket is handed out only when it is what it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.helpers import pruned_to
from tests.pruning.nets_structure import Stream
from tpsprune.errors import PruneError
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import find_groups
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.surgery import copy_model, mask_units, pruned_copy
from tpsprune.pruning.verification import verify
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths


def perceptron() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)
    ), torch.randn(16, 6)


def stream() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream(nn.LayerNorm), torch.randn(16, 4, 5)


def verified(model: nn.Module, batch: Tensor, settings: Prune | None = None, **instead: Any) -> float:
