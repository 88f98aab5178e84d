"""The signal of classes: whether the features of the last layer collapse to one point each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, final

import torch

from tpsprune.numerics.forward import logits_of
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.neural_collapse import neural_collapse
from tpsprune.numerics.objective import are_classes
from tpsprune.numerics.peers import whole
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

UNITS: Final = {"nc1": "", "nc2_norms": "", "nc2_angles": "", "nc3": "", "nc4": "share"}


@final
class NeuralCollapse(AbstractMemoryless):
    """Reads ``nc1`` to ``nc4`` of what the last linear layer reads of the calibration data, by their labels.

    All fall to 0 as training goes on past zero error. Where the last layer's outputs are not the model's
    there is no ``nc3``. It takes one class an item. Cost: a forward pass over the calibration data.

    Source: Papyan, Han and Donoho 2020 (arXiv 2008.08186).
    """

    name = "neural_collapse"

    def read(self, view: View) -> Readings:
        """Read all five figures."""
        found = list(passes(view.model, view.calibration_batches))
        read = [each.read for each in found if each.read is not None and each.read.ndim == 2]
        reason = ""
        if not view.labels or not all(map(are_classes, view.labels)):
            reason = "the labels are not classes, one for each item"
        elif len(read) < len(found):
            reason = "no linear layer comes last, one state an item"
        elif len(torch.cat(view.labels).unique()) < 2:  # type: ignore[no-untyped-call]
            reason = "all items are of one class"
        if reason:
            return (view.without("nc1", "", Status.NOT_APPLICABLE, reason),)
        logits_nc = torch.cat([logits_of(each.output) for each in found])
        if not bool(logits_nc.isfinite().all()):
            return (view.without("nc1", "", Status.NOT_FINITE, "a logit is not finite"),)
        states_nd = torch.cat(read)
        if not bool(states_nd.isfinite().all()):
            return (view.without("nc1", "", Status.NOT_FINITE, "a state is not finite"),)
        layer, gives = found[-1].layer, found[-1].gives_outputs
        measured = neural_collapse(
            states_nd,
            torch.cat(view.labels),
            logits_nc.argmax(1),
            whole(layer.weight.detach()) if layer is not None and gives else None,
        )
        return tuple(
            view.reading(name, value, UNITS[name])
            for name, value in asdict(measured).items()
            if value is not None
        )
