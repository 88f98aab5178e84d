"""Signal ``hessian``: how the loss curves where the weights are, and how much of that goes down.

Shape letters: p numbers of all parameters that train.
"""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.curvature import (
    MOST_PARAMETERS,
    Curvature,
    ExactCurvature,
    Product,
    curvature_of,
    hessian_product,
    lanczos_curvature,
    loss_gradient,
    whole_hessian,
)
from tpsprune.numerics.forward import call_model, logits_of
from tpsprune.records.readings import Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

ENDS: Final = ("hessian_min", "hessian_max")
COUNTS: Final = {"hessian_index": "eigenvalues", "hessian_index_share": "share"}
UNIT: Final = "nats for a unit of θ²"


@final
class HessianSpectrum(AbstractMemoryless):
    """Reads the spectrum of the Hessian of the cross-entropy on the calibration data, in evaluation mode.

    ``hessian_min`` and ``hessian_max``: its ends. ``hessian_negative_share``: Σ_{λ<0} |λ| / Σ |λ|, 0 at a
    minimum. ``hessian_index``: eigenvalues below minus a thousandth of the largest in magnitude, directions
    in which the loss surely bends down, and ``hessian_index_share``, over all. Up to 2,000 parameters that
    train, the spectrum is exact. Beyond, Lanczos steps give the ends, and the negative share to about a sixth
    of itself; there is no index: eigenvalues crowd at zero, and no estimate counts them there.

    It does not see the kinks of ReLU nets, between which they are pieces of lower degree; nor weight decay,
    which adds itself to every eigenvalue; nor that another batch has another Hessian. A module whose backward
    pass autograd cannot look into counts as linear, unless it says that it has no second derivative: then
    there is no reading, with that reason.

    Cost: p products with the Hessian where it is exact, else 80; a product is a pass backward through a pass
    forward and backward over the calibration data, whose memory is held meanwhile, beside up to 80 vectors
    of p numbers. Switch it on for a study, not by default.

    Source: Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159).
    """

    name = "hessian"

    def read(self, view: View) -> Readings:
        """Read ends, negative share and index."""
        if reason := view.why_no_loss:
            return (view.without(ENDS[0], UNIT, Status.NOT_APPLICABLE, reason),)

        def loss_of(model: nn.Module) -> Tensor:
            logits = [logits_of(call_model(model, batch)) for batch in view.calibration_batches]
            return functional.cross_entropy(torch.cat(logits), torch.cat(view.labels))

        try:
            theta_p, gradient_p = loss_gradient(view.model, loss_of)
            if not bool(gradient_p.isfinite().all()):
                reason = "the gradient is not finite"
                return (view.without(ENDS[0], UNIT, Status.NOT_FINITE, reason),)
            found = _measure(hessian_product(theta_p, gradient_p), theta_p)
        except RuntimeError as error:
            # What has no second derivative, and what takes more memory than there is, says so itself.
            reason = f"the loss could not be differentiated twice: {str(error).partition(chr(10))[0]}"
            return (view.without(ENDS[0], UNIT, Status.NOT_APPLICABLE, reason),)
        figures = dict(zip(ENDS, (found.smallest, found.largest), strict=True))
        readings = [view.reading(name, value, UNIT) for name, value in figures.items()]
        readings.append(view.reading("hessian_negative_share", found.negative_share, "share"))
        if isinstance(found, ExactCurvature):
            index = {"hessian_index": found.index, "hessian_index_share": found.index / found.parameters}
            return (*readings, *(view.reading(name, index[name], unit) for name, unit in COUNTS.items()))
        reason = (
            f"{found.parameters:,} parameters train; the spectrum is exact of {MOST_PARAMETERS:,} at most"
        )
        return (
            *readings,
            *(view.without(name, unit, Status.NOT_APPLICABLE, reason) for name, unit in COUNTS.items()),
        )


def _measure(product: Product, theta_p: Tensor) -> Curvature:
    if len(theta_p) <= MOST_PARAMETERS:
        return curvature_of(whole_hessian(product, theta_p))
    return lanczos_curvature(product, theta_p)
