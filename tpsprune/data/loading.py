"""``[task.data]`` to a data set."""

from __future__ import annotations

from typing import assert_never

from tpsprune.data.brackets import brackets_dataset
from tpsprune.data.custom import custom_dataset
from tpsprune.data.digits import digits_dataset
from tpsprune.data.idx import idx_dataset
from tpsprune.data.image_folder import image_folder_dataset
from tpsprune.data.modular import modular_dataset
from tpsprune.data.parity import parity_dataset
from tpsprune.data.permutations import permutations_dataset
from tpsprune.data.splits import Dataset
from tpsprune.recipe.task import (
    BracketsData,
    CustomData,
    Data,
    DigitsData,
    IdxData,
    ImageFolderData,
    ModularData,
    ParityData,
    PermutationsData,
)

__all__ = ["load"]


def load(data: Data) -> Dataset:
    """Return the data set that a recipe names, on the CPU; the same one for equal settings.

    Raises:
        DataError: data is missing, empty, cut short or does not fit together.
        RecipeError: a custom factory does not import, or raised.
    """
    match data:
        case DigitsData():
            return digits_dataset(data)
        case ModularData():
            return modular_dataset(data)
        case PermutationsData():
            return permutations_dataset(data)
        case ParityData():
            return parity_dataset(data)
        case BracketsData():
            return brackets_dataset(data)
        case IdxData():
            return idx_dataset(data)
        case ImageFolderData():
            return image_folder_dataset(data)
        case CustomData():
            return custom_dataset(data)
        case _:
            assert_never(data)
