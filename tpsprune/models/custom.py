"""A model from a callable of the user's own."""

from __future__ import annotations

from torch import nn

from tpsprune.errors import ModelError
from tpsprune.recipe.dotted import call
from tpsprune.recipe.task import CustomModel

__all__ = ["custom_model"]

PLACE = "task.model.factory"


def custom_model(model: CustomModel) -> nn.Module:
    """Call the user's factory with ``model_args`` and return its module.

    Raises:
        ModelError: it returned something else, or a module without parameters.
        RecipeError: the factory does not import, or raised.
    """
    made = call(model.factory, model.model_args, PLACE)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{PLACE}: '{model.factory}' returned {type(made).__name__}; a torch.nn.Module would do"
        )
    if next(made.parameters(), None) is None:
        raise ModelError(
            f"{PLACE}: '{model.factory}' returned a {type(made).__name__} without parameters; "
            "a module with something to train would do"
        )
    return made
