"""What a cut would come to, known before anything is cut: groups, what is seen of them, their widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from tpsprune.numerics.forward import MacCount, full_precision
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.pruning.calibration import check_called
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.groups import Survey
from tpsprune.pruning.latency import latency_shares
from tpsprune.pruning.opened import open_attention
from tpsprune.pruning.planning import Known, known
from tpsprune.pruning.reach import surveyed
from tpsprune.pruning.times import Times, timed
from tpsprune.pruning.widths import Evidence, choose_widths
from tpsprune.recipe.prune import Prune

__all__ = ["Foresight", "foresee"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Foresight:
    """The first half of an extraction: all that is decided before a tensor is touched.

    ``names`` are the attention modules that the survey saw opened; ``widths`` are one for each group of it.
    """

    names: tuple[str, ...]
    survey: Survey
    count: MacCount
    costs: CostModel
    known: Known
    evidence: Evidence
    widths: tuple[int, ...]

    @property
    def cost_share(self) -> float:
        """What the model would cost at these widths over what it costs, in the unit of the target."""
        return self.costs.at(self.widths) / self.costs.total


@full_precision()
def foresee(
    model: nn.Module,
    probe: Sequence[Any],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
    times: Times | None = None,
) -> Foresight:
    """Survey ``model``, look at it on the probe, and choose the widths that meet ``settings.target``.

    Arguments are those of ``extract``, which begins with this. The model is not changed.

    Raises:
        PruneError: as ``extract``, but for what only the cut itself can show.

    Cost: the survey, and a pass of the probe or a quarter of it; moments and solutions of every group.
    """
    times = Times() if times is None else times
    with timed(times, "survey"):
        opened, names = open_attention(model)
        check_called(opened, probe)
        found, count, costs = surveyed(opened, probe[0], settings)
    with timed(times, "look"):
        facts = known(opened, probe, found.groups, settings, labels=labels, seed=seed, objective=objective)
    with timed(times, "widths"):
        evidence = facts.evidence(opened, probe, found.groups, settings)
        widths = choose_widths(
            costs,
            evidence,
            settings,
            names=[group.name for group in found.groups],
            latency=latency_shares(opened, found.groups, clock) if clock else None,
        )
    return Foresight(names, found, count, costs, facts, evidence, widths)
