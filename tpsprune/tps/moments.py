"""``moments``: a unit's squared pre-activation synchronises with the labels, in any model.

Shape letters: ``i`` items, ``s`` positions of an item, ``m`` units.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tpsprune.errors import VariantError, did_you_mean
from tpsprune.numerics.coherence import moment_coherence
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import Tree, item_count, take_items
from tpsprune.records import TaskFacts
from tpsprune.tps.variant import Group, Variant, full_precision, no_classes, working_precision

FEW = 3
"""Items by which the rows of a layer's output are counted; odd, so that a match is not by chance."""

_LAYER_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCT = "*"


@final
class Moments(Variant):
    """R_m, the share of the variance of h_m² (centred) that classes explain; E = mean over units of 1 − R_m.

    Our instantiation, no formula has been published. The triplet is (input, input, label): h_m² holds the
    products of any two inputs of unit m, and R_m is how well the best outgoing weights could read
    the label from them (``moment_coherence``). For two tokens h_m = u_m(a) + v_m(b), and the product is the
    triplet of ``labels``, of which this needs neither tokens nor a table. ``degree`` 3 takes h_m³ instead:
    products of three inputs. A gated unit has gate · up in place of h².

    Read from the layers named, else from the first that fits; a group is the units of one of them. It reads
    the outputs of the training step's own forward pass and joins its backward pass: it adds no product of
    matrices. It fades as the task's loss falls: at full strength to the end it holds weights where
    squares separate classes best, which is near the solution and not at it, and validation accuracy stops at
    nine tenths. Sees the batch's labels only. Does not see what the head makes of a unit, nor whether units
    agree; where the label hangs on single inputs it has nothing to give. With few items per class in a batch
    R_m is noise; with no more items than classes it is 0.

    Raises:
        VariantError: a layer named is not there or does not fit, or none does (``find_unit_layers``); or a
            layer has no output, or one of another number of items than there are labels.
    """

    name: ClassVar[str] = "moments"
    needs: ClassVar[str] = (
        "a linear or convolution layer before the one that gives the scores, and classes to tell apart"
    )
    shares_forward_pass: ClassVar[bool] = True
    fades: ClassVar[bool] = True

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what is not here, or ``None``."""
        if (labels := no_classes(facts)) is not None:
            return labels
        return None if _has_unit_layers(model) else "this model has none"

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        degree: int,
        calibration_inputs: Tree,
        calibration_labels: Tensor,
    ) -> None:
        self._model = model
        self._layers = find_unit_layers(model, layers, calibration_inputs)
        self._degree = degree
        self._calibration_inputs, self._calibration_labels = calibration_inputs, calibration_labels
        self._outputs: dict[str, Tensor] = {}
        self._listens = False
        self._attached: list[RemovableHandle] = []
        self._classes: dict[str, type[nn.Module]] = {}
        self.groups = tuple(Group(layer.name, layer.units) for layer in self._layers)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the layers' outputs in a forward pass within, until ``energies`` has used them."""
        self._outputs, self._listens = {}, True
        hooks = [] if self._attached else self._add_hooks()
        if self._attached and not self._classes and "torch._dynamo" in sys.modules:
            self._classes = {path: _set_apart(self._model.get_submodule(path)) for path in self._paths()}
        try:
            yield
        finally:
            self._listens = False
            for hook in hooks:
                hook.remove()

    def attach(self) -> None:
        """Add hooks to the layers until ``detach``: compiled code has only the hooks of its first call."""
        self._attached = self._attached or self._add_hooks()

    def detach(self) -> None:
        """Leave the layers as they were before ``attach``."""
        for hook in self._attached:
            hook.remove()
        self._attached = []
        for path, own in self._classes.items():
            self._model.get_submodule(path).__class__ = own
        self._classes = {}

    def energies(self, label_i: Tensor | None = None) -> Tensor:
        """Return 1 − mean R_m by layer, of the outputs kept last; its graph is that of the forward pass."""
        assert label_i is not None, "the labels of the batch in listening"
        outputs, self._outputs = self._outputs, {}
        self._refuse_missing(outputs, len(label_i))
        with full_precision(label_i):
            return torch.stack(
                [1.0 - self._coherence(layer, outputs, label_i).mean() for layer in self._layers]
            )

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return energy and mean coherence on the calibration data, by layer."""
        outputs = self._outputs  # A step may be under way.
        with evaluation_mode(self._model), self.listening():
            call_model(self._model, self._calibration_inputs)
        energy_g = self.energies(self._calibration_labels)
        self._outputs = outputs
        return {"tps_energy": energy_g, "tps_coherence": 1.0 - energy_g}

    def _add_hooks(self) -> list[RemovableHandle]:
        return [
            self._model.get_submodule(path).register_forward_hook(self._keep(path)) for path in self._paths()
        ]

    def _paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for layer in self._layers for path in layer.paths))

    def _keep(self, path: str) -> Callable[[nn.Module, object, Tensor], None]:
        layer = self._model.get_submodule(path)

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
            # A copy of the model brings the hook along; compiled code cannot see ``_listens`` change.
            if (self._listens or torch.compiler.is_compiling()) and module is layer:
                self._outputs[path] = _by_position(module, output)

        return keep

    def _refuse_missing(self, outputs: dict[str, Tensor], labels: int) -> None:
        for path in self._paths():
            if path not in outputs:
                raise VariantError(
                    f"'moments' has no output of '{path}': make the forward pass of this model"
                    " within listening()"
                )
            if len(outputs[path]) != labels:
                raise VariantError(
                    f"'moments' has outputs of {len(outputs[path])} items of '{path}' and {labels} labels;"
                    " expected both from the same batch"
                )

    def _coherence(self, layer: UnitLayer, outputs: dict[str, Tensor], label_i: Tensor) -> Tensor:
        gate_ism = working_precision(outputs[layer.gate])
        up_ism = None if layer.up is None else working_precision(outputs[layer.up])
        return moment_coherence(gate_ism, up_ism, label_i, self._degree)


def _set_apart(layer: nn.Module) -> type[nn.Module]:
    """Give a layer a class of its own, in all else the one it had, which is returned.

    Code that was compiled for another layer of its class has no hook of ours, and is chosen by classes and
    not by hooks (torch._dynamo.config.skip_nnmodule_hook_guards).
    """
    own = type(layer)
    same = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(own)
    layer.__class__ = metaclass(own.__name__, (own,), same)
    return own


def _by_position(module: nn.Module, output: Tensor) -> Tensor:
    """Return an output as (items, positions, units): of a convolution the second axis holds the units."""
    if isinstance(module, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)


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


def _has_unit_layers(model: nn.Module) -> bool:
    """Return whether there is any layer before the one that gives the scores."""
    return sum(isinstance(module, _LAYER_KINDS) for module in model.modules()) > 1


def find_unit_layers(model: nn.Module, names: Sequence[str], inputs: Tree) -> tuple[UnitLayer, ...]:
    """Return the layers named, else those that a model names as ``unit_layers``, else the first that fits.

    First in the order in which the model calls them on ``inputs``, and never the last called, which gives the
    scores. A layer fits that is called once, outputs a row of real numbers for each item, and is reached
    by a gradient.

    Raises:
        VariantError: a layer named is not there or does not fit, or none does.
    """
    few = take_items(inputs, torch.arange(FEW))
    outputs = _outputs_of(model, few)
    named = names or getattr(model, "unit_layers", ())
    for layer in (found := _named_unit_layers(model, named)):
        for path in layer.paths:
            if fault := _fault(outputs.get(path, []), item_count(few)):
                raise VariantError(f"tps.layers: '{path}' {fault}")
    if found:
        return found
    for path, calls in list(outputs.items())[:-1]:
        if _fault(calls, item_count(few)) is None:
            return _named_unit_layers(model, [path])
    raise VariantError(
        "'moments' finds no layer before the scores that is called once, outputs a row of real numbers for "
        "each item and can be trained; set tps.variant = 'none'"
    )


def _outputs_of(model: nn.Module, few: Tree) -> dict[str, list[Tensor]]:
    """Return the outputs of each layer in one forward pass, call by call, in the order of first calls."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(path: str, _: nn.Module, __: object, output: Tensor) -> None:
        outputs.setdefault(path, []).append(output)

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, _LAYER_KINDS):
                hooks.callback(module.register_forward_hook(partial(keep, path)).remove)
        with evaluation_mode(model), torch.enable_grad():
            call_model(model, few)
    return outputs


def _fault(outputs: Sequence[Tensor], items: int) -> str | None:
    """Return why nothing can be coupled there, or none."""
    if not outputs:
        return "is not called in a forward pass"
    if len(outputs) > 1:
        return f"is called {len(outputs)} times in one forward pass; choose a layer that is called once"
    if len(outputs[0]) != items:
        return f"outputs {len(outputs[0])} rows for {items} items; choose a layer with one row for each"
    if outputs[0].is_complex():
        return "outputs complex numbers; choose a layer of real ones"
    if not outputs[0].requires_grad:
        return "is frozen, and so is all before it: there is nothing to move"
    return None


def _named_unit_layers(model: nn.Module, names: Sequence[str]) -> tuple[UnitLayer, ...]:
    """Return the layers of these names, ``path`` or ``gate * up``.

    Raises:
        VariantError: a path is no linear or convolution layer of the model, or two factors differ in width.
    """
    return tuple(_named(model, name) for name in names)


def _named(model: nn.Module, name: str) -> UnitLayer:
    paths = [part.strip() for part in name.split(_PRODUCT)]
    if len(paths) > 2:
        raise VariantError(f"tps.layers: '{name}' has {len(paths)} factors; expected 'layer' or 'gate * up'")
    layers = {path: module for path, module in model.named_modules() if isinstance(module, _LAYER_KINDS)}
    for path in paths:
        if path not in layers:
            hint = did_you_mean(path, layers) or f" (layers: {', '.join(layers)})"
            raise VariantError(f"tps.layers: no linear or convolution layer '{path}'{hint}")
    widths = [layers[path].weight.shape[0] for path in paths]
    if len(set(widths)) > 1:
        raise VariantError(
            f"tps.layers: the factors of '{name}' have {widths[0]} and {widths[1]} units; "
            "expected equally many"
        )
    return UnitLayer(widths[0], *paths)
