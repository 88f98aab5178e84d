"""Where the signals look: the layers that read each prunable group, and the tensors that put it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.elements import Elements
from tpsprune.pruning.groups import Group, Survey
from tpsprune.pruning.layout import element_index

__all__ = ["Sites", "sites"]

WRITTEN = ("weight", "bias")


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """Of each prunable group what ``signals.View`` asks for, under the same names."""

    consumers: Mapping[str, Mapping[str, int]]
    written: Mapping[str, tuple[Elements, ...]]
    scaled: Mapping[str, tuple[Elements, ...]]


def sites(model: nn.Module, survey: Survey) -> Sites:
    """Return where the signals look in a model of which this is the survey."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    held = model.state_dict().keys()  # A plan also speaks of biases that a layer may be given.
    return Sites(
        consumers=survey.consumer_widths(),
        written={
            group.name: _elements(
                group, held & {f"{name}.{each}" for name in group.producers for each in WRITTEN}
            )
            for group in survey.groups
        },
        scaled={
            group.name: _elements(
                group, held & {f"{name}.weight" for name in norms.intersection(group.members)}
            )
            for group in survey.groups
        },
    )


def _elements(group: Group, tensors: set[str]) -> tuple[Elements, ...]:
    return tuple(
        Elements(each.tensor, each.axis, element_index(each, group.width))
        for each in group.slices
        if each.tensor in tensors
    )
