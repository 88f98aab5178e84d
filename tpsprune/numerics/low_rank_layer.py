"""A linear layer or convolution of low rank, as two: into fewer channels, and out of them.

This file needs torch alone: it goes along with an exported model of transformers.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

SIZES = ("in_features", "out_features", "in_channels", "out_channels", "groups")
OF_LAYERS = (*SIZES, "kernel_size", "stride", "padding", "dilation", "padding_mode")


class LowRank(nn.Sequential):
    """Two layers in the place of one: ``down`` into few channels, ``up`` out of them, with the bias.

    To other code it has the bias and the numbers of the layer whose place it takes, and its weight: the
    product of two, computed each time it is read.
    """

    @property
    def weight(self) -> torch.Tensor:
        """Return the product of the two weights: outputs first, as a linear layer or convolution has it."""
        down, up = self.down.weight, self.up.weight
        product: torch.Tensor = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        return product

    @property
    def bias(self) -> Any:
        """Return the bias, if there is one."""
        return self.up.bias

    def __getattr__(self, name: str) -> Any:
        """Return a part, or a number of the layer: of its outputs the second's, all else the first's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in OF_LAYERS:
                raise
            return getattr(self.up if name.startswith("out_") else self.down, name)


def low_rank_like(layer: Any, rank: int) -> LowRank:
    """Return two layers without values for one: linear, a convolution, or the Conv1D of transformers.

    The bias is the layer's own; mode, device, number type and flags are too.
    """
    weight = layer.weight
    options = {"device": weight.device, "dtype": weight.dtype}
    make: Any = skip_init
    if weight.ndim == 2:
        inputs, outputs = weight.shape if type(layer).__name__ == "Conv1D" else reversed(weight.shape)
        down = make(nn.Linear, inputs, rank, bias=False, **options)
        up = make(nn.Linear, rank, outputs, bias=False, **options)
    else:
        places = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        kind, ones = type(layer), tuple(1 for _ in layer.kernel_size)
        down = make(kind, layer.in_channels, rank, layer.kernel_size, bias=False, **places, **options)
        up = make(kind, rank, layer.out_channels, ones, bias=False, **options)
    up.bias = layer.bias
    pair = LowRank()
    pair.add_module("down", down)
    pair.add_module("up", up)
    for part in (down, up):
        part.weight.requires_grad_(weight.requires_grad)
    return pair.train(layer.training)
