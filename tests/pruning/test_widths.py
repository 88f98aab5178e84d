"""The target is met within one unit of every group, or the reason is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pruning.test_allocate import chain, falling
from tpsprune.errors import PruneError
from tpsprune.pruning.costs import CostModel
from tpsprune.pruning.widths import Evidence, bounds_of, check_widths, choose_widths, needed_evidence
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Latency, Macs, Params, Tolerance, Widths

Method = Literal["effective-rank", "equal-residual", "greedy", "uniform", "global-magnitude"]
METHODS: tuple[Method, ...] = get_args(Method)
NAMES = ("l0", "l1", "l2")


def costs(widths: tuple[int, ...] = (12, 16, 10), kinds: tuple[str, ...] | None = None) -> CostModel:
    whole = chain(widths)
    return whole if kinds is None else replace(whole, kinds=kinds)


def evidence(widths: Sequence[int], ranks: Sequence[float] | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(sum(widths))
    return Evidence(
        ranks if ranks is not None else [width / (2.0 + rank) for rank, width in enumerate(widths)],
        [falling(width, 1.0 + rank) for rank, width in enumerate(widths)],
        [torch.rand(width, generator=generator) for width in widths],
    )


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
    settings_ = Prune(target=Macs(share), widths=method, round_to=round_to, min_width=1, max_cut_share=cap)
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
    found = chosen(model, Prune(target=Params(0.6)))
    assert 0.5 * model.total < model.at(found) <= 0.6 * model.total


def test_what_is_left_over_may_grow_a_group_by_more_than_a_step() -> None:
    """Two groups of equal wish round up at once: what neither was given was once left lying."""
    model = costs()
    settings_ = Prune(widths="effective-rank", target=Macs(0.1875), min_width=1, max_cut_share=0.99)
    spent = model.at(chosen(model, settings_, Evidence(ranks=[1.0, 1.0, 4.0])))
    assert 0.175 * model.total <= spent <= 0.1875 * model.total


def test_widths_follow_effective_ranks_in_proportion() -> None:
    a, b, c = chosen(
        costs((40, 40, 40)),
        Prune(target=Macs(0.3), widths="effective-rank"),
        Evidence(ranks=(6.0, 12.0, 3.0)),
    )
    assert b / a == pytest.approx(2.0, rel=0.1)
    assert a / c == pytest.approx(2.0, rel=0.15)


def test_a_uniform_cut_keeps_the_same_share_of_every_group() -> None:
    found = chosen(costs((40, 80, 20)), Prune(target=Macs(0.25), widths="uniform"), Evidence())
    assert [width / dense for width, dense in zip(found, (40, 80, 20), strict=True)] == pytest.approx(
        [0.5] * 3, abs=0.04
    )


@given(share=st.floats(0.1, 0.95), round_to=st.sampled_from([1, 4]))
@settings(max_examples=40, deadline=None)
def test_a_uniform_cut_leaves_groups_of_one_width_of_one_width(share: float, round_to: int) -> None:
    model = costs((40, 40, 20, 40))
    settings_ = Prune(
        target=Macs(share), widths="uniform", round_to=round_to, min_width=1, max_cut_share=0.99
    )
    found = chosen(model, settings_, Evidence())
    assert found[0] == found[1] == found[3]
    bounds = bounds_of(model, settings_, names(model))
    for peers in ((0, 1, 3), (2,)):
        wider = [bounds.wider(rank, width) if rank in peers else width for rank, width in enumerate(found)]
        assert tuple(wider) == found or model.at(wider) > share * model.total


def test_a_group_that_loses_less_is_cut_more_by_its_residuals() -> None:
    steep, flat = falling(30, 6.0), falling(30, 1.0)
    for method in ("equal-residual", "greedy"):
        found = chosen(
            costs((30, 30)), Prune(target=Macs(0.5), widths=method), Evidence(residuals=[flat, steep])
        )
        assert found[0] > 2 * found[1]


@pytest.mark.parametrize("method", METHODS)
def test_only_the_evidence_that_a_method_needs_is_read(method: Method) -> None:
    settings_ = Prune(target=Macs(0.5), widths=method)
    full = evidence((12, 16, 10))
    held = Evidence(**{name: getattr(full, name) for name in needed_evidence(settings_)})
    assert chosen(costs(), settings_, held) == chosen(costs(), settings_, full)


def test_targets_of_other_kinds_need_their_own_evidence() -> None:
    assert needed_evidence(Prune(target=Tolerance(0.01))) == {"residuals"}
    assert needed_evidence(Prune(target=Widths({"l0": 3}), widths="greedy")) == set()
    assert needed_evidence(Prune(target=Latency(0.5))) == {"residuals"}


def test_the_cap_is_a_cap_whatever_the_scores_say() -> None:
    """torch-pruning's global cut went to 1 of 16 under a cap of 0.7."""
    model = costs((16, 16, 32))
    scores = [torch.full((16,), 1e-6), torch.rand(16) + 1, torch.rand(32) + 1]
    scores[0][0] = 1.0
    settings_ = Prune(target=Macs(0.2), widths="global-magnitude", max_cut_share=0.7)
    assert chosen(model, settings_, Evidence(scores=scores))[0] >= 5


def test_a_groups_own_cap_is_that_of_the_last_pattern_that_matches() -> None:
    caps = {"l*": 0.5, "l2": 0.9}
    settings_ = Prune(max_cut_shares=caps, min_width=1)
    assert bounds_of(costs((10, 20, 30)), settings_, NAMES).least == (5, 10, 3)


def test_a_cap_for_a_group_that_is_not_there_names_those_that_are() -> None:
    settings_ = Prune(max_cut_shares={"l22": 0.5})
    with pytest.raises(PruneError, match=r"prune.max_cut_shares: 'l22' matches no group .*'l2'.*l0, l1, l2"):
        check_widths(costs(), settings_, NAMES)


def test_widths_are_multiples_and_within_their_bounds() -> None:
    model = costs((24, 32, 20))
    settings_ = Prune(target=Macs(0.5), widths="effective-rank", round_to=8, min_width=8, max_cut_share=0.8)
    found = chosen(model, settings_, Evidence(ranks=(1.0, 30.0, 2.0)))
    assert all(width % 8 == 0 or width == dense for width, dense in zip(found, model.widths, strict=True))
    assert bounds_of(model, settings_, NAMES).least == (8, 8, 8)


def test_heads_are_counted_one_by_one_and_one_may_be_left() -> None:
    model = costs((24, 4, 6), ("units", "heads", "blocks"))
    bounds = bounds_of(model, Prune(round_to=8, min_width=8), NAMES)
    assert bounds.steps == (8, 1, 1)
    assert bounds.least == (8, 1, 1)


def test_a_target_out_of_reach_says_what_is_in_reach_and_which_bounds_forbid_more() -> None:
    with pytest.raises(
        PruneError,
        match=r"prune\.target macs=0\.01 cannot be reached: with min_width 2, max_cut_share 0\.95, l0 0\.5 "
        r"and round_to 1 the least is 0\.\d{3}",
    ):
        chosen(costs(), Prune(target=Macs(0.01), max_cut_shares={"l0": 0.5}))
    fixed = replace(costs(), constant=400.0, total=costs().total + 400)
    with pytest.raises(PruneError, match=r"because \d+% of the multiply-accumulates lie in layers that"):
        chosen(fixed, Prune(target=Macs(0.1)))


def test_the_least_that_is_in_reach_is_reached() -> None:
    model = costs()
    least = model.at(bounds_of(model, Prune(), NAMES).least) / model.total
    assert chosen(model, Prune(target=Macs(least))) == bounds_of(model, Prune(), NAMES).least


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_a_tolerance_keeps_the_fewest_units_that_lose_no_more(tolerance: float) -> None:
    residuals = [falling(width, 2.0) for width in (12, 16, 10)]
    found = chosen(costs(), Prune(target=Tolerance(tolerance), min_width=1), Evidence(residuals=residuals))
    for width, curve in zip(found, residuals, strict=True):
        assert curve[width - 1] <= tolerance < curve[width - 2]


def test_a_tolerance_stays_within_the_bounds_and_on_the_steps() -> None:
    residuals = [falling(20, 2.0), [0.0] * 20]
    settings_ = Prune(target=Tolerance(0.1), round_to=8, min_width=8)
    assert chosen(costs((20, 20)), settings_, Evidence(residuals=residuals)) == (16, 8)


def test_widths_by_name_are_taken_as_they_are_and_the_others_stay_dense() -> None:
    settings_ = Prune(target=Widths({"l1": 1}), round_to=8, min_width=8)
    assert chosen(costs(), settings_, Evidence()) == (12, 1, 10)


def test_all_that_is_wrong_with_widths_by_name_is_told_at_once() -> None:
    with pytest.raises(PruneError) as caught:
        check_widths(costs(), Prune(target=Widths({"l00": 3, "l1": 17, "l2": 10, "zz": 1})), NAMES)
    assert str(caught.value) == (
        "prune.target.widths: 3 faults:"
        "\n  'l00' is no group that can be cut (did you mean 'l0'?)"
        "\n  'l1' can keep 1 to 16 units (found 17)"
        "\n  'zz' is no group that can be cut; groups are l0, l1, l2"
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_latency_is_met_by_what_is_measured_and_not_by_what_is_counted(method: Method) -> None:
    """A machine on which only the widest group takes time, in steps of four units."""
    model = costs((12, 16, 10))

    def measured(widths: Sequence[int]) -> float:
        return 0.2 + 0.8 * -(-widths[1] // 4) / 4

    found = chosen(model, Prune(target=Latency(0.65), widths=method), latency=measured)
    assert measured(found) <= 0.65
    assert measured((12, found[1] + 4, 10)) > 0.65


def test_a_latency_is_asked_for_no_more_often_than_it_takes() -> None:
    asked: list[tuple[int, ...]] = []

    def measured(widths: Sequence[int]) -> float:
        asked.append(tuple(widths))
        return sum(widths) / 38

    chosen(costs((12, 16, 10)), Prune(target=Latency(0.5)), latency=measured)
    assert len(asked) <= 11


def test_widths_that_were_fast_only_once_are_not_taken() -> None:
    lucky: set[tuple[int, ...]] = set()

    def measured(widths: Sequence[int]) -> float:
        share = sum(widths) / 38
        if 0.5 < share < 0.7 and tuple(widths) not in lucky:
            lucky.add(tuple(widths))
            return 0.4
        return share

    found = chosen(costs((12, 16, 10)), Prune(target=Latency(0.5)), latency=measured)
    assert sum(found) / 38 <= 0.5


def test_a_latency_that_even_the_least_widths_miss_is_refused_with_what_was_measured() -> None:
    with pytest.raises(PruneError, match=r"latency=0.3 cannot be reached.*the least is 0.420 as measured"):
        chosen(costs(), Prune(target=Latency(0.3)), latency=lambda _: 0.42)


@pytest.mark.parametrize("method", METHODS)
def test_a_wider_target_never_narrows_a_group_by_more_than_what_was_left_over(method: Method) -> None:
    model = costs((40, 60, 30))
    found = [chosen(model, Prune(target=Macs(share), widths=method)) for share in (0.2, 0.4, 0.6, 0.8)]
    assert all(a <= b + 4 for low, high in pairwise(found) for a, b in zip(low, high, strict=True))
