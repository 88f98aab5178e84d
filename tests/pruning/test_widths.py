"""A path rises from the least to the dense widths, and the target is met within one unit of every group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpsprune.errors import PruneError
from tpsprune.numerics.macs import MacCount
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.groups import Group, Slice
from tpsprune.pruning.widths import (
    Bounds,
    Evidence,
    Path,
    allocate_by_residual,
    allocate_by_score,
    allocate_greedily,
    allocate_in_proportion,
    bounds_of,
    choose_widths,
    needed_evidence,
)
from tpsprune.recipe.prune import Latency, Macs, Params, Prune, Tolerance, Widths
from tpsprune.records import CheckedLayer


def chain(widths: tuple[int, ...]) -> CostModel:
    """A perceptron of three inputs, these hidden widths and two outputs."""
    sizes = (3, *widths, 2)
    shapes = {f"l{rank}.weight": (after, before) for rank, (before, after) in enumerate(pairwise(sizes))}
    groups = []
    for rank, width in enumerate(widths):
        slices = (Slice(f"l{rank}.weight", 0, 0, 1), Slice(f"l{rank + 1}.weight", 1, 0, 1))
        groups.append(Group(f"l{rank}", width, (f"l{rank}",), (), (), slices))
    macs = {name.removesuffix(".weight"): a * b for name, (a, b) in shapes.items()}
    return CostModel.of_macs(groups, shapes, MacCount(sum(macs.values()), macs))


def limits(widths: tuple[int, ...], least: int = 1, step: int = 1) -> Bounds:
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


@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(5, 40), min_size=1, max_size=4).map(tuple),
    step=st.integers(1, 5),
    levels=st.lists(st.floats(0, 1), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_every_path_rises_from_the_least_to_the_dense_widths_in_whole_steps(
    widths: tuple[int, ...], step: int, levels: list[float], seed: int
) -> None:
    own = limits(widths, least=min(step, 5), step=step)
    for name, path in paths(widths, own, seed).items():
        assert path(0.0) == own.least, name
        assert path(1.0) == widths, name
        taken = [path(level) for level in sorted(levels)]
        assert all(a <= b for low, high in pairwise(taken) for a, b in zip(low, high, strict=True)), name
        assert all(w % step == 0 or w == full for each in taken for w, full in zip(each, widths, strict=True))


def test_widths_in_proportion_keep_it_until_a_group_is_dense() -> None:
    path = allocate_in_proportion([10.0, 20.0], limits((100, 100)))
    assert path(0.25) == (25, 50)
    assert path(0.75) == (75, 100)
    assert path(0.25) == allocate_in_proportion([1.0, 2.0], limits((100, 100)))(0.25)


def test_one_residual_level_holds_for_all_groups() -> None:
    steep, flat = falling(20, 4.0), falling(20, 1.0)
    path = allocate_by_residual([steep, flat], limits((20, 20)))
    for level in (0.15, 0.3, 0.45):
        a, b = path(level)
        assert a < b < 20
        # Neither could lose one more and be at the level the other needs.
        assert steep[a - 2] > flat[b - 1] - 1e-6
        assert flat[b - 2] > steep[a - 1] - 1e-6


def test_units_that_cost_nothing_are_pruned_first_and_in_even_shares() -> None:
    free = [0.5, 1e-13, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    costly = falling(10, 0.5)
    path = allocate_by_residual([free, free, costly], limits((10, 10, 10)))
    drawn = [path(level / 40) for level in range(41)]
    assert any(a == b == 5 and c == 10 for a, b, c in drawn)
    taken = allocate_greedily([free, costly], chain((10, 10)), limits((10, 10)))
    assert (2, 10) in [taken(level / 40) for level in range(41)]


def test_greedy_takes_the_step_that_loses_least_for_what_it_saves() -> None:
    """Against a loop that tries every step on every group."""
    widths = (9, 14, 6)
    residuals = [falling(9, 1.5), falling(14, 2.0), falling(6, 1.2)]
    costs, own = chain(widths), limits(widths)
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
        [falling(width, 1.0 + rank / 25) for rank in range(6)], chain(widths), limits(widths, 2)
    )
    assert set(priced) == {1 + 6}
    assert 6 * 90 < len(priced) <= 6 * 110


Method = Literal["effective-rank", "equal-residual", "greedy", "uniform", "global-magnitude"]
METHODS: tuple[Method, ...] = get_args(Method)
NAMES = ("l0", "l1", "l2")


def costs(widths: tuple[int, ...] = (12, 16, 10), kinds: tuple[str, ...] | None = None) -> CostModel:
    whole = chain(widths)
    return whole if kinds is None else replace(whole, kinds=kinds)


def evidence(widths: Sequence[int], ranks: Sequence[float] | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(sum(widths))
    ranks = ranks or [width / (2.0 + rank) for rank, width in enumerate(widths)]
    residuals = [falling(width, 1.0 + rank) for rank, width in enumerate(widths)]
    return Evidence(ranks, residuals, [torch.rand(width, generator=generator) for width in widths])


def names(model: CostModel) -> list[str]:
    return [f"l{rank}" for rank in range(len(model.widths))]


def chosen(model: CostModel, settings_: Prune, found: Evidence | None = None, **more: Any) -> tuple[int, ...]:
    return choose_widths(model, found or evidence(model.widths), settings_, names=names(model), **more)


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0.15, 0.95),
    method=st.sampled_from(METHODS),
    ranks=st.lists(st.floats(1.0, 12.0), min_size=3, max_size=3),
    round_to=st.integers(1, 4),
    cap=st.floats(0.4, 0.99),
)
def test_every_method_meets_the_target_and_no_group_could_be_a_step_wider(
    share: float, method: Method, ranks: list[float], round_to: int, cap: float
) -> None:
    model = costs()
    settings_ = Prune(
        target=Macs(share), widths=method, round_to=round_to, min_width=1, max_pruning_ratio=cap
    )
    bounds = bounds_of(model, settings_, NAMES)
    if model.at(bounds.least) > share * model.total:
        with pytest.raises(PruneError, match="cannot be reached"):
            chosen(model, settings_)
        return
    found = chosen(model, settings_, evidence(model.widths, ranks))
    assert model.at(found) <= share * model.total * (1 + 1e-8)
    for rank, width in enumerate(found):
        assert bounds.least[rank] <= width <= model.widths[rank]
        assert width % round_to == 0 or width in (model.widths[rank], bounds.least[rank])
        wider = [*found[:rank], bounds.wider(rank, width), *found[rank + 1 :]]
        assert width == model.widths[rank] or model.at(wider) > share * model.total


def test_a_target_of_parameters_is_met_in_parameters() -> None:
    whole = costs()
    model = replace(whole, unit="parameters", total=whole.total + 100, constant=whole.constant + 100)
    found = chosen(model, Prune(target=Params(0.6), round_to=1))
    assert 0.5 * model.total < model.at(found) <= 0.6 * model.total


def test_what_is_left_over_may_grow_a_group_by_more_than_a_step() -> None:
    """Two groups of equal wish round up at once: what neither was given was once left lying."""
    model = costs()
    settings_ = Prune(
        widths="effective-rank", target=Macs(0.1875), min_width=1, round_to=1, max_pruning_ratio=0.99
    )
    spent = model.at(chosen(model, settings_, Evidence(ranks=[1.0, 1.0, 4.0])))
    assert 0.175 * model.total <= spent <= 0.1875 * model.total


def test_widths_follow_effective_ranks_in_proportion() -> None:
    by_rank = Prune(target=Macs(0.3), widths="effective-rank", round_to=1)
    a, b, c = chosen(costs((40, 40, 40)), by_rank, Evidence(ranks=(6.0, 12.0, 3.0)))
    assert b / a == pytest.approx(2.0, rel=0.1)
    assert a / c == pytest.approx(2.0, rel=0.15)


def test_uniform_widths_are_the_same_share_of_every_group() -> None:
    found = chosen(costs((40, 80, 20)), Prune(target=Macs(0.25), widths="uniform", round_to=1), Evidence())
    assert [width / dense for width, dense in zip(found, (40, 80, 20), strict=True)] == pytest.approx(
        [0.5] * 3, abs=0.04
    )


@given(share=st.floats(0.1, 0.95), round_to=st.sampled_from([1, 4]))
@settings(max_examples=40, deadline=None)
def test_uniform_widths_leave_groups_of_one_width_of_one_width(share: float, round_to: int) -> None:
    model = costs((40, 40, 20, 40))
    settings_ = Prune(
        target=Macs(share), widths="uniform", round_to=round_to, min_width=1, max_pruning_ratio=0.99
    )
    found = chosen(model, settings_, Evidence())
    assert found[0] == found[1] == found[3]
    bounds = bounds_of(model, settings_, names(model))
    for peers in ((0, 1, 3), (2,)):
        wider = [bounds.wider(rank, width) if rank in peers else width for rank, width in enumerate(found)]
        assert tuple(wider) == found or model.at(wider) > share * model.total


def test_a_group_that_loses_less_is_pruned_more_by_its_residuals() -> None:
    steep, flat = falling(30, 6.0), falling(30, 1.0)
    for method in ("equal-residual", "greedy"):
        found = chosen(
            costs((30, 30)), Prune(target=Macs(0.5), widths=method), Evidence(residuals=[flat, steep])
        )
        assert found[0] > 2 * found[1]


@pytest.mark.parametrize("method", METHODS)
def test_only_the_evidence_that_a_method_and_a_target_need_is_read(method: Method) -> None:
    assert needed_evidence(Prune(target=Tolerance(0.01), widths=method)) == {"residuals"}
    assert needed_evidence(Prune(target=Widths({"l0": 3}), widths=method)) == set()
    settings_ = Prune(target=Macs(0.5), widths=method)
    full = evidence((12, 16, 10))
    held = Evidence(**{name: getattr(full, name) for name in needed_evidence(settings_)})
    assert chosen(costs(), settings_, held) == chosen(costs(), settings_, full)


def test_the_cap_is_a_cap_whatever_the_scores_say() -> None:
    """torch-pruning's global pruning kept 1 of 16 under a cap of 0.7."""
    model = costs((16, 16, 32))
    scores = [torch.full((16,), 1e-6), torch.rand(16) + 1, torch.rand(32) + 1]
    scores[0][0] = 1.0
    settings_ = Prune(target=Macs(0.2), widths="global-magnitude", max_pruning_ratio=0.7)
    assert chosen(model, settings_, Evidence(scores=scores))[0] >= 5


def test_widths_by_name_are_taken_as_they_are_and_the_others_are_dense() -> None:
    settings_ = Prune(target=Widths({"l1": 1}), round_to=8, min_width=8)
    assert chosen(costs(), settings_, Evidence()) == (12, 1, 10)


def test_widths_that_were_fast_only_once_are_not_taken() -> None:
    lucky: set[tuple[int, ...]] = set()

    def measured(widths: Sequence[int]) -> float:
        share = sum(widths) / 38
        if 0.5 < share < 0.7 and tuple(widths) not in lucky:
            lucky.add(tuple(widths))
            return 0.4
        return share

    found = chosen(costs((12, 16, 10)), Prune(target=Latency(0.5)), measured=measured)
    assert sum(found) / 38 <= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_wider_target_never_narrows_a_group_by_more_than_what_was_left_over(method: Method) -> None:
    model = costs((40, 60, 30))
    found = [
        chosen(model, Prune(target=Macs(share), widths=method, round_to=1)) for share in (0.2, 0.4, 0.6, 0.8)
    ]
    assert all(a <= b + 4 for low, high in pairwise(found) for a, b in zip(low, high, strict=True))


ONES, FOUR = torch.ones(16), torch.tensor([4.0, 3.0, 2.0, 1.0])
WEAK = torch.tensor([1e-9, 1e-9, 1e-9, 1.0])


@pytest.mark.parametrize(
    ("scores", "least", "level", "widths"),
    [
        # torch-pruning's global threshold takes every unit that ties with it, and then prunes nothing at all.
        ([ONES, ONES], 1, 0.5, (8, 8)),
        ([ONES, ONES], 1, 0.75, (12, 12)),
        # A layer of zeros once fell from 16 to 4 when 5 % were to be pruned.
        ([torch.cat([ONES[:4], torch.zeros(12)]), torch.linspace(0.5, 1.5, 44)], 1, 0.95, (13, 44)),
        # Scores count as multiples of their group's mean.
        ([FOUR, 1000 * FOUR], 1, 0.5, (2, 2)),
        # torch-pruning skips a group whose every unit is weak in silence and leaves it whole.
        ([WEAK, torch.ones(12)], 2, 0.5, (2, 7)),
    ],
)
def test_the_best_scores_are_counted_out(scores, least: int, level: float, widths: tuple[int, ...]) -> None:
    assert allocate_by_score(scores, limits(tuple(map(len, scores)), least=least))(level) == widths


def test_bounds_give_the_nearest_the_least_and_the_next_allowed_width() -> None:
    own = limits((20,), least=8, step=8)
    wishes = [(0.0, 8), (11.9, 8), (12.0, 16), (19.9, 16), (20.0, 20), (99.0, 20)]
    assert [own.nearest(0, wish) for wish, _ in wishes] == [nearest for _, nearest in wishes]
    assert [own.wider(0, width) for width in (8, 16, 20)] == [16, 20, 20]
    assert [own.no_less(0, width) for width in (1, 9, 16, 17, 20)] == [8, 16, 16, 20, 20]


def test_bounds_follow_the_last_cap_that_matches_whole_steps_and_the_kind_of_group() -> None:
    capped = Prune(max_pruning_ratios={"l*": 0.5, "l2": 0.9}, min_width=1, round_to=1)
    assert bounds_of(costs((10, 20, 30)), capped, NAMES).least == (5, 10, 3)
    heads = bounds_of(costs((24, 4, 6), ("units", "heads", "blocks")), Prune(round_to=8, min_width=8), NAMES)
    assert (heads.steps, heads.least) == ((8, 1, 1), (8, 1, 1))
    model = costs((24, 32, 20))
    stepped = Prune(target=Macs(0.5), widths="effective-rank", round_to=8, min_width=8, max_pruning_ratio=0.8)
    found = chosen(model, stepped, Evidence(ranks=(1.0, 30.0, 2.0)))
    assert all(width % 8 == 0 or width == dense for width, dense in zip(found, model.widths, strict=True))
    assert bounds_of(model, stepped, NAMES).least == (8, 8, 8)


def test_the_least_that_is_in_reach_is_reached() -> None:
    model = costs()
    least = bounds_of(model, Prune(), NAMES).least
    assert chosen(model, Prune(target=Macs(model.at(least) / model.total))) == least


@pytest.mark.parametrize("dense", [4, 8, 12, 16, 30, 32, 100])
def test_auto_rounds_to_eight_where_a_layer_is_wide_enough_for_it(dense: int) -> None:
    model = costs((dense, dense, dense))
    found = chosen(model, Prune(target=Macs(0.5), widths="effective-rank"))
    step = next(each for each in (8, 4, 2, 1) if each == 1 or dense >= 4 * each)
    assert all(width % step == 0 or width == dense for width in found)
    assert model.at(found) <= 0.5 * model.total


@given(share=st.floats(0.02, 0.98), dense=st.tuples(*[st.integers(2, 70)] * 3))
@settings(deadline=None, max_examples=60)
def test_auto_reaches_whatever_single_units_reach(share: float, dense: tuple[int, int, int]) -> None:
    model = costs(dense)
    by_one = Prune(target=Macs(share), widths="effective-rank", round_to=1)
    try:
        chosen(model, by_one)
    except PruneError:
        with pytest.raises(PruneError):
            chosen(model, replace(by_one, round_to="auto"))
    else:
        assert model.at(chosen(model, replace(by_one, round_to="auto"))) <= share * model.total * (1 + 1e-9)


FIXED = replace(costs(), constant=400.0, total=costs().total + 400)
FIXED_LAYERS = [
    CheckedLayer(name=name, kind="", parameters=1, macs=macs, macs_share=0.0, fate="stays", reason=reason)
    for name, macs, reason in (
        *(("stem", 60, "excluded"), ("lstm", 240, "recurrent")),
        *(("head", 100, "classes"), ("tail", 40, "small"), ("bias", 0, "free")),
    )
]


@pytest.mark.parametrize(
    ("model", "settings_", "message"),
    [
        (
            costs(),
            Prune(target=Macs(0.01), max_pruning_ratios={"l0": 0.5}),
            r"prune\.target macs=0\.01 cannot be reached: with min_width 2, max_pruning_ratio 0\.95, l0 0\.5 "
            r"and round_to auto the least is 0\.\d{3}",
        ),
        (
            FIXED,
            Prune(target=Macs(0.1)),
            r"because 50% of the multiply-accumulates lie in layers that cannot be pruned: "
            r"lstm 30% \(recurrent\), head 12% \(classes\), stem 7% \(excluded\)$",
        ),
        (
            FIXED,
            Prune(target=Macs(0.55), min_width=8, round_to=1),
            # Units of l1 read 8 and are read by 8: 128 of 808.
            r"because 50% .*\(excluded\); at those widths most lies in l1 15\.8% \(8 of 16 units\), "
            r"l0 10\.9% \(8 of 12 units\), l2 9\.9% \(8 of 10 units\): lower those, or raise the target$",
        ),
        (costs(), Prune(target=Latency(0.3)), r"latency=0.3 cannot be reached.*least is 0.420 as measured"),
        (costs(), Prune(max_pruning_ratios={"l22": 0.5}), r"'l22' matches no group .*'l2'.*l0, l1, l2"),
        (
            costs(),
            Prune(target=Widths({"l00": 3, "l1": 17, "l2": 10, "zz": 1})),
            r"^prune\.target\.widths: 3 faults:"
            r"\n  'l00' is no group that can be pruned \(did you mean 'l0'\?\)"
            r"\n  'l1' can keep 1 to 16 units \(found 17\)"
            r"\n  'zz' is no group that can be pruned; groups are l0, l1, l2$",
        ),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_can(
    model: CostModel, settings_: Prune, message: str
) -> None:
    with pytest.raises(PruneError, match=message):
        chosen(model, settings_, measured=lambda _: 0.42, fixed=lambda: FIXED_LAYERS)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_a_tolerance_keeps_the_fewest_units_that_lose_no_more(tolerance: float) -> None:
    residuals = [falling(width, 2.0) for width in (12, 16, 10)]
    found = chosen(
        costs(), Prune(target=Tolerance(tolerance), min_width=1, round_to=1), Evidence(residuals=residuals)
    )
    for width, curve in zip(found, residuals, strict=True):
        assert curve[width - 1] <= tolerance < curve[width - 2]
    stepped, curves = Prune(target=Tolerance(0.1), round_to=8, min_width=8), [falling(20, 2.0), [0.0] * 20]
    assert chosen(costs((20, 20)), stepped, Evidence(residuals=curves)) == (16, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_latency_is_met_by_few_measurements_and_not_by_what_is_counted(method: Method) -> None:
    """A machine on which only the widest group takes time, in steps of four units."""
    model, measured_at = costs((12, 16, 10)), []

    def measured(widths: Sequence[int]) -> float:
        measured_at.append(widths)
        return 0.2 + 0.8 * -(-widths[1] // 4) / 4

    found = chosen(model, Prune(target=Latency(0.65), widths=method), measured=measured)
    assert len(measured_at) <= 11
    assert measured(found) <= 0.65
    assert measured((12, found[1] + 4, 10)) > 0.65
