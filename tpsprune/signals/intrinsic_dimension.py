"""Signal ``intrinsic_dimension``: how many coordinates the outputs of a group need, curved shapes included.

Shape letters: s sampled rows, n units.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Final, TypeAlias, final

from torch import Tensor

from tpsprune.numerics.intrinsic_dimension import (
    LEAST_POINTS,
    levina_bickel,
    neighbour_distances,
    two_nn,
)
from tpsprune.numerics.row_samples import input_rows
from tpsprune.records.readings import Reading, Status
from tpsprune.signals.signal import AbstractMemoryless, Readings, View

NAMES: Final = ("intrinsic_dimension", "two_nn_dimension")
Pair: TypeAlias = tuple[float, float]
"""What ``levina_bickel`` gives, and ``two_nn``."""


@final
class IntrinsicDimension(AbstractMemoryless):
    """Reads the dimension of what each group's consumers are fed, from distances between neighbours.

    A point is a row of units: an item, of a map an item's position, of a sequence an item's token; 1,024 of
    them at most, the same at every reading. Per group, the mean of its consumers: ``intrinsic_dimension``
    (Levina and Bickel, 20 neighbours) and ``two_nn_dimension``, in dimensions, and each over the width
    (``…_share``). For the whole model: both names, the mean of the groups' shares.

    Unlike ``d_eff`` it sees that a curve has one dimension however many directions it turns to; it does not
    see how many directions a linear layer needs to hold it, so that a low one does not say that units can be
    pruned. An untrained net's is low too: compare with the reading at step 0. Points in one place count once;
    fewer than 40 give no reading.

    Cost: a forward pass over the calibration data, and s²·n multiply-adds for each consumer: 72 ms a reading
    of a CNN on digits with 256 items (14 for ``d_eff``), 10 of an MLP on two tokens (6).
    """

    name = "intrinsic_dimension"

    def read(self, view: View) -> Readings:
        """Read every group, then their mean."""
        widths = {name: width for consumers in view.consumers.values() for name, width in consumers.items()}
        rows = input_rows(view.model, view.calibration_batches, widths, view.blocks)
        readings: list[Reading] = []
        shares: list[Pair] = []
        for group, consumers in view.consumers.items():
            clouds = [neighbour_distances(rows[name]) for name in consumers if name in rows]
            points = max(map(len, clouds), default=0)
            enough = [each for each in clouds if len(each) >= LEAST_POINTS]
            if not enough:
                reason = f"{points} distinct points, and it takes {LEAST_POINTS}"
                reason = reason if clouds else "no consumer is called"
                readings += [
                    view.without(name, "dimensions", Status.NOT_APPLICABLE, reason, group) for name in NAMES
                ]
                continue
            dimensions = _mean(enough)
            width = fmean(consumers.values())
            shares.append((dimensions[0] / width, dimensions[1] / width))
            for name, dimension, share in zip(NAMES, dimensions, shares[-1], strict=True):
                readings.append(view.reading(name, dimension, "dimensions", group))
                readings.append(view.reading(f"{name}_share", share, "share", group))
        if not shares:
            reason = "there is no prunable group with points enough"
            readings += [view.without(name, "share", Status.NOT_APPLICABLE, reason) for name in NAMES]
        else:
            means = map(fmean, zip(*shares, strict=True))
            readings += [view.reading(name, mean, "share") for name, mean in zip(NAMES, means, strict=True)]
        return tuple(readings)


def _mean(clouds: Iterable[Tensor]) -> Pair:
    pairs = [(levina_bickel(each), two_nn(each)) for each in clouds]
    return fmean(one for one, _ in pairs), fmean(other for _, other in pairs)
