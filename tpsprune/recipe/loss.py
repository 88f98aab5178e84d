"""``task.loss``: which losses there are, and which data and settings go with which.

A loss of the user's own is named by its dotted path, ``package.module:function``: **setting up such a recipe
runs that code**, as ``recipe.dotted`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tpsprune.errors import Fault, did_you_mean
from tpsprune.recipe.schema import Recipe
from tpsprune.recipe.task import CustomData
from tpsprune.recipe.task_data import TabularData, TextData, labels_wanted
from tpsprune.records import QUALITIES

__all__ = ["loss_faults"]

SMOOTHED: Final = ("cross-entropy", "next-token")
"""Losses over classes, of which some of the certainty can be spread over the others."""
TARGETS: Final = {"breast-cancer": "classes", "wine": "classes", "diabetes": "numbers"}
LOSS_OF: Final = {"classes": "cross-entropy", "numbers": "mse"}
OWN: Final = "or a function of your own, 'package.module:function', would do"


def loss_faults(recipe: Recipe) -> Iterator[Fault]:
    """Yield what does not fit: a loss nobody knows, data without such labels, smoothing without a meaning."""
    loss, data = recipe.task.loss, recipe.task.data
    own = ":" in loss
    if isinstance(data, TextData | TabularData) and (data.path is None) == (data.source is None):
        yield Fault("task.data", "give path or source, one of the two")
    if not own and loss not in QUALITIES:
        hint = did_you_mean(loss, QUALITIES) or f" (known: {', '.join(QUALITIES)})"
        yield Fault("task.loss", f"unknown loss '{loss}'{hint}; {OWN}")
        return
    smoothing = recipe.train.label_smoothing
    if smoothing > 0.0 and loss not in SMOOTHED:
        words = f"has no meaning with loss '{loss}': 0 would do (found {smoothing:g})"
        yield Fault("train.label_smoothing", words)
    if isinstance(data, TextData):
        if not own and loss != "next-token":
            words = "data of kind 'text' have the next byte for a label at every place: 'next-token',"
            yield Fault("task.loss", f"{words} {OWN} (found '{loss}')")
    elif isinstance(data, TabularData):
        yield from _tabular_faults(data, loss, own=own)
    elif not isinstance(data, CustomData) and not own and loss != "cross-entropy":
        words = f"data of kind '{data.kind}' have a class for a label: 'cross-entropy', {OWN}"
        yield Fault("task.loss", f"{words} (found '{loss}')")


def _tabular_faults(data: TabularData, loss: str, *, own: bool) -> Iterator[Fault]:
    if data.path is not None and data.target is None:
        yield Fault("task.data.target", "required beside path, but not given: the column to be told")
    if data.source is not None:
        for key in ("target", "categorical", "leave_out"):
            if getattr(data, key):
                yield Fault(f"task.data.{key}", f"is read beside path only (here source = '{data.source}')")
    if not own and loss not in LOSS_OF.values():
        words = "data of kind 'tabular' have one label a row: 'cross-entropy' or 'mse',"
        yield Fault("task.loss", f"{words} {OWN} (found '{loss}')")
        return
    found = TARGETS.get(data.source or "", labels_wanted(data, loss))
    if own and data.labels == "auto" and data.source is None:
        words = "with a loss of your own say what the target is: 'classes' or 'numbers'"
        yield Fault("task.data.labels", words)
    elif data.labels not in ("auto", found):
        words = f"the target of '{data.source}' holds {found} (found '{data.labels}')"
        yield Fault("task.data.labels", words)
    elif not own and loss != LOSS_OF[found]:
        words = f"the target holds {found}: '{LOSS_OF[found]}', {OWN} (found '{loss}')"
        yield Fault("task.loss", words)
