"""The configuration that gives an architecture of transformers the widths of a pruned model, if there is one.

A configuration holds one number for all layers or, where the architecture reads ``per_layer_config``, one for
each. Which number belongs to which tensor is found by trial: a candidate is built without memory, and its
shapes are compared.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

Sizes = dict[str, tuple[float, ...]]
"""Shapes of tensors by name, and numbers that modules keep, each by ``module attribute``."""

OF_CODE: Final = ("pruned", "auto_map")
"""Fields by which a configuration leads to ``modeling_pruned``."""
_WIDTHS: Final = ("inner", "dim", "size", "width", "head")
"""Parts of the names of fields that may hold a width where they are empty."""
_BIAS: Final = ".bias"
_OF_HEADS: Final = ("head", "scal")
"""Parts of the names of numbers on which the outputs depend whatever the shapes are."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A configuration that fits: the fields that differ, and biases it brings that the model has not.

    Those are zero; their shapes are given.
    """

    changes: Mapping[str, Any]
    new_biases: Mapping[str, tuple[int, ...]]


def fitting_config(model: nn.Module) -> Fit | None:
    """Return how the configuration of ``model`` is changed so that its architecture is the model.

    Every tensor has its shape then, and every number that a module keeps its value, where pruning changed it
    or it is about heads: shapes alone do not tell four heads of eight from eight of four. Fields are changed
    one after the other, each time the one whose new value makes most fit. Where one value for all layers does
    not do, each layer gets its own, if the architecture takes them.

    Args:
        model: a ``transformers.PreTrainedModel``, pruned.

    Returns:
        The changes, or ``None``: no configuration has these sizes.

    Cost: some dozens of models built without memory.
    """
    search = _Search(model)
    fit: _Built | None = search.fit({}, _everywhere)
    if fit is not None and search.misfits(fit, _everywhere):
        fit = search.fit_layers(_layers(model))
    if fit is None:
        return None
    new = {name: size for name, size in fit.sizes.items() if name not in search.wanted and " " not in name}
    return Fit(fit.changes, {name: tuple(map(int, size)) for name, size in new.items()})


def build_dense(model: nn.Module) -> nn.Module:
    """Return the library's architecture as the configuration of ``model`` gives it, without memory."""
    return _build(architecture_of(model), dense_config(model))


def architecture_of(model: nn.Module) -> type[Any]:
    """Return a model's class, or of one that was built by ``modeling_pruned`` the architecture beneath it."""
    kinds = type(model).__mro__
    pruned = [rank for rank, kind in enumerate(kinds) if kind.__name__ == "PrunedModel"]
    return kinds[pruned[0] + 1] if pruned else kinds[0]


def dense_config(model: nn.Module) -> Any:
    """Return a copy of a model's configuration, without what ``modeling_pruned`` reads of it."""
    config = copy.deepcopy(model.config)
    for name in OF_CODE:
        vars(config).pop(name, None)
    return config


def _build(kind: type[Any], config: Any) -> nn.Module:
    with torch.device("meta"):
        built: nn.Module = kind(copy.deepcopy(config))
    return built


def numbers_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the numbers that modules keep, by module and attribute: private ones and flags aside.

    Also those in which a module's own configuration differs from the model's, under names with a dot.
    """
    shared = vars(getattr(model, "config", model))
    in_config = {
        (place, f"config.{name}"): value
        for place, module in model.named_modules()
        if place and (own := vars(module).get("config")) is not None and own is not model.config
        for name, value in vars(own).items()
        if type(value) is int and name in shared and shared[name] != value
    }
    return in_config | {
        (place, name): value
        for place, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, int | float | tuple)
        and not isinstance(value, bool)
        and all(type(each) in (int, float) for each in (value if isinstance(value, tuple) else ()))
    }


def number_at(model: nn.Module, place: str, attribute: str) -> Any:
    """Return a number that a module keeps, or its configuration; ``None`` where there is none."""
    holder: Any = dict(model.named_modules()).get(place)
    for name in attribute.split("."):
        holder = getattr(holder, name, None)
    return holder


@dataclass(frozen=True, slots=True)
class _Built:
    """A configuration, by the fields that were changed, and the sizes that its architecture has."""

    config: Any
    changes: Mapping[str, Any]
    sizes: Sizes


Where = Callable[[str], bool]
"""Which tensors are looked at, by name."""


def _everywhere(_name: str) -> bool:
    return True


@final
class _Search:
    """The search for one model: what is wanted, and what was built on the way."""

    def __init__(self, model: nn.Module) -> None:
        dense = numbers_of(build_dense(model))
        numbers = {
            f"{place} {name}": value if isinstance(value, tuple) else (value,)
            for (place, name), value in numbers_of(model).items()
            if value != dense.get((place, name)) or any(part in name for part in _OF_HEADS)
        }
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.wanted: Sizes = {**shapes, **numbers}
        self._numbers = numbers.keys()
        self._head_widths = _head_widths(model)
        self._kind = architecture_of(model)
        self._config: Any = dense_config(model)
        self._seen: dict[str, _Built | None] = {}

    def fit(self, changes: Mapping[str, Any], where: Where) -> _Built:
        """Change fields until the tensors looked at fit, or no change helps further."""
        found = self._build(changes)
        assert found is not None, "what was built once is built again"
        while misfits := self.misfits(found, where):
            tried = [self._build({**found.changes, **change}) for change in self._candidates(found, misfits)]
            best = min(
                (each for each in tried if each is not None),
                key=lambda each: len(self.misfits(each, where)),
                default=found,
            )
            if len(self.misfits(best, where)) >= len(misfits):
                break
            found = best
        return found

    def fit_layers(self, layers: Sequence[str]) -> _Built | None:
        """Return a configuration with ``per_layer_config`` that fits, or ``None``.

        What lies outside the layers is fitted first; then each layer, as if all were like it. The first that
        needs a number of its own shows whether the architecture takes one.

        Args:
            layers: by what the names of the tensors of each begin.
        """
        shared = self.fit({}, lambda name: not name.startswith(tuple(layers)))
        own: dict[int, Mapping[str, Any]] = {}
        built: _Built | None = shared
        for index, layer in enumerate(layers):
            found = self.fit(shared.changes, _begins_with(layer))
            if changes := {key: value for key, value in found.changes.items() if key not in shared.changes}:
                own[index] = changes
                built = (
                    self._build({**shared.changes, "per_layer_config": dict(own)}) if len(own) == 1 else built
                )
            if built is None or self.misfits(found, _begins_with(layer)):
                return None
        built = self._build({**shared.changes, "per_layer_config": own})
        return None if built is None or self.misfits(built, _everywhere) else built

    def misfits(self, built: _Built, where: Where) -> list[str]:
        """Return the tensors of which one has what the other has not; a bias may come in: it can be zero."""
        return [
            name
            for name in dict.fromkeys((*self.wanted, *built.sizes))
            if built.sizes.get(name) != self.wanted.get(name)
            and not (name not in self.wanted and name.endswith(_BIAS))
            and where(name)
        ]

    def _build(self, changes: Mapping[str, Any]) -> _Built | None:
        """Build the architecture with some fields changed; ``None`` where it refuses."""
        key = repr(sorted(changes.items()))
        if key not in self._seen:
            try:
                config = type(self._config).from_dict({**self._config.to_dict(), **changes})
                config._attn_implementation = self._config._attn_implementation
                built = _build(self._kind, config)
            except Exception:  # noqa: BLE001 -- an architecture refuses a number in its own way
                self._seen[key] = None
            else:
                sizes: Sizes = {name: tuple(each.shape) for name, each in built.state_dict().items()}
                for number in self._numbers:
                    if (value := number_at(built, *number.split(" "))) is not None:
                        sizes[number] = value if isinstance(value, tuple) else (value,)
                self._seen[key] = _Built(config, dict(changes), sizes)
        return self._seen[key]

    def _candidates(self, built: _Built, misfits: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield what might make a misfit fit: a number scaled as an axis was, an empty width, a bias."""
        found, wanted = built.sizes, self.wanted
        scales = {
            (old, new)
            for name in misfits
            if name in found and name in wanted and len(found[name]) == len(wanted[name])
            for old, new in zip(found[name], wanted[name], strict=True)
            if old != new and isinstance(old, int) and isinstance(new, int)
        }
        lacks_bias = any(name.endswith(_BIAS) and name not in found for name in misfits)
        for field, value in built.config.to_dict().items():
            if value is False and lacks_bias and "bias" in field:
                yield {field: True}
            elif value is None and any(part in field for part in _WIDTHS):
                yield from ({field: new} for new in sorted({new for _, new in scales}))
            elif type(value) is int and value > 1:
                scaled = {value * new // old for old, new in scales if old and value * new % old == 0}
                widths = self._head_widths.get(field)
                yield from (
                    {field: each} for each in sorted(scaled - {value, 0}) if widths is None or each in widths
                )


def _begins_with(prefix: str) -> Where:
    return lambda name: name.startswith(prefix)


def _layers(model: nn.Module) -> list[str]:
    """Return by what the names of each layer's tensors begin; empty where the layers are not one list."""
    config: Any = model.config
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == getattr(config, "num_hidden_layers", None)
    ]
    return [f"{lists[0]}.{index}." for index in range(config.num_hidden_layers)] if len(lists) == 1 else []


def _head_widths(model: nn.Module) -> dict[str, set[int]]:
    """Return, by field that is the width of a head, the numbers that modules hold under its very name.

    Heads times their width make one axis; how wide one is, only the attention module has.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    config: Any = model.config
    fields = [name for name in config.to_dict() if "head" in name and ("dim" in name or "size" in name)]
    for module in model.modules():
        for field in fields:
            if type(value := vars(module).get(field)) is int:
                numbers[field].add(value)
    return dict(numbers)
