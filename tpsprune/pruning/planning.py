"""What is decided before anything is pruned: groups, calibration statistics and widths.

Evidence is the figures by which an allocation compares groups. Units are chosen on the dense model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import fixed_seed, full_precision
from tpsprune.numerics.macs import MacCount
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.peers import ALONE, AbstractPeers
from tpsprune.numerics.trees import take_items
from tpsprune.pruning.calibration import (
    CalibrationStatistics,
    check_calibration_data,
    collect_statistics,
    turn_heads,
)
from tpsprune.pruning.costs import CostModel, Times, measured_shares, timed
from tpsprune.pruning.groups import Group, Prunability
from tpsprune.pruning.head_width import residual_shares, score_rank
from tpsprune.pruning.importances import highest, score_units
from tpsprune.pruning.low_rank import Outputs, layers_to_split, observe_outputs
from tpsprune.pruning.measured_cuts import measure_cuts
from tpsprune.pruning.opening import open_layers, open_what_computes_alike
from tpsprune.pruning.prunability import find_and_price_groups, list_fixed
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.ties import Classes
from tpsprune.pruning.widths import Evidence, choose_widths, needed_evidence
from tpsprune.recipe.prune import Allocation, Bytes, Macs, Params, Prune, Target
from tpsprune.records import CheckedLayer

TINY: Final = 1e-9
"""A residual share below it is rounding."""
LITTLE: Final = 0.02
"""A cut that leaves out a smaller residual share is no measure of what larger ones cost."""
LOWER: Final = 0.99
"""The step by which a target is lowered until widths that may not fall below others meet it."""
OF_UNITS: Final = (1 / 2, 3 / 4)
"""The powers of a target's share that units reach where layers of low rank are to reach the rest."""
LEAST: Final = 1e-9
"""Of what the group worth most has: what was measured as nothing may be something at other widths."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class WidthPlan:
    """The first half of an extraction: all that is decided before a tensor is changed.

    ``widths`` holds one width for each group, which meet ``target``; ``orders`` all units of a group from the
    first that is kept to the last, where they are known. ``outputs`` are of layers that may be split, to save
    what is left to save then. ``given`` are the units of groups whose choice was made elsewhere.
    """

    prunability: Prunability
    count: MacCount
    costs: CostModel
    statistics: CalibrationStatistics
    evidence: Evidence
    target: Target
    widths: tuple[int, ...]
    orders: Mapping[str, Selection] = field(default_factory=dict)
    outputs: Mapping[str, Outputs] | None = None
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups that can be pruned, in model order."""
        return self.prunability.groups

    @property
    def width_of(self) -> dict[str, int]:
        """The width of each group by name."""
        return {group.name: width for group, width in zip(self.groups, self.widths, strict=True)}

    @property
    def narrowed(self) -> list[Group]:
        """The groups that lose units."""
        return [each for each, width in zip(self.groups, self.widths, strict=True) if width < each.width]

    @property
    def cost_share(self) -> float:
        """What the model would cost at these widths over what it costs, in the unit of the target."""
        return self.costs.at(self.widths) / self.costs.total


@full_precision()
@fixed_seed()
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
    chooses: bool = True,
    peers: AbstractPeers = ALONE,
) -> WidthPlan:
    """Find the groups of ``model``, collect calibration statistics, choose widths that meet the target.

    The arguments are those of ``extract``, whose first stages these are. The model is not changed. Unless it
    ``chooses`` all widths are the dense model's.

    Raises:
        PruneError: as ``extract``, but for faults that only the pruned model can show.

    Cost: the search for groups; a quarter to the whole of a pass of the calibration data; moments and
    solutions of every group; for greedy widths half a pass more (``measured_cuts``).
    """
    times = Times() if times is None else times
    with timed(times, "survey"):
        check_calibration_data(model, batches)
        opened_model, prunability, count, costs = survey(model, batches[0], settings)
    groups = prunability.groups
    with timed(times, "look"):
        statistics = collect_statistics(
            opened_model,
            batches,
            groups,
            settings,
            labels=labels,
            seed=seed,
            objective=objective,
            peers=peers,
        )
    with timed(times, "widths"):
        orders: dict[str, Selection] = {}
        if "residuals" in needed_evidence(settings):
            consumed = [group for group in groups if group.name not in statistics.energies]
            orders = _order(statistics, opened_model, consumed, peers)
        evidence = _gather_evidence(statistics, opened_model, batches, groups, settings, orders, peers)

        def choose() -> tuple[int, ...]:
            measured = measured_shares(opened_model, groups, clock, dense=model) if clock else None
            return _choose(
                costs,
                evidence,
                settings,
                groups,
                measured=measured,
                fixed=lambda: list_fixed(opened_model, prunability, count),
            )

        widths = tuple(peers.first(choose)) if chooses else costs.widths
    if settings.units != "interpolation":
        orders = {}  # What follows best from others is not what is kept.
    return WidthPlan(prunability, count, costs, statistics, evidence, settings.target, widths, orders)


def _order(
    statistics: CalibrationStatistics, model: nn.Module, groups: Sequence[Group], peers: AbstractPeers
) -> dict[str, Selection]:
    """Return all units of each group in order; every process solves for some of the groups."""
    if peers.size == 1:
        return {each.name: statistics.select(model, each, each.width) for each in groups}
    found = peers.deal(
        groups,
        lambda group: asdict(statistics.select(model, group, group.width)),
        lambda group: sum((group.width * each.features) ** 3.0 for each in group.consumers),
    )
    return {
        group.name: Selection(tuple(each["units"]), tuple(each["residual_shares"]), each["loudness"])
        for group, each in zip(groups, found, strict=True)
    }


def survey(
    model: nn.Module, batch: Any, settings: Prune
) -> tuple[nn.Module, Prunability, MacCount, CostModel]:
    """Return a copy of a model, opened, its groups, its multiply-accumulates, and what it costs by widths.

    Raises:
        PruneError: nothing can be pruned, or the target is out of reach.
    """
    opened_model, opened, closed = open_what_computes_alike(model, take_items(batch, torch.arange(2)))
    prunability, count, costs = find_and_price_groups(opened_model, batch, settings, closed)
    return opened_model, replace(prunability, opened=opened), count, costs


def plan_size(
    planned: WidthPlan,
    model: nn.Module,
    settings: Prune,
    *,
    within: Sequence[int] | None = None,
    beyond: Sequence[int] | None = None,
    clock: Callable[[nn.Module], float] | None = None,
) -> WidthPlan:
    """Return the plan of another target of the same kind, on what is known already.

    ``within`` are widths that no group may exceed: those of a larger ticket, whose units these are some of;
    ``beyond`` those of a smaller ticket, which no group may fall below.
    """
    measured = None
    if clock:
        opened_model, _ = open_layers(model, planned.prunability.opened)
        measured = measured_shares(opened_model, planned.groups, clock, dense=model)
    most, least = within or planned.costs.widths, beyond or (1,) * len(planned.groups)

    def choose(target: Target) -> tuple[int, ...]:
        asked = replace(settings, target=target)
        widths = _choose(planned.costs, planned.evidence, asked, planned.groups, measured=measured)
        return tuple(map(max, least, map(min, widths, most)))

    target = settings.target
    widths = choose(target)
    if beyond is not None and isinstance(target, Macs | Params | Bytes):
        # Where the smaller ticket has a group wider than this path has it here, others make room.
        floor, share = planned.costs.at(beyond) / planned.costs.total, target.share
        while planned.costs.at(widths) > target.share * planned.costs.total:
            share *= LOWER
            widths = choose(type(target)(share)) if share > floor else tuple(beyond)
    return replace(planned, widths=widths, target=settings.target)


def plan_low_rank(
    planned: WidthPlan, model: nn.Module, batches: Sequence[Any], settings: Prune
) -> tuple[WidthPlan, ...]:
    """Return plans whose units reach a power of the target's share, and layers to split for the rest.

    With the root (``OF_UNITS``) units and ranks save the same share each. Errors on other items of a language
    model of bytes at half, units alone and to 1.25, 1.5 and 2 times that: 0.078, 0.038, 0.026, 0.047; of a
    ViT at a quarter, 1, 1.4 and 2 times: 0.073, 0.047, 0.036. Convolutions do better with more units.

    Cost: as ``observe_outputs``, on the dense model.
    """
    assert isinstance(settings.target, Macs | Params), "low_rank_faults refuses another target"
    opened_model, _ = open_layers(model, planned.prunability.opened)
    names = layers_to_split(opened_model, take_items(batches[0], torch.arange(2)), settings)
    outputs = observe_outputs(opened_model, batches, names)
    plans = []
    for power in OF_UNITS:
        target = type(settings.target)(settings.target.share**power)
        widths = _choose(planned.costs, planned.evidence, replace(settings, target=target), planned.groups)
        plans.append(replace(planned, widths=widths, target=target, outputs=outputs))
    return tuple(plans)


def plan_otherwise(planned: WidthPlan, settings: Prune, allocation: Allocation) -> WidthPlan:
    """Return a plan by ``greedy`` with the widths of another allocation, which needs no other evidence."""
    other = replace(settings, widths=allocation)
    return replace(planned, widths=_choose(planned.costs, planned.evidence, other, planned.groups))


def _choose(
    costs: CostModel,
    evidence: Evidence,
    settings: Prune,
    groups: Sequence[Group],
    *,
    measured: Callable[[Sequence[int]], float] | None = None,
    fixed: Callable[[], Sequence[CheckedLayer]] = tuple,
) -> tuple[int, ...]:
    """Return the width of each group, one for all that are tied."""
    classes = Classes.of(groups)
    widths = choose_widths(
        classes.costs(costs),
        classes.evidence(evidence),
        settings,
        names=classes.names,
        measured=None if measured is None else lambda widths: measured(classes.spread(widths)),
        fixed=fixed,
    )
    return classes.spread(widths)


def _gather_evidence(
    statistics: CalibrationStatistics,
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    settings: Prune,
    orders: Mapping[str, Selection],
    peers: AbstractPeers,
) -> Evidence:
    """Return the figures that the choice of widths needs.

    A head's width has no consumer: its loudness is the mean of the other groups'.
    """
    needed, energies = needed_evidence(settings), statistics.energies

    def in_order(of_heads: Callable[[Tensor], Any], of_units: Callable[[Group], Any]) -> list[Any]:
        return [
            of_heads(energies[group.name]) if group.name in energies else of_units(group) for group in groups
        ]

    if "ranks" in needed:
        return Evidence(ranks=in_order(score_rank, lambda group: statistics.effective_rank(model, group)))
    if "residuals" in needed:
        worth = {name: each.loudness for name, each in orders.items()}
        if settings.widths == "greedy" and statistics.moments:
            worth = _measured_worth(statistics, model, batches, groups, orders, peers)
        usual = fmean(worth.values()) if worth else 1.0
        return Evidence(
            residuals=in_order(residual_shares, lambda group: orders[group.name].residual_shares),
            loudness=in_order(lambda _: usual, lambda group: worth[group.name]),
        )
    if "scores" in needed:
        of_units = statistics.scores or score_units(
            model, batches[:1], [group for group in groups if group.consumers], "magnitude"
        )
        return Evidence(scores=in_order(lambda energy_d: energy_d, lambda group: of_units[group.name]))
    return Evidence()


def _measured_worth(
    statistics: CalibrationStatistics,
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Group],
    orders: Mapping[str, Selection],
    peers: AbstractPeers,
) -> dict[str, float]:
    """Return what each group is worth, between what its slopes say and what a cut of it alone measured.

    Measured, the curve of losses, −ln(1 − residual share) · √worth (``widths``), goes through the error that
    the cut made; groups of one class share it as their slopes have it. Slopes hold for small errors, one
    measurement for one width. Errors on other items at a half and a quarter of the operations, two draws:
    of slopes alone, of both, of the measurement alone ViT 0.053, 0.037, 0.033; CREPE 0.115, 0.112, 0.113;
    ResNet-8 0.089, 0.089, 0.088; a CNN on Fashion-MNIST 0.016, 0.017, 0.018.
    """
    classes = Classes.of(groups)
    members: dict[str, list[Group]] = {}
    for group, rank in zip(groups, classes.of_group, strict=True):
        if group.name in orders and group.width > 1:
            members.setdefault(classes.names[rank], []).append(group)
    cut = {each.name: _first_that_matters(orders[each.name]) for own in members.values() for each in own}
    errors = measure_cuts(
        model,
        batches,
        {name: [(each, cut[each.name].units) for each in own] for name, own in members.items()},
        statistics.moments,
        peers,
    )
    slopes = {name: each.loudness for name, each in orders.items()}
    measured = dict(slopes)
    for name, own in members.items():
        whole = sum(slopes[each.name] for each in own)
        shares = {each.name: slopes[each.name] / whole if whole > 0 else 1 / len(own) for each in own}
        residual = sum(share * cut[each].residual_shares[-1] for each, share in shares.items())
        loss = -math.log1p(-min(max(residual, TINY), 1.0 - TINY))
        measured |= {each: share * (errors[name] / loss) ** 2 for each, share in shares.items()}
    return _geometric_means(slopes, measured)


def _geometric_means(slopes: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Return √(a · b) of two figures of each group, both over their largest, neither less than ``LEAST``."""

    def share(of: Mapping[str, float], name: str) -> float:
        return max(LEAST, of[name] / (max(of.values()) or 1.0))

    return {name: math.sqrt(share(slopes, name) * share(measured, name)) for name in slopes}


def _first_that_matters(order: Selection) -> Selection:
    """Return the first half of the units, or fewer until what they leave out is more than little."""
    most = len(order.units) // 2
    enough = (kept for kept in range(most, 0, -1) if order.residual_shares[kept - 1] >= LITTLE)
    return order.first(next(enough, 1))


def choose_units(planned: WidthPlan, model: nn.Module, settings: Prune) -> dict[str, Selection]:
    """Return the units that each narrowed group keeps, chosen on the dense model; heads are turned in it."""
    statistics = planned.statistics
    chosen: dict[str, Selection] = {}
    for group in planned.narrowed:
        count = planned.width_of[group.name]
        if group.name in planned.given:
            chosen[group.name] = _rated(statistics, model, group, tuple(planned.given[group.name]))
        elif group.name in statistics.energies:
            shares = residual_shares(statistics.energies[group.name])
            chosen[group.name] = Selection(tuple(range(count)), shares[:count])
        elif group.name in planned.orders:
            chosen[group.name] = planned.orders[group.name].first(count)
        else:
            chosen[group.name] = _select(statistics, model, group, count, settings)
    return chosen


def order_units(planned: WidthPlan, model: nn.Module, settings: Prune) -> WidthPlan:
    """Return the plan with all units of every group in order, and without moments: no width needs them now.

    Cost: the solutions of groups that have no order yet.
    """
    like, _ = open_layers(model, planned.prunability.opened)
    turn_heads(like, planned.groups, planned.statistics.score_moments)
    others = (
        each
        for each in planned.groups
        if each.name not in planned.orders and each.name not in planned.statistics.energies
    )
    found = {each.name: _select(planned.statistics, like, each, each.width, settings) for each in others}
    statistics = replace(planned.statistics, moments={})
    return replace(planned, orders={**planned.orders, **found}, statistics=statistics)


def _select(
    statistics: CalibrationStatistics, model: nn.Module, group: Group, count: int, settings: Prune
) -> Selection:
    """Select units by ``settings.units``, with the residual shares of these where moments were taken."""
    if statistics.scores is not None:
        return _rated(statistics, model, group, highest(statistics.scores[group.name], count))
    if settings.units == "pivoted-cholesky":
        picked = statistics.select_by_cholesky(model, group, count).units
        return _rated(statistics, model, group, picked)
    return statistics.select(model, group, count)


def _rated(
    statistics: CalibrationStatistics, model: nn.Module, group: Group, picked: tuple[int, ...]
) -> Selection:
    if not statistics.moments:
        return Selection(picked, ())
    return statistics.select(model, group, len(picked), picked=picked)
