"""Study ``attention-width``: an attention layer at initialisation beside its law at infinite width.

Inputs whose Gram matrix is exactly K; queries, keys and values at initialisation are then Gaussian with that
covariance over the places. At infinite width the scores are jointly Gaussian, and the output Gaussian given
them: heavier-tailed than a Gaussian, the less so the more heads there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from tpsprune.numerics.small_samples import Interval, mean_interval
from tpsprune.recipe import Recipe
from tpsprune_studies.finding import Finding, Plan, Quantity, Ruling
from tpsprune_studies.setup import Setup, resize

PLACES: Final = 8
HEADS: Final = (1, 2, 8)
WIDTHS: Final = (4, 16, 64, 256)
DRAWS: Final = 120_000
AT_A_TIME: Final = 2000
GAUSSIAN: Final = 3.0
LENGTH: Final = 3.0
"""Squared, of a place over the square root of its numbers: as far as scores spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthTrial:
    """A layer: its heads, the width of one (0 is the infinite limit), and the seed of all draws."""

    heads: int
    width: int
    seed: int

    @property
    def arm(self) -> str:
        """What is compared."""
        return f"{self.heads} heads, width {self.width or 'infinite'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthTraining:
    """What was drawn: kurtosis (3 for a Gaussian) and variance of one output over all draws."""

    trial: WidthTrial
    kurtosis: float
    variance: float
    seconds: float = 0.0


TRAINING: Final = WidthTraining


def make_setup(recipe: Recipe, seeds: int | None, cap_steps: int | None, *, full: bool = False) -> Setup:
    """Return the settings of the study at that size; the cap is the number of draws."""
    return resize(Setup(recipe=recipe, seeds=6, cap_steps=DRAWS), seeds, cap_steps, full=full)


def plan(setup: Setup, done: Sequence[WidthTraining]) -> Plan:  # noqa: ARG001 -- all is known beforehand
    """Return every number of heads at every width and in the limit, on every seed."""
    return Plan(
        tuple(
            WidthTrial(heads=heads, width=width, seed=seed)
            for seed in setup.pair_seeds
            for heads in HEADS
            for width in (*WIDTHS, 0)
        )
    )


def run(setup: Setup, trial: WidthTrial) -> WidthTraining:
    """Draw so many layers, and read one output number of the last place."""
    torch.set_num_threads(setup.threads)
    generator = torch.Generator().manual_seed(trial.seed)
    root_ll = torch.linalg.cholesky(gram_of_inputs(PLACES))
    outputs = []
    for start in range(0, setup.cap_steps, AT_A_TIME):
        count = min(AT_A_TIME, setup.cap_steps - start)
        outputs.append(draw_outputs(root_ll, count, trial.heads, trial.width, generator))
    output_n = torch.cat(outputs).double()
    variance = float(output_n.square().mean())
    return WidthTraining(trial=trial, kurtosis=float(output_n.pow(4).mean()) / variance**2, variance=variance)


def gram_of_inputs(places: int) -> Tensor:
    """Return K (l, l): places are alike the nearer they lie, K_ij = 3 · 2^(−|i − j|)."""
    away_ll = torch.arange(places)[:, None] - torch.arange(places)
    return LENGTH * 0.5 ** away_ll.abs().float()


def draw_outputs(root_ll: Tensor, count: int, heads: int, width: int, generator: torch.Generator) -> Tensor:
    """Return one output number of the last place of each layer: H^(−1/2) Σ_h softmax(p_h) · v_h.

    With Q = L Z and K = L Z' of ``width`` columns p = q Kᵀ / √width; at width 0, the limit, p is Gaussian
    with E p_j p_k = K_ll K_jk. Values are Gaussian with covariance K = L Lᵀ.

    Source: "Infinite-width limit of a single attention layer" 2025 (arXiv 2506.00846).
    """
    shape = (count, heads)

    def normal(*inner: int) -> Tensor:
        return torch.randn(*shape, *inner, generator=generator)

    places = len(root_ll)
    if width:
        query_nhd = root_ll[-1] @ normal(places, width)
        keys_nhld = root_ll @ normal(places, width)
        scores_nhl = (keys_nhld @ query_nhd[..., None])[..., 0] / width**0.5
    else:
        scores_nhl = LENGTH**0.5 * normal(places) @ root_ll.T
    values_nhl = normal(places) @ root_ll.T
    mixed_nh = (scores_nhl.softmax(-1) * values_nhl).sum(-1)
    output_n: Tensor = mixed_nh.sum(1) / heads**0.5
    return output_n


def conclude(setup: Setup, done: Sequence[WidthTraining], machine: Mapping[str, Any]) -> Finding:
    """Return kurtosis by heads and width; the ruling is on the limit's tails and how near the widest is."""
    found = {
        (heads, width): mean_interval(
            each.kurtosis for each in done if (each.trial.heads, each.trial.width) == (heads, width)
        )
        for heads in HEADS
        for width in (*WIDTHS, 0)
    }
    return Finding(
        name="attention-width",
        setup=setup,
        machine=machine,
        ruling=_rule(found),
        quantities=tuple(
            Quantity(
                name=f"{heads} heads, width {width or 'infinite'}",
                predicted="above 3" if not width else "",
                measured=interval,
            )
            for (heads, width), interval in found.items()
        ),
        predicted_range=(GAUSSIAN, None),
        figures={"by_layer": found, "places": PLACES},
        trainings=tuple(done),
    )


def _rule(found: Mapping[tuple[int, int], Interval]) -> Ruling:
    """Return confirmed where the limit has heavy tails, less so with heads, and the widest layer meets it."""
    limits = [found[heads, 0] for heads in HEADS]
    heavy = all(each.low > GAUSSIAN for each in limits)
    falling = all(first.mean > second.mean for first, second in pairwise(limits))
    widest = [found[heads, WIDTHS[-1]] for heads in HEADS]
    met = all(
        wide.low <= limit.high and wide.high >= limit.low for wide, limit in zip(widest, limits, strict=True)
    )
    if heavy and falling and met:
        return Ruling.CONFIRMED
    return Ruling.REFUTED if any(each.high <= GAUSSIAN for each in limits) else Ruling.UNDECIDED
