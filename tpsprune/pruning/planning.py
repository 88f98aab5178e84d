"""The plan: groups, calibration statistics and widths, known before anything is pruned.

Evidence is the figures that an allocation compares groups by; units of groups are chosen here where the
reconstruction is not to choose them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from tpsprune.numerics.forward import full_precision
from tpsprune.numerics.macs import MacCount
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.pruning.calibration import CalibrationStatistics, check_calibration_data, collect_statistics
from tpsprune.pruning.costs import CostModel, Times, latency_shares, timed
from tpsprune.pruning.groups import Group, Prunability
from tpsprune.pruning.head_width import residual_shares, score_rank
from tpsprune.pruning.importances import highest, score_units
from tpsprune.pruning.open_attention import open_attention
from tpsprune.pruning.prunability import find_and_price_groups
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.widths import Evidence, choose_widths, needed_evidence
from tpsprune.recipe.prune import Prune


@final
@dataclass(frozen=True, slots=True, eq=False)
class WidthPlan:
    """The first half of an extraction: all that is decided before a tensor is changed.

    ``names`` are the attention modules that the survey saw opened; ``widths`` are one for each group of it.
    """

    names: tuple[str, ...]
    survey: Prunability
    count: MacCount
    costs: CostModel
    statistics: CalibrationStatistics
    evidence: Evidence
    widths: tuple[int, ...]

    @property
    def cost_share(self) -> float:
        """What the model would cost at these widths over what it costs, in the unit of the target."""
        return self.costs.at(self.widths) / self.costs.total


@full_precision()
def plan_widths(
    model: nn.Module,
    batches: Sequence[Any],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    objective: Objective = CROSS_ENTROPY,
    times: Times | None = None,
) -> WidthPlan:
    """Find the groups of ``model``, collect calibration statistics, choose widths that meet the target.

    Arguments are those of ``extract``, which begins with this. The model is not changed.

    Raises:
        PruneError: as ``extract``, but for faults that only the pruned model can show.

    Cost: the survey, a quarter to the whole of a pass of the calibration data; moments and solutions of every
    group.
    """
    times = Times() if times is None else times
    with timed(times, "survey"):
        opened, names = open_attention(model)
        check_calibration_data(opened, batches)
        survey, count, costs = find_and_price_groups(opened, batches[0], settings)
    groups = survey.groups
    with timed(times, "look"):
        found = collect_statistics(
            opened, batches, groups, settings, labels=labels, seed=seed, objective=objective
        )
    with timed(times, "widths"):
        evidence = _gather_evidence(found, opened, batches, groups, settings)
        widths = choose_widths(
            costs,
            evidence,
            settings,
            names=[group.name for group in groups],
            latency=latency_shares(opened, groups, clock) if clock else None,
        )
    return WidthPlan(names, survey, count, costs, found, evidence, widths)


def _gather_evidence(
    found: CalibrationStatistics,
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    settings: Prune,
) -> Evidence:
    """Return what the choice of widths needs to know.

    A head's width has no consumer: it weighs as much as the other groups do on average.
    """
    needed, energies = needed_evidence(settings), found.energies
    consumed = [group for group in groups if group.name not in energies]

    def in_order(of_heads: Callable[[Tensor], Any], of_units: Callable[[Group], Any]) -> list[Any]:
        return [
            of_heads(energies[group.name]) if group.name in energies else of_units(group) for group in groups
        ]

    if "ranks" in needed:
        return Evidence(ranks=in_order(score_rank, lambda group: found.effective_rank(model, group)))
    if "residuals" in needed:
        selections = {group.name: found.select(model, group, group.width) for group in consumed}
        usual = statistics.fmean(each.loudness for each in selections.values()) if selections else 1.0
        return Evidence(
            residuals=in_order(residual_shares, lambda group: selections[group.name].residual_shares),
            loudness=in_order(lambda _: usual, lambda group: selections[group.name].loudness),
        )
    if "scores" in needed:
        of_units = found.scores or score_units(
            model, batches[:1], [group for group in groups if group.consumers], "magnitude"
        )
        return Evidence(scores=in_order(lambda energy_d: energy_d, lambda group: of_units[group.name]))
    return Evidence()


def choose_units(
    found: CalibrationStatistics,
    model: nn.Module,
    groups: Sequence[Group],
    widths: Mapping[str, int],
    settings: Prune,
) -> dict[str, Selection]:
    """Return the units chosen before the reconstruction: of all groups, unless the reconstruction chooses."""
    chosen: dict[str, Selection] = {}
    for group in groups:
        count = widths[group.name]
        if group.name in found.energies:
            shares = residual_shares(found.energies[group.name])
            chosen[group.name] = Selection(tuple(range(count)), shares[:count])
        elif settings.units == "pivoted-cholesky" or found.scores is not None:
            if found.scores is None:
                picked = found.select_by_cholesky(model, group, count).units
            else:
                picked = highest(found.scores[group.name], count)
            chosen[group.name] = Selection(picked, ())
            if found.moments:
                chosen[group.name] = found.select(model, group, count, picked=picked)
        elif not settings.compensate:
            # Without compensation nothing holds the pruned model to the dense one: units are judged there.
            chosen[group.name] = found.select(model, group, count)
    return chosen
