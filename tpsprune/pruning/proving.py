"""Candidates put to the trial, each in its ways, and what is accepted kept apart from one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tpsprune.pruning.bare import on_the_stream
from tpsprune.pruning.candidates import Candidate, Proposal
from tpsprune.pruning.groups import Group
from tpsprune.pruning.layout import element_index
from tpsprune.pruning.stand_ins import bare_parameters
from tpsprune.pruning.trial import joint_fault, trial_faults

__all__ = ["Proving"]


class Proving:
    """The groups accepted so far, and what proves another.

    Args:
        subject: the shaken model; it is cut and put back in place.
        batch: one batch that it is called on.
        tied: modules whose parameters are also those of another one, by name.
        spared: modules that the user wants left alone, with the pattern that says so.
    """

    def __init__(
        self, subject: nn.Module, batch: Any, tied: Mapping[str, str], spared: Mapping[str, str]
    ) -> None:
        self.accepted: dict[str, Group] = {}
        self._subject = subject
        self._batch = batch
        self._tied = tied
        self._spared = spared
        self._bare = bare_parameters(subject)
        self._shapes = {name: tensor.shape for name, tensor in subject.state_dict().items()}
        self._claims: dict[tuple[str, int], list[tuple[Group, Tensor]]] = defaultdict(list)

    def prove(self, found: Sequence[Candidate]) -> dict[str, str | Group]:
        """Accept of each candidate the first way that holds; return why the others do not, by group name.

        In place of a reason stands the accepted group that has some of the same units.
        """
        reasons: dict[str, str | Group] = {}
        rank = 0
        pending = list(found)
        while pending:
            tried = [proposal for each in pending for proposal in each.ways[rank]]
            outcome = self._try(tried)
            for proposal in tried:
                if reason := outcome[id(proposal)]:
                    reasons.setdefault(proposal.group.name, reason)
            rank += 1
            pending = [
                each
                for each in pending
                if len(each.ways) > rank and all(outcome[id(proposal)] for proposal in each.ways[rank - 1])
            ]
        told = {proposal.group.name for each in found for proposal in each.told}
        return {name: why for name, why in reasons.items() if name in told and name not in self.accepted}

    def clashes(self) -> dict[str, str]:
        """Give up the groups that cannot be cut along with those before them; return the reason for each."""
        groups = list(self.accepted.values())
        if not groups or not joint_fault(self._subject, groups, self._batch):
            return {}
        kept: list[Group] = []
        for group in groups:
            if joint_fault(self._subject, [*kept, group], self._batch):
                del self.accepted[group.name]
            else:
                kept.append(group)
        gone = [group.name for group in groups if group.name not in self.accepted]
        return dict.fromkeys(gone, "it cannot be cut along with the groups before it")

    def _try(self, proposals: Sequence[Proposal]) -> dict[int, str | Group]:
        """Return what speaks against each proposal, by its id: nothing where it is accepted now."""
        outcome: dict[int, str | Group] = {}
        trials: list[tuple[Proposal, Group]] = []
        for proposal in proposals:
            outcome[id(proposal)] = reason = self._structural_fault(proposal)
            if reason:
                continue
            # A group that others of this round share units with waits for none of them: the first is taken.
            self._claim(proposal.group)
            # A head's width has no stream of its own, and its basis was proved to be nobody else's.
            on_stream = proposal.group.scores is None
            extra = on_the_stream(self._subject, proposal.group, self._bare, self._batch) if on_stream else ()
            trials.append((proposal, replace(proposal.group, slices=(*proposal.group.slices, *extra))))
        faults = trial_faults(self._subject, [group for _, group in trials], self._batch)
        for (proposal, group), fault in zip(trials, faults, strict=True):
            outcome[id(proposal)] = fault
            if fault:
                self._release(proposal.group)
            else:
                self.accepted[group.name] = group
        return outcome

    def _structural_fault(self, proposal: Proposal) -> str | Group:
        group = proposal.group
        if asked := next((self._spared[name] for name in group.producers if name in self._spared), ""):
            return f"left alone as asked by {asked!r}"
        if proposal.fault:
            return proposal.fault
        touched = (*group.producers, *group.members, *(each.module for each in group.consumers))
        if shared := next((name for name in touched if name in self._tied), ""):
            return f"the weight of {shared} is also that of {self._tied[shared]}"
        if group.width == 1:
            return "it has one unit only"
        for place, mask in self._masks(group):
            for other, theirs in self._claims[place]:
                if bool((mask & theirs).any()) and not _crosswise(group, other):
                    return other
        return ""

    def _claim(self, group: Group) -> None:
        for place, mask in self._masks(group):
            self._claims[place].append((group, mask))

    def _release(self, group: Group) -> None:
        for place, _ in self._masks(group):
            self._claims[place] = [each for each in self._claims[place] if each[0] is not group]

    def _masks(self, group: Group) -> Iterator[tuple[tuple[str, int], Tensor]]:
        for each in group.slices:
            if each.tensor in self._shapes:
                mask = torch.zeros(self._shapes[each.tensor][each.axis], dtype=torch.bool)
                index = element_index(each, group.width).flatten()
                mask[index[index < len(mask)]] = True
                yield (each.tensor, each.axis), mask


def _crosswise(first: Group, second: Group) -> bool:
    """Return whether one has whole heads and the other the dimensions of just those: neither hides the other.

    Of every head that stays the same dimensions stay, so an axis cut by both keeps a product.
    """
    width, heads = (first, second) if first.scores is not None else (second, first)
    if width.scores is None or heads.kind != "heads":
        return False
    own = {each.tensor for each in width.slices}
    return all(
        not (each.offset % width.width or each.block % width.width or each.stride % width.width)
        for each in heads.slices
        if each.tensor in own and each.axis in {its.axis for its in width.slices if its.tensor == each.tensor}
    )
