"""What is known of each group before widths are chosen, and the units that are chosen before the walk.

Shape letters: e inputs of a layer, d dimensions of a head.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from tpsprune.numerics.forward import call_model, evaluation_mode
from tpsprune.numerics.moments import Moments, MomentSums
from tpsprune.numerics.objective import CROSS_ENTROPY, Objective
from tpsprune.numerics.trees import item_count
from tpsprune.pruning.calibration import Look, check_probe, look
from tpsprune.pruning.groups import Group
from tpsprune.pruning.head_width import ScoreMoments, rank_of, residual_shares, rotated, second_moment
from tpsprune.pruning.importances import highest, importances
from tpsprune.pruning.layers import channels_first, is_mixer
from tpsprune.pruning.lockstep import hooked
from tpsprune.pruning.rows import draw, wanted
from tpsprune.pruning.selection import Selection
from tpsprune.pruning.widths import Evidence, needs
from tpsprune.recipe.prune import Prune

__all__ = ["Known", "known", "turned"]

OURS: Final = ("interpolation", "pivoted-cholesky")
"""Units that are chosen by what they say; for others the model need not be looked at."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What was seen of the dense model; scores of units, where they are somebody else's; heads' spectra.

    ``moments`` are those of what q and k of each group of kind "head-width" are fed, ``energies`` what each
    dimension of its heads carries once they are turned (``turned``).
    """

    seen: Look
    scores: Mapping[str, Tensor] | None
    moments: Mapping[str, ScoreMoments | None]
    energies: Mapping[str, Tensor]

    def evidence(
        self, model: nn.Module, probe: Sequence[Any], groups: Sequence[Group], settings: Prune
    ) -> Evidence:
        """Return what the choice of widths needs to know.

        A head's width has no consumer to be heard by: it counts as much as the other groups do on average.
        """
        asked = needs(settings)
        ranks = residuals = loudness = of_scores = None
        if "ranks" in asked:
            ranks = [
                rank_of(self.energies[group.name])
                if group.name in self.energies
                else self.seen.effective_rank(model, group)
                for group in groups
            ]
        if "residuals" in asked:
            found = {
                group.name: self.seen.selection(model, group, group.width)
                for group in groups
                if group.name not in self.energies
            }
            residuals = [
                found[group.name].residual_shares
                if group.name in found
                else residual_shares(self.energies[group.name])
                for group in groups
            ]
            usual = statistics.fmean(each.loudness for each in found.values()) if found else 1.0
            loudness = [found[group.name].loudness if group.name in found else usual for group in groups]
        if "scores" in asked:
            scores = self.scores or importances(model, probe[0], _heard(groups), "magnitude")
            of_scores = [
                self.energies[group.name] if group.name in self.energies else scores[group.name]
                for group in groups
            ]
        return Evidence(ranks=ranks, residuals=residuals, loudness=loudness, scores=of_scores)

    def chosen(
        self, model: nn.Module, groups: Sequence[Group], widths: Mapping[str, int], settings: Prune
    ) -> dict[str, Selection]:
        """Return the units that are chosen before the walk: all of them, unless the walk is to choose."""
        answer: dict[str, Selection] = {}
        for group in groups:
            count = widths[group.name]
            if group.name in self.energies:
                shares = residual_shares(self.energies[group.name])
                answer[group.name] = Selection(tuple(range(count)), shares[:count])
            elif settings.units == "pivoted-cholesky":
                picked = self.seen.cholesky(model, group, count).units
                answer[group.name] = self.seen.selection(model, group, count, given=picked)
            elif self.scores is not None:
                picked = highest(self.scores[group.name], count)
                answer[group.name] = (
                    self.seen.selection(model, group, count, given=picked)
                    if self.seen.moments
                    else Selection(picked, ())
                )
            elif not settings.fold:
                # Without a fold nothing holds the cut model to the dense one: units are judged there.
                answer[group.name] = self.seen.selection(model, group, count)
        return answer


def known(
    model: nn.Module,
    probe: Sequence[Any],
    groups: Sequence[Group],
    settings: Prune,
    *,
    labels: Sequence[Tensor] | None,
    seed: int,
    objective: Objective = CROSS_ENTROPY,
) -> Known:
    """Look at the dense model as far as the settings ask for it.

    Args:
        model: its attention open; the heads of groups of kind "head-width" are turned, in place.
        probe: prepared batches.
        groups: of the model.
        settings: what is asked for.
        labels: for ``units = "taylor"``.
        seed: for ``units = "random"``.
        objective: what ``units = "taylor"`` takes the gradient of.

    Raises:
        PruneError: the probe or the model's outputs on it are not finite; see ``baselines.importances``.
    """
    wide = [group for group in groups if group.scores is not None]
    moments = _score_moments(model, probe, wide) if wide else {}
    energies = turned(model, wide, moments)
    seen = Look()
    if settings.fold or settings.units in OURS or needs(settings) & {"ranks", "residuals"}:
        seen = look(
            model,
            probe,
            _heard(groups),
            [name for name, module in model.named_modules() if name and is_mixer(module)],
        )
    else:
        check_probe(model, probe)
    scores = None
    if settings.units not in OURS:
        scores = importances(
            model,
            probe[0],
            _heard(groups),
            settings.units,
            labels=labels,
            probe=probe,
            seed=seed,
            objective=objective,
        )
    return Known(seen, scores, moments, energies)


def turned(
    model: nn.Module, groups: Sequence[Group], moments: Mapping[str, ScoreMoments | None]
) -> dict[str, Tensor]:
    """Turn the heads of groups of kind "head-width", in place; return what each dimension carries."""
    return {
        group.name: rotated(model, group, moments[group.name]) for group in groups if group.scores is not None
    }


def _heard(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.consumers]


def _score_moments(
    model: nn.Module, probe: Sequence[Any], groups: Sequence[Group]
) -> dict[str, ScoreMoments | None]:
    """Return the second moments of what q and k are fed; none where they are convolutions."""
    names = {name for group in groups if group.scores for name in (group.scores.query, group.scores.key)}
    sums = {name: MomentSums() for name in names if not channels_first(model.get_submodule(name))}
    generator = torch.Generator().manual_seed(0)
    items = sum(map(item_count, probe))

    def see(name: str, given: Tensor) -> None:
        given_bse = given.reshape(len(given), -1, given.shape[-1])
        chosen_s = draw(given_bse.shape[1], wanted(given.shape[-1], items), generator)
        sums[name].add(given_bse[:, chosen_s.to(given.device)].flatten(0, 1))

    with torch.no_grad(), evaluation_mode(model), hooked(model, sums, see):
        for batch in probe:
            call_model(model, batch)
    found = {name: _second(each.moments()) for name, each in sums.items() if each.rows}
    return {
        group.name: ScoreMoments(found[group.scores.query], found[group.scores.key])
        if group.scores and {group.scores.query, group.scores.key} <= found.keys()
        else None
        for group in groups
    }


def _second(moments: Moments) -> Tensor:
    return second_moment(moments.mean_n, moments.covariance_nn)
