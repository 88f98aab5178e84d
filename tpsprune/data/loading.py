"""``[task.data]`` to a data set."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Final, assert_never

from tpsprune.data.custom import custom_dataset
from tpsprune.data.dataset import Dataset
from tpsprune.data.image_folder import image_folder_dataset
from tpsprune.data.images import digits_dataset, idx_dataset
from tpsprune.data.iterated import iterated_dataset
from tpsprune.data.modular import modular_dataset
from tpsprune.data.tabular import tabular_dataset
from tpsprune.data.text import text_dataset
from tpsprune.recipe.task import (
    CustomData,
    Data,
    DigitsData,
    IdxData,
    ImageFolderData,
    IteratedData,
    ModularData,
    TabularData,
    TextData,
)

RECONSTRUCTION: Final = "reconstruction"


def load(data: Data, loss: str | None = None) -> Dataset:
    """Return the data set that a recipe names, on the CPU; the same one for equal settings.

    ``loss`` is the recipe's ``task.loss``, by which labels are read; the facts name it. Without it, the one
    that goes with the data: next tokens of a text or of iterated
    words, else classes.

    Raises:
        DataError: data is missing, empty, cut short or does not fit together.
        RecipeError: a custom factory does not import, or raised.
    """
    dataset = _loaded(data, loss or "cross-entropy")
    if loss == RECONSTRUCTION:
        dataset = _with_inputs_for_labels(dataset)
    return dataset if loss is None else replace(dataset, facts=replace(dataset.facts, loss=loss))


def _with_inputs_for_labels(dataset: Dataset) -> Dataset:
    """Return the data with the labels of an autoencoder: each item as the model sees it, flattened.

    Cost: every image in memory once more, in float32.
    """
    train, validation, test = (
        replace(split, labels=dataset.prepare(split.inputs).flatten(1).float())
        for split in (dataset.train, dataset.validation, dataset.test)
    )
    facts = replace(dataset.facts, classes=prod(dataset.facts.input_shape))
    return replace(dataset, facts=facts, train=train, validation=validation, test=test)


def _loaded(data: Data, loss: str) -> Dataset:
    match data:
        case DigitsData():
            return digits_dataset(data)
        case ModularData():
            return modular_dataset(data)
        case IdxData():
            return idx_dataset(data)
        case ImageFolderData():
            return image_folder_dataset(data)
        case TextData():
            return text_dataset(data)
        case IteratedData():
            return iterated_dataset(data)
        case TabularData():
            return tabular_dataset(data, loss)
        case CustomData():
            return custom_dataset(data, loss)
        case _:
            assert_never(data)
