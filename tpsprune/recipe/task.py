"""``[task]``: what is learned, from which data, by which model.

Each kind of data and of model is a table of its own, told apart by ``kind``. Relative paths start at
the current folder. ``kind = "custom"`` names a callable of the user's own by its dotted path
(``package.module:function``): **reading such a recipe's data or model runs that code.** So does a ``loss``
named in that way. Nothing else in a recipe can run code. Models that are brought from elsewhere, such a
callable among them, are in ``brought``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval, MinLen
from pydantic import Field

from tpsprune.recipe.bounds import STRICT, Count, Natural, OpenShare, Share, Text, Width
from tpsprune.recipe.brought import CustomModel, TimmModel, TorchvisionModel, TransformersModel
from tpsprune.recipe.task_data import TabularData, TextData

__all__ = [
    "CnnModel",
    "CustomData",
    "CustomModel",
    "Data",
    "DigitsData",
    "IdxData",
    "ImageFolderData",
    "MlpModel",
    "Model",
    "ModularData",
    "ResNetModel",
    "TabularData",
    "Task",
    "TextData",
    "TimmModel",
    "TorchvisionModel",
    "TransformerModel",
    "TransformersModel",
    "split_by",
]

Augment = Literal["none", "crop", "flip", "crop-flip"]
Operation = Literal["add", "subtract", "multiply", "a2+b2", "a2+ab+b2", "a3+ab"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsData:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey: always at hand."""

    kind: Literal["digits"] = "digits"
    validation_share: OpenShare = 0.15
    test_share: OpenShare = 0.25
    split_seed: Natural = 0
    augment: Augment = "none"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ModularData:
    """All pairs (a, b) of residues with the answer a∘b mod ``modulus``; pairs not trained on are held out.

    ``relabel`` renames tokens and answers at random, so that nothing cyclic is left to see.
    """

    kind: Literal["modular"] = "modular"
    operation: Operation = "add"
    modulus: Annotated[int, Interval(ge=3, le=1024)] = 59
    train_share: OpenShare = 0.5
    validation_share: OpenShare = 0.5
    """Share of the held-out pairs that decisions look at; the rest is the test."""
    relabel: bool = False
    split_seed: Natural = 0
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class IdxData:
    """A folder of IDX files (``train-images-idx3-ubyte[.gz]`` and its three sisters), as MNIST comes."""

    kind: Literal["idx"] = "idx"
    folder: Text
    validation_share: OpenShare = 0.1
    train_limit: Count | None = None
    """Train on this many images only, drawn with ``split_seed``."""
    split_seed: Natural = 0
    augment: Augment = "none"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolderData:
    """``train/CLASS/*.jpg|png`` and ``test/CLASS/…`` in a folder or a zip, decoded once to a uint8 cache."""

    kind: Literal["image-folder"] = "image-folder"
    path: Text
    size: Annotated[int, Interval(ge=8, le=4096)] = 32
    """Pixels of a side; images of another size are scaled and centre-cropped."""
    channels: Literal[1, 3] = 3
    cache: Text | None = None
    """Folder of the decoded cache; without it, ``$XDG_CACHE_HOME/tpsprune``."""
    validation_share: OpenShare = 0.1
    train_limit: Count | None = None
    split_seed: Natural = 0
    augment: Augment = "none"
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomData:
    """Your own callable; called with ``data_args``, it returns the mapping that the README describes."""

    kind: Literal["custom"] = "custom"
    factory: Text
    data_args: dict[str, Any] = field(default_factory=dict)
    validation_share: OpenShare = 0.1
    split_seed: Natural = 0
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnModel:
    """3×3 convolution, batch norm and ReLU per width; size halved after every ``pool_every`` of them."""

    kind: Literal["cnn"] = "cnn"
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (32, 64, 64)
    pool_every: Count = 1
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetModel:
    """The residual net for 32×32 images of He et al. 2015, section 4.2: depth 6n + 2."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[8, 20, 56] = 20
    width: Width = 16
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpModel:
    """Fully connected layers with ReLU; tokens are embedded first, ``embedding`` numbers each."""

    kind: Literal["mlp"] = "mlp"
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (256,)
    embedding: Width = 64
    gated: bool = False
    """Hidden layers of gated linear units, relu(G x) ⊙ (U x), in place of relu(W x)."""
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerModel:
    """No layer norm, ReLU, the answer at "=" after the tokens; one layer on two is Nanda et al. 2023."""

    kind: Literal["transformer"] = "transformer"
    width: Width = 128
    heads: Width = 4
    mlp_width: Width = 512
    layers: Annotated[int, Interval(ge=1, le=64)] = 1
    __pydantic_config__: ClassVar[Any] = STRICT


Data = Annotated[
    DigitsData | ModularData | IdxData | ImageFolderData | TextData | TabularData | CustomData,
    Field(discriminator="kind"),
]
Model = Annotated[
    CnnModel
    | ResNetModel
    | MlpModel
    | TransformerModel
    | CustomModel
    | TimmModel
    | TorchvisionModel
    | TransformersModel,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learned: ``[task.data]`` and ``[task.model]``."""

    data: Data
    model: Model
    loss: Text = "cross-entropy"
    """``cross-entropy``, ``mse``, ``bce``, ``next-token``, or a function of your own by its dotted path."""
    required_accuracy: Share = 0.0
    """Validation accuracy (or R² and the like) below which the summary says that nothing was learned."""
    __pydantic_config__: ClassVar[Any] = STRICT


def split_by(data: Data, seed: int) -> Data:
    """Return the data split by another seed; a text, which is split where it lies, as it is."""
    return data if isinstance(data, TextData) else replace(data, split_seed=seed)
