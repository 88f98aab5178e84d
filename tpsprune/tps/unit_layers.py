"""Which layers' outputs are the pre-activations of hidden units: named in the recipe, or found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tpsprune.errors import VariantError, did_you_mean

__all__ = ["UnitLayer", "find_unit_layers", "named_unit_layers"]

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


def find_unit_layers(model: nn.Module) -> tuple[UnitLayer, ...]:
    """Return the layer that a model names itself as ``unit_layers``, else its first, or none.

    First in the order of ``named_modules``, and never the only one: that gives the scores.
    """
    own = getattr(model, "unit_layers", None)
    if own:
        return named_unit_layers(model, own)
    found = [name for name, module in model.named_modules() if isinstance(module, _KINDS)]
    return named_unit_layers(model, found[:1]) if len(found) > 1 else ()


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
