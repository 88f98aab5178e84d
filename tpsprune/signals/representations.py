"""Signals of calibration data: dimension of the groups, collapse of items, rank of the outputs.

Shape letters: b items, n numbers of an item or units of a group, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpsprune.numerics.forward import call_model, evaluation_mode, logits_of
from tpsprune.numerics.last_layer import passes
from tpsprune.numerics.moments import Moments, input_moments
from tpsprune.numerics.spectra import corrected_participation_ratio, effective_rank, participation_ratio
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View


@dataclass(frozen=True, slots=True)
class Dimension:
    """Effective rank and corrected participation ratio of a group of ``width`` units."""

    width: int
    effective_rank: float
    participation_ratio: float


def group_dimension(consumers: list[Moments]) -> Dimension:
    """Return the dimension of the covariance pooled over a group's consumers, each over its trace.

    A consumer whose input never varies adds nothing. Invariant to the scale of each consumer's input and
    to turning all units together; it sees linear dependence only, of curved shapes the hull. Moments
    that are not finite give NaN. Cost: one eigenvalue problem of n × n.
    """
    width = len(consumers[0].mean_n)
    pooled_nn = torch.zeros_like(consumers[0].covariance_nn)
    for moments in consumers:
        trace = moments.covariance_nn.trace()
        pooled_nn += moments.covariance_nn / trace.masked_fill(trace == 0, 1.0)
    # Checked by hand: eigvalsh raises on what is not finite.
    if not pooled_nn.isfinite().all():
        return Dimension(width, torch.nan, torch.nan)
    eigenvalues_n = torch.linalg.eigvalsh(pooled_nn)
    ratio = float(participation_ratio(eigenvalues_n))
    rows = min(moments.rows for moments in consumers)
    return Dimension(
        width=width,
        effective_rank=float(effective_rank(eigenvalues_n)),
        participation_ratio=corrected_participation_ratio(ratio, rows, at_most=float(width)),
    )


@final
class DEff(AbstractMemoryless):
    """Reads the dimension of every group from one forward pass over the calibration data.

    How many directions the units of a group span. Per group: ``d_eff`` (effective rank, in dimensions),
    ``d_eff_share`` (over the group's width) and ``participation_ratio`` (corrected for the number of rows).
    For the whole model: ``d_eff``, the mean of the groups' shares.
    """

    name = "d_eff"

    def read(self, view: View) -> Readings:
        """Read every group, then their mean."""
        widths = {name: width for consumers in view.consumers.values() for name, width in consumers.items()}
        moments = input_moments(view.model, view.calibration_batches, widths)
        readings: list[Reading] = []
        shares: list[float] = []
        for group, consumers in view.consumers.items():
            seen = [moments[name] for name in consumers if name in moments]
            if len({len(each.mean_n) for each in seen}) != 1:
                reason = "its consumers read different numbers of units" if seen else "no consumer is called"
                readings.append(view.without(self.name, "dimensions", Status.NOT_APPLICABLE, reason, group))
                continue
            dimension = group_dimension(seen)
            shares.append(dimension.effective_rank / dimension.width)
            figures = (
                (self.name, dimension.effective_rank, "dimensions"),
                ("d_eff_share", shares[-1], "share"),
                ("participation_ratio", dimension.participation_ratio, "dimensions"),
            )
            readings.extend(view.reading(signal, value, unit, group) for signal, value, unit in figures)
        if not shares:
            reason = "there is no prunable group to read"
            return (*readings, view.without(self.name, "share", Status.NOT_APPLICABLE, reason))
        return (*readings, view.reading(self.name, fmean(shares), "share"))


def mean_cosine(items_bn: Tensor) -> float:
    """Return the mean cosine of two different items, in [−1/(b − 1), 1].

    (‖Σ x̂‖² − b) / (b (b − 1)) with x̂ the items at length one: one pass, no b × b matrix. 1 where all
    point the same way; 0 where directions are spread evenly. Invariant to each item's length and to turning
    all of them. Items are not centred, as in the source: after a rectifier a cosine of 0.5 is nothing
    special. Items of zeros point nowhere and count as orthogonal to all.
    """
    unit_bn = functional.normalize(items_bn.to(torch.float32), dim=1)
    items = len(unit_bn)
    lengths = unit_bn.square().sum()
    return float((unit_bn.sum(0).square().sum() - lengths) / (items * (items - 1)))


@final
class Collapse(AbstractMemoryless):
    """Reads ``collapse``: the mean cosine of the last linear layer's inputs of two calibration items.

    Near 1 on a plateau before something is learned: hidden states of all items nearly parallel. Of
    sequences the last position counts, where the layer reads all of them. It does not see collapse in earlier
    layers. Cost: a forward pass over the calibration data.

    Source: Gopalani and Hu 2025 (arXiv 2506.13688), there between the positions of one sequence.
    """

    name = "collapse"

    def read(self, view: View) -> Readings:
        """Read the input of the last layer."""
        input_bn = _input_of_the_last(view.model, view.calibration_batches)
        if input_bn is None or len(input_bn) < 2:
            reason = "no linear layer is called" if input_bn is None else "a single item has no pair"
            return (view.without(self.name, "cosine", Status.NOT_APPLICABLE, reason),)
        return (view.reading(self.name, mean_cosine(input_bn), "cosine"),)


def _input_of_the_last(model: nn.Module, batches: tuple[Any, ...]) -> Tensor | None:
    """Return the input of the linear layer that is called last, one row an item."""
    found: list[Tensor] = []
    for each in passes(model, batches):
        if each.read is None:
            return None
        found.append(each.read if each.read.ndim == 2 else each.read.flatten(1, -2)[:, -1])
    return torch.cat(found)


def numerical_rank(logits_bc: Tensor, share: float) -> int:
    """Return how many singular values are larger than ``share`` of the largest; zero for zeros.

    Invariant to scale, to turning and to the order of items. Not centred, as in the source: a common
    offset of all outputs is a direction. Cost: b·c².
    """
    sigma = torch.linalg.svdvals(logits_bc.to(torch.float64) if logits_bc.device.type != "mps" else logits_bc)
    return int((sigma > share * sigma[0]).sum()) if float(sigma[0]) > 0 else 0


@final
class LogitRank(AbstractMemoryless):
    """Reads ``logit_rank``: the numerical rank of the logits of all calibration items.

    How many directions the model's outputs use. Softmax networks whose logits start small reach ranks far
    below the number of classes. The published threshold was not to be found; ``share`` is
    ``watch.rank_share``, and the rank depends on it. Cost: a forward pass over the calibration data.

    Source: "Unpacking softmax" 2025 (arXiv 2506.01562), section 2.1.
    """

    name = "logit_rank"

    def __init__(self, *, share: float) -> None:
        self.share = share

    def read(self, view: View) -> Readings:
        """Read the rank of the outputs."""
        with torch.no_grad(), evaluation_mode(view.model):
            outputs = [logits_of(call_model(view.model, batch)) for batch in view.calibration_batches]
        if not outputs or any(each.ndim < 2 for each in outputs):
            reason = "the model's output is not a table of logits"
            return (view.without(self.name, "dimensions", Status.NOT_APPLICABLE, reason),)
        logits_bc = torch.cat([each.flatten(0, -2) for each in outputs])
        if not bool(logits_bc.isfinite().all()):
            return (view.without(self.name, "dimensions", Status.NOT_FINITE, "a logit is not finite"),)
        return (view.reading(self.name, numerical_rank(logits_bc, self.share), "dimensions"),)
