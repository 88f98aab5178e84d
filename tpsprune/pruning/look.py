"""The look on disk: what was measured of a dense model, so that a further size needs no second look.

All units of every group in order, the figures that widths are chosen by, and what else a draw needs; not the
moments, which are a hundred times as large. Groups and costs are found anew: they take no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tpsprune.errors import ArtifactError
from tpsprune.pruning.calibration import CalibrationStatistics
from tpsprune.pruning.groups import Group
from tpsprune.pruning.head_width import ScoreMoments
from tpsprune.pruning.planning import WidthPlan, survey
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.widths import Evidence, needed_evidence
from tpsprune.recipe.prune import Prune
from tpsprune.records import FamilyLook, LookedGroup

T = TypeVar("T")


def pack_look(planned: WidthPlan) -> tuple[FamilyLook, dict[str, Tensor]]:
    """Return what was measured for a plan of ``plan_sizes``, as facts and tensors.

    ``units/G`` are the units of group G in order, ``shares/G`` what is left out after each, ``energies/G``,
    ``query/G`` and ``key/G`` those of head widths, ``scores/G`` importances, ``residuals/G`` what widths are
    chosen by.
    """
    statistics, evidence = planned.statistics, planned.evidence
    tensors: dict[str, Tensor] = {}
    for rank, group in enumerate(planned.groups):
        if order := planned.orders.get(group.name):
            tensors[f"units/{group.name}"] = torch.tensor(order.units)
            if order.residual_shares:
                tensors[f"shares/{group.name}"] = torch.tensor(order.residual_shares, dtype=torch.float64)
        if group.name in statistics.energies:
            tensors[f"energies/{group.name}"] = statistics.energies[group.name]
        if moments := statistics.score_moments.get(group.name):
            tensors |= {f"query/{group.name}": moments.query, f"key/{group.name}": moments.key}
        if evidence.scores:
            tensors[f"scores/{group.name}"] = evidence.scores[rank]
        if evidence.residuals:
            residuals_n = torch.tensor(list(evidence.residuals[rank]), dtype=torch.float64)
            tensors[f"residuals/{group.name}"] = residuals_n
    facts = FamilyLook(
        groups=tuple(
            LookedGroup(
                name=group.name,
                width=group.width,
                rows=statistics.rows.get(group.name),
                rank=evidence.ranks[place] if evidence.ranks else None,
                loudness=evidence.loudness[place] if evidence.loudness else None,
            )
            for place, group in enumerate(planned.groups)
        ),
        calls=dict(statistics.calls),
        item_bytes=statistics.item_bytes,
    )
    return facts, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def restore_look(
    model: nn.Module, batch: Any, settings: Prune, facts: FamilyLook, tensors: Mapping[str, Tensor]
) -> WidthPlan:
    """Return the plan that a look was packed of, with no widths chosen.

    Args:
        model: the dense model that was looked at.
        batch: of its inputs, to find its groups anew.
        settings: that it was looked at with; their target may be another of the same kind.
        facts: as packed.
        tensors: as packed.

    Raises:
        ArtifactError: they are not of this model.
        PruneError: as ``plan_widths``, of groups and target.

    Cost: the search for groups.
    """
    opened, prunability, count, costs = survey(model, batch, settings)
    groups = prunability.groups
    if [(each.name, each.width) for each in groups] != [(each.name, each.width) for each in facts.groups]:
        raise ArtifactError("the look is of a model of other groups")
    device = next(opened.parameters()).device
    here = {name: each.to(device) for name, each in tensors.items()}
    orders = dict(_orders(groups, here))
    moments = {
        each.name: ScoreMoments(here[f"query/{each.name}"], here[f"key/{each.name}"])
        if f"query/{each.name}" in here
        else None
        for each in groups
        if each.scores is not None
    }
    statistics = CalibrationStatistics(
        calls=facts.calls,
        item_bytes=facts.item_bytes,
        score_moments=moments,
        energies=_named("energies", [each for each in groups if each.scores is not None], here),
        rows={each.name: each.rows for each in facts.groups if each.rows is not None},
    )
    evidence = Evidence(
        ranks=_all([each.rank for each in facts.groups]),
        residuals=[each.tolist() for each in _listed("residuals", groups, here)],
        scores=_listed("scores", groups, here),
        loudness=_all([each.loudness for each in facts.groups]),
    )
    if missing := [each for each in needed_evidence(settings) if not getattr(evidence, each)]:
        raise ArtifactError(f"the look has no {missing[0]}, which the target {settings.target} reads")
    dense = tuple(each.width for each in groups)
    return WidthPlan(prunability, count, costs, statistics, evidence, settings.target, dense, orders)


def _orders(groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Selection]]:
    for group in groups:
        if group.scores is not None:
            continue
        units, shares = (tensors.get(f"{kind}/{group.name}") for kind in ("units", "shares"))
        if units is None or sorted(units.tolist()) != list(range(group.width)):
            raise ArtifactError(f"{group.name}: the look does not have each of its units once")
        if shares is not None and shares.shape != units.shape:
            raise ArtifactError(f"{group.name}: the look does not have a share for each of its units")
        yield group.name, Selection(tuple(units.tolist()), () if shares is None else tuple(shares.tolist()))


def _named(kind: str, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if missing := [each.name for each in groups if f"{kind}/{each.name}" not in tensors]:
        raise ArtifactError(f"{missing[0]}: the look does not have its {kind}")
    return {each.name: tensors[f"{kind}/{each.name}"] for each in groups}


def _listed(kind: str, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return a tensor of each group, or none at all."""
    if not any(name.startswith(f"{kind}/") for name in tensors):
        return []
    return list(_named(kind, groups, tensors).values())


def _all(values: Sequence[T | None]) -> list[T]:
    return [each for each in values if each is not None] if None not in values else []
