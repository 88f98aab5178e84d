"""``[task.data]`` of texts and of tables: data whose labels follow from the file and from ``task.loss``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from tpsprune.recipe.bounds import STRICT, Natural, OpenShare, Text

__all__ = ["TabularData", "TextData", "labels_wanted"]

Labels = Literal["classes", "numbers"]


@dataclass(frozen=True, slots=True, kw_only=True)
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
    validation_share: OpenShare = 0.1
    test_share: OpenShare = 0.1
    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularData:
    """A CSV file with a header, or a table that comes with scikit-learn; a vector an item.

    Columns of numbers are standardised by the training split, others are one-hot: a word, a column.
    """

    kind: Literal["tabular"] = "tabular"
    path: Text | None = None
    source: Literal["breast-cancer", "wine", "diabetes"] | None = None
    target: Text | None = None
    """The column that is to be told from the others."""
    labels: Literal["auto", "classes", "numbers"] = "auto"
    """What the target is; ``auto``: numbers with loss ``mse``, classes with ``cross-entropy``."""
    categorical: tuple[Text, ...] = ()
    """Columns whose cells are words though they look like numbers."""
    leave_out: tuple[Text, ...] = ()
    """Columns that are not to be seen."""
    validation_share: OpenShare = 0.15
    test_share: OpenShare = 0.25
    split_seed: Natural = 0
    __pydantic_config__: ClassVar[Any] = STRICT


def labels_wanted(data: TabularData, loss: str) -> Labels:
    """Return what the target is to be read as under a loss.

    >>> labels_wanted(TabularData(source="diabetes"), "mse")
    'numbers'
    """
    if data.labels != "auto":
        return data.labels
    return "numbers" if loss == "mse" else "classes"
