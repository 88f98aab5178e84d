"""Which library a model comes from, told without importing that library."""

from __future__ import annotations

from torch import nn


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether a model is one of the transformers library's, and so has a configuration.

    It does not see one that lies inside a module of somebody's own.
    """
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for base in type(model).__mro__
    )
