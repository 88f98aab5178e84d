"""A path never narrows as its level rises, begins at the least and ends at the dense widths."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tpsprune.numerics.forward import MacCount
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.groups import Group, Slice
from tpsprune.pruning.widths import (
    Bounds,
    Path,
    allocate_by_residual,
    allocate_by_score,
    allocate_greedily,
    allocate_in_proportion,
)


def chain(widths: tuple[int, ...]) -> CostModel:
    """A perceptron of three inputs, these hidden widths and two outputs."""
    sizes = (3, *widths, 2)
    shapes = {f"l{rank}.weight": (after, before) for rank, (before, after) in enumerate(pairwise(sizes))}
    groups = [
        Group(
            f"l{rank}",
            width,
            (f"l{rank}",),
            (),
            (),
            (Slice(f"l{rank}.weight", 0, 0, 1), Slice(f"l{rank + 1}.weight", 1, 0, 1)),
        )
        for rank, width in enumerate(widths)
    ]
    macs = {name.removesuffix(".weight"): a * b for name, (a, b) in shapes.items()}
    return CostModel.of_macs(groups, shapes, MacCount(sum(macs.values()), macs))


def bounds(widths: tuple[int, ...], least: int = 1, step: int = 1) -> Bounds:
    return Bounds((least,) * len(widths), widths, (step,) * len(widths))


def falling(width: int, power: float) -> list[float]:
    return [(1 - kept / width) ** power for kept in range(1, width + 1)]


def paths(widths: tuple[int, ...], own: Bounds, seed: int) -> dict[str, Path]:
    generator = torch.Generator().manual_seed(seed)
    residuals = [falling(width, 1.0 + rank) for rank, width in enumerate(widths)]
    scores = [torch.rand(width, generator=generator) for width in widths]
    return {
        "proportion": allocate_in_proportion([width / (rank + 1) for rank, width in enumerate(widths)], own),
        "level": allocate_by_residual(residuals, own),
        "greedy": allocate_greedily(residuals, chain(widths), own),
        "score": allocate_by_score(scores, own),
    }


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(5, 40), min_size=1, max_size=4).map(tuple),
    step=st.integers(1, 5),
    levels=st.lists(st.floats(0, 1), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_every_path_rises_from_the_least_to_the_dense_widths_in_whole_steps(
    widths: tuple[int, ...], step: int, levels: list[float], seed: int
) -> None:
    own = bounds(widths, least=min(step, 5), step=step)
    for name, path in paths(widths, own, seed).items():
        assert path(0.0) == own.least, name
        assert path(1.0) == widths, name
        taken = [path(level) for level in sorted(levels)]
        assert all(a <= b for low, high in pairwise(taken) for a, b in zip(low, high, strict=True)), name
        assert all(w % step == 0 or w == full for each in taken for w, full in zip(each, widths, strict=True))


def test_widths_in_proportion_keep_it_until_a_group_is_dense() -> None:
    path = allocate_in_proportion([10.0, 20.0], bounds((100, 100)))
    assert path(0.25) == (25, 50)
    assert path(0.75) == (75, 100)
    assert path(0.25) == allocate_in_proportion([1.0, 2.0], bounds((100, 100)))(0.25)


def test_one_residual_level_holds_for_all_groups() -> None:
    steep, flat = falling(20, 4.0), falling(20, 1.0)
    path = allocate_by_residual([steep, flat], bounds((20, 20)))
    for level in (0.15, 0.3, 0.45):
        a, b = path(level)
        assert a < b < 20
        # Neither could lose one more and stay at the level the other needs.
        assert steep[a - 2] > flat[b - 1] - 1e-6
        assert flat[b - 2] > steep[a - 1] - 1e-6


def test_units_that_cost_nothing_go_first_and_in_even_shares() -> None:
    free = [0.5, 1e-13, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    dear = falling(10, 0.5)
    path = allocate_by_residual([free, free, dear], bounds((10, 10, 10)))
    drawn = [path(level / 40) for level in range(41)]
    assert any(a == b == 5 and c == 10 for a, b, c in drawn)
    taken = allocate_greedily([free, dear], chain((10, 10)), bounds((10, 10)))
    assert (2, 10) in [taken(level / 40) for level in range(41)]


def test_greedy_takes_the_step_that_loses_least_for_what_it_saves() -> None:
    """Against the plain loop that tries every step on every group."""
    widths = (9, 14, 6)
    residuals = [falling(9, 1.5), falling(14, 2.0), falling(6, 1.2)]
    costs, own = chain(widths), bounds(widths)
    now = list(widths)
    met: list[tuple[int, ...]] = [widths]
    while tuple(now) != own.least:

        def price(rank: int) -> float:
            if now[rank] == 1:
                return float("inf")
            lower = [width - (each == rank) for each, width in enumerate(now)]
            curve = [1.0, *residuals[rank]]
            return (curve[now[rank] - 1] - curve[now[rank]]) / (costs.at(now) - costs.at(lower))

        cheapest = min(range(3), key=price)
        now[cheapest] -= 1
        met.append(tuple(now))
    path = allocate_greedily(residuals, costs, own)
    assert [path(1.0 - (step + 0.5) / len(met)) for step in range(len(met))] == met


@pytest.mark.parametrize("width", [2048, 8192])
def test_greedy_prices_each_group_once_for_each_of_about_a_hundred_steps_however_wide(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    widths, priced = (width,) * 6, []
    at_each = CostModel.at_each

    def counted(costs: CostModel, widths_ng: torch.Tensor) -> torch.Tensor:
        priced.append(len(widths_ng))
        return at_each(costs, widths_ng)

    monkeypatch.setattr(CostModel, "at_each", counted)
    allocate_greedily(
        [falling(width, 1.0 + rank / 25) for rank in range(6)], chain(widths), bounds(widths, 2)
    )
    assert set(priced) == {1 + 6}
    assert 6 * 90 < len(priced) <= 6 * 110


def test_equal_scores_are_counted_out_in_even_shares_not_swept_away_by_a_threshold() -> None:
    """torch-pruning's global threshold takes every unit that ties with it, and then cuts nothing at all."""
    path = allocate_by_score([torch.ones(16), torch.ones(16)], bounds((16, 16)))
    assert path(0.5) == (8, 8)
    assert path(0.75) == (12, 12)


def test_exact_zeros_are_no_more_units_than_were_asked_for() -> None:
    """A layer of zeros once fell from 16 to 4 when 5 % were to go."""
    zeros = torch.cat([torch.ones(4), torch.zeros(12)])
    widths = allocate_by_score([zeros, torch.rand(44) + 0.5], bounds((16, 44)))(0.95)
    assert widths == (13, 44)


def test_scores_are_compared_as_multiples_of_their_groups_mean() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert allocate_by_score([scores, 1000 * scores], bounds((4, 4)))(0.5) == (2, 2)


def test_a_group_whose_every_unit_is_weak_keeps_its_least() -> None:
    """torch-pruning skips such a group in silence and leaves it whole."""
    weak = torch.tensor([1e-9, 1e-9, 1e-9, 1.0])
    assert allocate_by_score([weak, torch.ones(12)], bounds((4, 12), least=2))(0.5)[0] == 2


@pytest.mark.parametrize(
    ("wish", "nearest"), [(0.0, 8), (11.9, 8), (12.0, 16), (19.9, 16), (20.0, 20), (99.0, 20)]
)
def test_a_wish_goes_to_the_nearest_width_that_is_allowed(wish: float, nearest: int) -> None:
    assert bounds((20,), least=8, step=8).nearest(0, wish) == nearest


def test_a_width_grows_by_a_step_to_the_dense_width_and_no_further() -> None:
    own = bounds((20,), least=8, step=8)
    assert [own.wider(0, width) for width in (8, 16, 20)] == [16, 20, 20]
    assert [own.no_less(0, width) for width in (1, 9, 16, 17, 20)] == [8, 16, 16, 20, 20]
