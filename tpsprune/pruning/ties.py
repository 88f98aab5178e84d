"""Groups that have one width: the experts of a layer, which are held in one tensor.

Widths are chosen for classes, of one group each but for those that are tied. A class costs what its groups
cost together, and loses what they lose together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.groups import Group
from tpsprune.pruning.widths import Evidence


@final
@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a model's groups: their names, and the class of each group."""

    names: tuple[str, ...]
    of_group: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Classes:
        """Return the classes of ``groups``, in the order of their first groups."""
        names = list(dict.fromkeys(group.tied_to or group.name for group in groups))
        return cls(tuple(names), tuple(names.index(group.tied_to or group.name) for group in groups))

    def spread(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Return the width of each group, given that of each class."""
        return tuple(widths[rank] for rank in self.of_group)

    def costs(self, costs: CostModel) -> CostModel:
        """Return the costs as a function of the widths of the classes: all groups of one lose alike."""
        first = [self.of_group.index(rank) for rank in range(len(self.names))]
        member_gc = torch.nn.functional.one_hot(torch.tensor(self.of_group), len(self.names)).double()
        return replace(
            costs,
            widths=tuple(costs.widths[rank] for rank in first),
            kinds=tuple(costs.kinds[rank] for rank in first),
            multiples=tuple(costs.multiples[rank] for rank in first),
            elements_ag=costs.elements_ag @ member_gc,
        )

    def evidence(self, evidence: Evidence) -> Evidence:
        """Return the evidence of the classes.

        The loudness of several groups is their sum; residuals are means that count each as loud as it is;
        ranks are means, as are scores, from the highest of each group to the lowest.
        """
        members: list[list[int]] = [[] for _ in self.names]
        for group, rank in enumerate(self.of_group):
            members[rank].append(group)

        def residuals(groups: Sequence[int]) -> Sequence[float]:
            if len(groups) == 1:
                return evidence.residuals[groups[0]]
            loud_g = torch.tensor([evidence.loudness[each] if evidence.loudness else 1.0 for each in groups])
            loud_g = loud_g.double().clamp_min(1e-300)
            curves_gn = torch.tensor([list(evidence.residuals[each]) for each in groups], dtype=torch.float64)
            return ((loud_g / loud_g.sum()) @ curves_gn).tolist()

        def scores(groups: Sequence[int]) -> Tensor:
            if len(groups) == 1:
                return evidence.scores[groups[0]]
            return torch.stack(
                [evidence.scores[each].double().sort(descending=True).values for each in groups]
            ).mean(0)

        return Evidence(
            ranks=[sum(evidence.ranks[each] for each in groups) / len(groups) for groups in members]
            if evidence.ranks
            else (),
            residuals=[residuals(groups) for groups in members] if evidence.residuals else (),
            scores=[scores(groups) for groups in members] if evidence.scores else (),
            loudness=[sum(evidence.loudness[each] for each in groups) for groups in members]
            if evidence.loudness
            else (),
        )
