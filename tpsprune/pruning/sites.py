"""Where the signals look: the layers that read each prunable group, and the tensors that put it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpsprune.numerics.moments import Elements
from tpsprune.pruning.groups import Group, Survey
from tpsprune.pruning.layers import length
from tpsprune.pruning.layout import element_index

__all__ = ["Sites", "consumer_widths", "sites"]

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
        consumers=consumer_widths(model, survey),
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


def consumer_widths(model: nn.Module, survey: Survey) -> dict[str, dict[str, int]]:
    """Return, by group, the layers that read its units and nothing else, with their unit count.

    A layer that reads them beside something else, another group or what is none, is not among them.
    """
    return {
        group.name: {
            consumer.module: group.width
            for consumer in group.consumers
            if group.width * consumer.block * consumer.repeat
            == length(model.get_submodule(consumer.module), "in")
        }
        for group in survey.groups
    }


def _elements(group: Group, tensors: set[str]) -> tuple[Elements, ...]:
    return tuple(
        Elements(each.tensor, each.axis, element_index(each, group.width))
        for each in group.slices
        if each.tensor in tensors
    )
