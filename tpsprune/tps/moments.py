"""``moments``: a unit's squared pre-activation synchronises with the labels, in any model.

Shape letters: ``i`` items, ``s`` positions of an item, ``m`` units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.moment_coherence import moment_coherence
from tpsprune.records import TaskFacts
from tpsprune.tps.base import Group, Variant, full_precision, working_precision
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
        VariantError: a layer named is not there or does not fit, or none does (``fitting_unit_layers``).
    """

    name: ClassVar[str] = "moments"
    needs: ClassVar[str] = "a linear or convolution layer before the one that gives the scores"
    rides: ClassVar[bool] = True
    eases: ClassVar[bool] = True

    @staticmethod
    def missing(model: nn.Module, facts: TaskFacts) -> str | None:  # noqa: ARG004 -- any task will do
        """Return what is not here, or ``None``."""
        return None if has_unit_layers(model) else "this model has none"

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        degree: int,
        probe: Tensor,
        probe_labels: Tensor,
    ) -> None:
        self._model = model
        self._layers = fitting_unit_layers(model, layers, probe)
        self._degree = degree
        self._probe, self._probe_labels = probe, probe_labels
        self._heard: dict[str, Tensor] = {}
        self.groups = tuple(Group(layer.name, layer.units) for layer in self._layers)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the layers put out in a forward pass within, until ``energies`` has used it."""
        self._heard = {}
        hooks = [
            self._model.get_submodule(path).register_forward_hook(self._keep(path))
            for layer in self._layers
            for path in layer.paths
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def energies(self, label_i: Tensor | None = None) -> Tensor:
        """Return 1 − mean R_m by layer, of what was heard last; its graph is that of the forward pass."""
        assert label_i is not None, "the labels of the batch that was heard"
        heard, self._heard = self._heard, {}
        with full_precision(label_i):
            return torch.stack(
                [1.0 - self._coherence(layer, heard, label_i).mean() for layer in self._layers]
            )

    @torch.no_grad()
    def readings(self) -> dict[str, Tensor]:
        """Return energy and mean coherence on the probe, by layer."""
        with evaluation_mode(self._model), self.listening():
            call_model(self._model, self._probe)
        energy_g = self.energies(self._probe_labels)
        return {"tps_energy": energy_g, "tps_coherence": 1.0 - energy_g}

    def _keep(self, path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
            self._heard[path] = _by_position(module, output)

        return keep

    def _coherence(self, layer: UnitLayer, heard: dict[str, Tensor], label_i: Tensor) -> Tensor:
        gate_ism = working_precision(heard[layer.gate])
        up_ism = None if layer.up is None else working_precision(heard[layer.up])
        return moment_coherence(gate_ism, up_ism, label_i, self._degree)


def _by_position(module: nn.Module, output: Tensor) -> Tensor:
    """Return an output as (items, positions, units): of a convolution the second axis holds the units."""
    if isinstance(module, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)
