"""How long a model of other widths takes, beside the dense one, measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from torch import nn

from tpsprune.pruning.groups import Group, GroupCut
from tpsprune.pruning.surgery import cut_copy

__all__ = ["latency_shares"]

PAIRS = 3


def latency_shares(
    model: nn.Module, groups: Sequence[Group], clock: Callable[[nn.Module], float]
) -> Callable[[Sequence[int]], float]:
    """Return a function that measures a cut model's time as a share of the dense model's.

    It cuts a copy to the widths it is given, whichever units those are: time does not depend on what
    units say. The dense and the cut model are timed in turn, so that a machine that slows down slows both,
    and the median of three ratios counts.

    Args:
        model: the dense model, in the shape in which it is cut.
        groups: what can be cut of it.
        clock: seconds of a forward pass; it warms up, repeats and waits for the device as it sees fit.

    Cost: a copy of the model and six calls of ``clock`` for each set of widths.
    """

    def share(widths: Sequence[int]) -> float:
        cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
        ticket = cut_copy(model, cuts)
        return median(clock(ticket) / clock(model) for _ in range(PAIRS))

    return share
