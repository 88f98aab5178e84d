"""``[task]``: what is learned, from which data, by which model.

Each kind of data and of model is a separate table, selected by ``kind``. Relative paths start at
the current folder. ``kind = "custom"`` names a callable of the user's own by its dotted path
(``package.module:function``): **reading such a recipe's data or model runs that code.** So does a ``loss``
named in that way. Nothing else in a recipe can run code.

Models from elsewhere (such a callable, or what a library knows by name) may begin with ``weights``: a
safetensors file, a state dict that ``torch.save`` wrote, or ``package:NAME/path/inside.pth`` for a file that
an installed package carries. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Interval, MaxLen, MinLen
from pydantic import Field

from tpsprune.recipe.bounds import Count, Natural, OpenShare, Share, Text, Width, section

Labels = Literal["classes", "numbers"]
Widths = Annotated[tuple[Width, ...], MinLen(1), MaxLen(1000)]


@section
class TextData:
    """A text file, or a folder of ``.txt``, as bytes: windows of ``length``, labels the bytes that follow.

    Training, validation and test are the beginning, the middle and the end of the text; no window lies
    across a border.
    """

    kind: Literal["text"] = "text"
    path: Text | None = None
    source: Literal["python-topics"] | None = None
    """``python-topics``: the help topics that come with Python, half a megabyte of English."""
    length: Annotated[int, Interval(ge=1, le=2**16)] = 64
    max_bytes: Count | None = None
    """The most bytes that the text may have; 256 MiB unless set."""
    validation_share: OpenShare = 0.1
    test_share: OpenShare = 0.1


@section
class IteratedData:
    """Sequences that random LSTMs make of noise, passed from one to the next: to pre-train on without data.

    Labels are the words that follow.
    """

    kind: Literal["iterated"] = "iterated"
    vocabulary: Annotated[int, Interval(ge=2, le=2**16)] = 256
    length: Annotated[int, Interval(ge=1, le=2**16)] = 64
    items: Annotated[int, Interval(ge=10, le=2**22)] = 16_384
    validation_share: OpenShare = 0.1
    test_share: OpenShare = 0.1
    split_seed: Natural = 0


@section
class TabularData:
    """A CSV file with a header, or a table that comes with scikit-learn; a vector an item.

    Columns of numbers are standardised by the training split, others are one-hot: a column for each category.
    """

    kind: Literal["tabular"] = "tabular"
    path: Text | None = None
    source: Literal["breast-cancer", "wine", "diabetes"] | None = None
    target: Text | None = None
    """The column that is predicted from the others."""
    labels: Literal["auto", "classes", "numbers"] = "auto"
    """What the target is; ``auto``: numbers with loss ``mse``, classes with ``cross-entropy``."""
    categorical: tuple[Text, ...] = ()
    """Columns that are categories though their cells read as numbers."""
    leave_out: tuple[Text, ...] = ()
    """Columns that are not to be seen."""
    max_bytes: Count | None = None
    """The most bytes that the file may have; 64 MiB unless set. Its table may have 16 times as many."""
    validation_share: OpenShare = 0.15
    test_share: OpenShare = 0.25
    split_seed: Natural = 0


def labels_wanted(data: TabularData, loss: str) -> Labels:
    """Return what the target is to be read as under a loss.

    >>> labels_wanted(TabularData(source="diabetes"), "mse")
    'numbers'
    """
    if data.labels != "auto":
        return data.labels
    return "numbers" if loss == "mse" else "classes"


Match: TypeAlias = Literal["name", "order"]
"""How tensors of a file meet those of a model: by their names, or one after the other, shapes compared."""


@section
class CustomModel:
    """Your own callable; it is called with ``model_args`` and returns a ``torch.nn.Module``."""

    kind: Literal["custom"] = "custom"
    factory: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"


@section
class TimmModel:
    """A model of timm by its name; classes, channels and image size follow the data unless set."""

    kind: Literal["timm"] = "timm"
    name: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"


@section
class TorchvisionModel:
    """A classifier of torchvision by its name, for images of three channels; classes follow the data."""

    kind: Literal["torchvision"] = "torchvision"
    name: Text
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"


@section
class TransformersModel:
    """A model class of transformers, built from ``config``; vocabulary, labels and images follow the data."""

    kind: Literal["transformers"] = "transformers"
    architecture: Text
    """The class, as ``GPT2LMHeadModel``; its own configuration class takes ``config``."""
    config: dict[str, Any] = field(default_factory=dict)
    weights: Text | None = None
    weights_match: Match = "name"


FOREIGN_MODELS = (CustomModel, TimmModel, TorchvisionModel, TransformersModel)
"""Models from elsewhere, which may begin with weights of a file."""


Augment = Literal["none", "crop", "flip", "crop-flip"]
Operation = Literal["add", "subtract", "multiply", "a2+b2", "a2+ab+b2", "a3+ab"]


@section
class DigitsData:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey: always at hand."""

    kind: Literal["digits"] = "digits"
    validation_share: OpenShare = 0.15
    test_share: OpenShare = 0.25
    split_seed: Natural = 0
    augment: Augment = "none"


@section
class ModularData:
    """All pairs (a, b) of residues with the label a∘b mod ``modulus``; pairs not trained on are held out.

    ``relabel`` renames tokens and labels at random, so that no cyclic order is left.
    """

    kind: Literal["modular"] = "modular"
    operation: Operation = "add"
    modulus: Annotated[int, Interval(ge=3, le=1024)] = 59
    train_share: OpenShare = 0.5
    validation_share: OpenShare = 0.5
    """Share of the held-out pairs that decisions rest on; the remainder is the test."""
    relabel: bool = False
    split_seed: Natural = 0


@section
class IdxData:
    """A folder of IDX files (``train-images-idx3-ubyte[.gz]`` and its three sisters), as MNIST comes."""

    kind: Literal["idx"] = "idx"
    folder: Text
    validation_share: OpenShare = 0.1
    train_limit: Count | None = None
    """Train on this many images only, drawn with ``split_seed``."""
    max_bytes: Count | None = None
    """The most bytes that one file may have, unpacked; 1 GiB unless set."""
    split_seed: Natural = 0
    augment: Augment = "none"


@section
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


@section
class CustomData:
    """Your own callable; called with ``data_args``, it returns the mapping that the README describes."""

    kind: Literal["custom"] = "custom"
    factory: Text
    data_args: dict[str, Any] = field(default_factory=dict)
    validation_share: OpenShare = 0.1
    split_seed: Natural = 0


@section
class CnnModel:
    """3×3 convolution, batch norm and ReLU per width; size halved after every ``pool_every`` of them."""

    kind: Literal["cnn"] = "cnn"
    widths: Widths = (32, 64, 64)
    pool_every: Count = 1


@section
class ResNetModel:
    """The residual net for 32×32 images of He et al. 2015, section 4.2: depth 6n + 2."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[8, 20, 56] = 20
    width: Width = 16


@section
class MlpModel:
    """Fully connected layers with ReLU; tokens are embedded first, ``embedding`` numbers each."""

    kind: Literal["mlp"] = "mlp"
    widths: Widths = (256,)
    embedding: Width = 64
    gated: bool = False
    """Hidden layers of gated linear units, relu(G x) ⊙ (U x), in place of relu(W x)."""


AttentionForm = Literal["softmax", "forgetting", "simplicial"]


@section
class TransformerModel:
    """No layer norm, ReLU, the prediction at "=" after the tokens; one layer on two is Nanda et al. 2023."""

    kind: Literal["transformer"] = "transformer"
    width: Width = 128
    heads: Width = 4
    mlp_width: Width = 512
    layers: Annotated[int, Interval(ge=1, le=64)] = 1
    attention: AttentionForm = "softmax"
    """``forgetting`` decays by a gate that each head reads from the tokens, in place of positions;
    ``simplicial`` looks at pairs of positions, by second keys and values."""


Data = Annotated[
    DigitsData | ModularData | IdxData | ImageFolderData | TextData | IteratedData | TabularData | CustomData,
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


@section
class Task:
    """What is learned: ``[task.data]`` and ``[task.model]``."""

    data: Data
    model: Model
    loss: Text = "cross-entropy"
    """``cross-entropy``, ``mse``, ``bce``, ``next-token``, ``reconstruction`` (of images: the model is an
    autoencoder), or a function of your own by its dotted path."""
    required_accuracy: Share = 0.0
    """Validation accuracy (or R² and the like) below which the summary reports that nothing was learned."""


def split_by(data: Data, seed: int) -> Data:
    """Return the data split by another seed; a text, which is split where it lies, as it is."""
    return data if isinstance(data, TextData) else replace(data, split_seed=seed)
