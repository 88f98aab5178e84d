"""A model's double for the trace: modules the tracing library does not know are played by some that it knows.

Only the coupling of units is read from the double, never a value: a stand-in must have the shapes of what it
stands for, at the same name, and mix units where that does.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tpsprune.pruning.layers import CUTTABLE, is_transposed_linear
from tpsprune.pruning.norms import is_vector_norm
from tpsprune.pruning.surgery import fresh_copy

__all__ = ["bare_parameters", "double"]

WHOLE = (*CUTTABLE, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def double(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` to be traced, in evaluation mode, every gradient on but of bare parameters.

    RMS norms and somebody's own norms become layer norms, Hugging Face's Conv1D becomes linear. A frozen
    layer would be invisible to the trace, and a bare parameter on the stream (positions, a class token,
    a scale) puts it off: which of these belong to a group, the gradient says (``bare.on_the_stream``).

    Raises:
        PruneError: the model cannot be copied.
    """
    traced = fresh_copy(model).eval()
    bare = {id(parameter) for parameter in bare_parameters(traced).values()}
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point() and id(parameter) not in bare)
    for name, module in list(traced.named_modules()):
        if name and (stand_in := _stand_in(module)) is not None:
            traced.set_submodule(name, stand_in.eval())
    return traced


def bare_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that no layer known here holds, by name."""
    held = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, WHOLE) or is_transposed_linear(module) or is_vector_norm(module)
        for parameter in module.parameters()
    }
    return {name: each for name, each in model.named_parameters() if id(each) not in held}


def _stand_in(module: nn.Module) -> nn.Module | None:
    like = next(module.parameters(recurse=False), torch.empty(0))
    if is_transposed_linear(module):
        inputs, outputs = cast(Tensor, module.weight).shape
        return nn.Linear(inputs, outputs, bias=getattr(module, "bias", None) is not None).to(like)
    if isinstance(module, nn.RMSNorm):
        return nn.LayerNorm(module.normalized_shape).to(like)
    return nn.LayerNorm(len(like)).to(like) if is_vector_norm(module) else None
