"""``moments``: a unit's squared pre-activation synchronises with the labels, in any model.

Shape letters: ``i`` items, ``s`` positions of an item, ``m`` units.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tpsprune.errors import VariantError
from tpsprune.numerics.coherence import moment_coherence
from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.trees import Tree
from tpsprune.records import TaskFacts
from tpsprune.tps.base import Group, Variant, full_precision, no_classes, working_precision
from tpsprune.tps.unit_layers import UnitLayer, fitting_unit_layers, has_unit_layers

__all__ = ["Moments"]


@final
class Moments(Variant):
    """R_m, the share of the variance of h_m² (centred) that classes explain; E = mean over units of 1 − R_m.

    Our instantiation, no formula has been published. The triplet is (input, input, label): h_m² holds the
    products of any two inputs that unit m weighs, and R_m is how well the best outgoing weights could read
    the label from them (``moment_coherence``). For two tokens h_m = u_m(a) + v_m(b), and the product is the
    triplet of ``labels``, of which this needs neither tokens nor a table. ``degree`` 3 takes h_m³ instead:
    products of three inputs. A gated unit has gate · up in place of h².

    Read from the layers named, else from the first that fits; a group is the units of one of them. It hangs
    on the training step's own forward pass and joins its backward pass: it adds no product of matrices.
    It eases off as the task's loss falls: at full strength to the end it holds weights where squares tell
    classes apart best, which is near the answer and not at it, and validation accuracy stays at nine tenths.
    Sees the batch's labels only. Does not see what the head makes of a unit, nor whether units agree; where
    the label hangs on single inputs it has nothing to give. With few items per class in a batch R_m is
    noise; with no more items than classes it is 0.

    Raises:
        VariantError: a layer named is not there or does not fit, or none does (``fitting_unit_layers``); or a
            layer was not heard, or heard with another number of items than there are labels.
    """

    name: ClassVar[str] = "moments"
    needs: ClassVar[str] = (
        "a linear or convolution layer before the one that gives the scores, and classes to tell apart"
    )
    rides: ClassVar[bool] = True
    eases: ClassVar[bool] = True

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:
        """Return what is not here, or ``None``."""
        if (labels := no_classes(facts)) is not None:
            return labels
        return None if has_unit_layers(model) else "this model has none"

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        degree: int,
        probe: Tree,
        probe_labels: Tensor,
    ) -> None:
        self._model = model
        self._layers = fitting_unit_layers(model, layers, probe)
        self._degree = degree
        self._probe, self._probe_labels = probe, probe_labels
        self._heard: dict[str, Tensor] = {}
        self._listens = False
        self._attached: list[RemovableHandle] = []
        self._classes: dict[str, type[nn.Module]] = {}
        self.groups = tuple(Group(layer.name, layer.units) for layer in self._layers)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the layers put out in a forward pass within, until ``energies`` has used it."""
        self._heard, self._listens = {}, True
        hooks = [] if self._attached else self._hang()
        if self._attached and not self._classes and "torch._dynamo" in sys.modules:
            self._classes = {path: _set_apart(self._model.get_submodule(path)) for path in self._paths()}
        try:
            yield
        finally:
            self._listens = False
            for hook in hooks:
                hook.remove()

    def attach(self) -> None:
        """Hang on the layers until ``detach``: compiled code knows the hooks of its first call alone."""
        self._attached = self._attached or self._hang()

    def detach(self) -> None:
        """Leave the layers as they were before ``attach``."""
        for hook in self._attached:
            hook.remove()
        self._attached = []
        for path, own in self._classes.items():
            self._model.get_submodule(path).__class__ = own
        self._classes = {}

    def energies(self, label_i: Tensor | None = None) -> Tensor:
        """Return 1 − mean R_m by layer, of what was heard last; its graph is that of the forward pass."""
        assert label_i is not None, "the labels of the batch that was heard"
        heard, self._heard = self._heard, {}
        self._refuse_unheard(heard, len(label_i))
        with full_precision(label_i):
            return torch.stack(
                [1.0 - self._coherence(layer, heard, label_i).mean() for layer in self._layers]
            )

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return energy and mean coherence on the probe, by layer."""
        heard = self._heard  # A step may be under way.
        with evaluation_mode(self._model), self.listening():
            call_model(self._model, self._probe)
        energy_g = self.energies(self._probe_labels)
        self._heard = heard
        return {"tps_energy": energy_g, "tps_coherence": 1.0 - energy_g}

    def _hang(self) -> list[RemovableHandle]:
        return [
            self._model.get_submodule(path).register_forward_hook(self._keep(path)) for path in self._paths()
        ]

    def _paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for layer in self._layers for path in layer.paths))

    def _keep(self, path: str) -> Callable[[nn.Module, object, Tensor], None]:
        layer = self._model.get_submodule(path)

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
            # A copy of the model brings the hook along; compiled code is not told when it is listened to.
            if (self._listens or torch.compiler.is_compiling()) and module is layer:
                self._heard[path] = _by_position(module, output)

        return keep

    def _refuse_unheard(self, heard: dict[str, Tensor], labels: int) -> None:
        for path in self._paths():
            if path not in heard:
                raise VariantError(
                    f"'moments' heard nothing of '{path}': make the forward pass of this model"
                    " within listening()"
                )
            if len(heard[path]) != labels:
                raise VariantError(
                    f"'moments' heard {len(heard[path])} items in '{path}' and was given {labels} labels:"
                    " those of the same batch would do"
                )

    def _coherence(self, layer: UnitLayer, heard: dict[str, Tensor], label_i: Tensor) -> Tensor:
        gate_ism = working_precision(heard[layer.gate])
        up_ism = None if layer.up is None else working_precision(heard[layer.up])
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
