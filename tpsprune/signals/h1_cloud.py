"""Which points of a model its loops are counted on.

Shape letters: n points, d coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["cloud_of"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cloud_of(model: nn.Module, groups: Iterable[str]) -> tuple[str, Tensor] | None:
    """Return the name of the layer whose loops are counted, and its points ``points_nd``.

    The rows of the embedding with most rows, if there is one (where published work saw a ring form);
    else the incoming weights, one point per unit, of the prunable layer with the most units
    (``groups`` names them); else of whichever linear or convolutional layer has the most. The first
    of equals. ``None`` for a model without any of them.
    """
    modules = dict(model.named_modules())
    embeddings = {name: module for name, module in modules.items() if isinstance(module, nn.Embedding)}
    layers = {name: module for name, module in modules.items() if isinstance(module, LAYERS)}
    prunable = {name: layers[name] for name in groups if name in layers}
    for candidates in (embeddings, prunable, layers):
        if candidates:
            name = max(candidates, key=lambda each: len(candidates[each].weight))
            return name, candidates[name].weight.detach().flatten(1)
    return None
