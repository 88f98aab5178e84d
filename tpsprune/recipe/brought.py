"""``[task.model]`` brought from elsewhere: your own callable, or a model that a library knows by name.

Each may begin with ``weights``: a safetensors file, a state dict that ``torch.save`` wrote, or
``package:NAME/path/inside.pth`` for a file that an installed package carries. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from tpsprune.recipe.bounds import STRICT, Text

__all__ = ["BROUGHT", "Brought", "CustomModel", "Match", "TimmModel", "TorchvisionModel", "TransformersModel"]

Match: TypeAlias = Literal["name", "order"]
"""How tensors of a file meet those of a model: by their names, or one after the other, shapes compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomModel:
    """Your own callable; it is called with ``model_args`` and returns a ``torch.nn.Module``."""

    kind: Literal["custom"] = "custom"
    factory: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmModel:
    """A model of timm by its name; classes, channels and image size follow the data where nobody says."""

    kind: Literal["timm"] = "timm"
    name: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionModel:
    """A classifier of torchvision by its name, for images of three channels; classes follow the data."""

    kind: Literal["torchvision"] = "torchvision"
    name: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersModel:
    """A model class of transformers, built from ``config``; vocabulary, labels and images follow the data."""

    kind: Literal["transformers"] = "transformers"
    architecture: Text
    """The class, as ``GPT2LMHeadModel``; its own configuration class takes ``config``."""
    config: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"
    __pydantic_config__: ClassVar[Any] = STRICT


Brought: TypeAlias = CustomModel | TimmModel | TorchvisionModel | TransformersModel
BROUGHT = (CustomModel, TimmModel, TorchvisionModel, TransformersModel)
