"""Which layers' outputs are the pre-activations of hidden units: named in the recipe, or found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tpsprune.errors import VariantError, did_you_mean
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import Tree, item_count, take_items

__all__ = ["UnitLayer", "fitting_unit_layers", "has_unit_layers", "named_unit_layers"]

FEW = 3
"""Items that tell how a layer's rows go with items; odd, so that a count is no chance."""

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCT = "*"


@dataclass(frozen=True, slots=True)
class UnitLayer:
    """One layer of units by module path; of gated units the gate, and as ``up`` what it lets through."""

    units: int
    gate: str
    up: str | None = None

    @property
    def name(self) -> str:
        """The path, or both as ``gate * up``."""
        return self.gate if self.up is None else f"{self.gate} {_PRODUCT} {self.up}"

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that it is read from."""
        return (self.gate,) if self.up is None else (self.gate, self.up)


def has_unit_layers(model: nn.Module) -> bool:
    """Return whether there is any layer before the one that gives the scores."""
    return sum(isinstance(module, _KINDS) for module in model.modules()) > 1


def fitting_unit_layers(model: nn.Module, names: Sequence[str], probe: Tree) -> tuple[UnitLayer, ...]:
    """Return the layers named, else those that a model names as ``unit_layers``, else the first that fits.

    First in the order in which the model calls them on ``probe``, and never the last called, which gives the
    scores. A layer fits that is called once, puts out a row of real numbers for each item, and is reached
    by a gradient.

    Raises:
        VariantError: a layer named is not there or does not fit, or none does.
    """
    few = take_items(probe, torch.arange(FEW))
    heard = _heard(model, few)
    named = names or getattr(model, "unit_layers", ())
    for layer in (found := named_unit_layers(model, named)):
        for path in layer.paths:
            if fault := _fault(heard.get(path, []), item_count(few)):
                raise VariantError(f"tps.layers: '{path}' {fault}")
    if found:
        return found
    for path, outputs in list(heard.items())[:-1]:
        if _fault(outputs, item_count(few)) is None:
            return named_unit_layers(model, [path])
    raise VariantError(
        "'moments' finds no layer before the scores that is called once, puts out a row of real numbers for "
        "each item and can be trained; tps.variant = 'none' would do"
    )


def _heard(model: nn.Module, few: Tree) -> dict[str, list[Tensor]]:
    """Return what each layer puts out in one answer, call by call, in the order of first calls."""
    heard: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, _KINDS):
                handle = module.register_forward_hook(partial(_keep, heard, path))
                hooks.callback(handle.remove)
        with evaluation_mode(model), torch.enable_grad():
            call_model(model, few)
    return heard


def _keep(heard: dict[str, list[Tensor]], path: str, _: nn.Module, __: object, output: Tensor) -> None:
    heard.setdefault(path, []).append(output)


def _fault(outputs: Sequence[Tensor], items: int) -> str | None:
    """Return in words why nothing can be coupled there, or none."""
    if not outputs:
        return "is not called when the model answers"
    if len(outputs) > 1:
        return f"is called {len(outputs)} times in one answer; a layer that is called once would do"
    if len(outputs[0]) != items:
        return f"puts out {len(outputs[0])} rows for {items} items; a layer with one row for each would do"
    if outputs[0].is_complex():
        return "puts out complex numbers; a layer of real ones would do"
    if not outputs[0].requires_grad:
        return "is frozen, and so is all before it: there is nothing to move"
    return None


def named_unit_layers(model: nn.Module, names: Sequence[str]) -> tuple[UnitLayer, ...]:
    """Return the layers of these names, ``path`` or ``gate * up``.

    Raises:
        VariantError: a path is no linear or convolution layer of the model, or two factors differ in width.
    """
    return tuple(_named(model, name) for name in names)


def _named(model: nn.Module, name: str) -> UnitLayer:
    paths = [part.strip() for part in name.split(_PRODUCT)]
    if len(paths) > 2:
        raise VariantError(f"tps.layers: '{name}' has {len(paths)} factors; 'layer' or 'gate * up' would do")
    layers = {path: module for path, module in model.named_modules() if isinstance(module, _KINDS)}
    for path in paths:
        if path not in layers:
            hint = did_you_mean(path, layers) or f" (layers: {', '.join(layers)})"
            raise VariantError(f"tps.layers: no linear or convolution layer '{path}'{hint}")
    widths = [layers[path].weight.shape[0] for path in paths]
    if len(set(widths)) > 1:
        raise VariantError(
            f"tps.layers: the factors of '{name}' have {widths[0]} and {widths[1]} units; "
            "equally many would do"
        )
    return UnitLayer(widths[0], *paths)
