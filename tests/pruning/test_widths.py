from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpsprune.errors import PruneError
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning import GroupCut, survey
from tpsprune.pruning.cutting import cut_copy
from tpsprune.pruning.widths import MacModel, choose_widths, least_widths
from tpsprune.recipe.prune import Prune
from tpsprune.recipe.target import Macs


def chain(zoo: SimpleNamespace, widths: tuple[int, ...] = (12, 16, 10)) -> MacModel:
    model = zoo.mlp((5, *widths, 3))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    batch = zoo.vectors(2)
    return MacModel.of(survey(model, batch).groups, shapes, count_macs(model, batch))


@pytest.mark.parametrize("name", ["cnn", "residual", "mixed", "token-mlp", "transformer"])
def test_multiply_accumulates_as_a_function_of_widths_are_those_counted(
    zoo: SimpleNamespace, name: str
) -> None:
    model, batch = zoo.case(name)
    groups = survey(model, batch[:2]).groups
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    macs = MacModel.of(groups, shapes, count_macs(model, batch))
    widths = [max(1, group.width - 2 - rank % 2) for rank, group in enumerate(groups)]
    cuts = [GroupCut.of(group, range(width)) for group, width in zip(groups, widths, strict=True)]
    assert macs.at(macs.widths) == pytest.approx(count_macs(model, batch).total)
    assert macs.at(widths) == pytest.approx(count_macs(cut_copy(model, cuts), batch).total)


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0.15, 0.95),
    wishes=st.lists(st.floats(1.0, 12.0), min_size=3, max_size=3),
    round_to=st.integers(1, 4),
)
def test_the_target_is_met_and_no_group_could_be_a_step_wider(
    zoo: SimpleNamespace, share: float, wishes: list[float], round_to: int
) -> None:
    macs = chain(zoo)
    settings_ = Prune(target=Macs(share), round_to=round_to, min_width=1, max_cut_share=0.99)
    if macs.at(least_widths(macs.widths, settings_)) > share * macs.total:
        return
    chosen = choose_widths(macs, wishes, settings_)
    assert macs.at(chosen) <= share * macs.total + 1e-6
    cheapest_step = min(
        macs.at([*chosen[:rank], min(dense, width + round_to), *chosen[rank + 1 :]])
        for rank, (dense, width) in enumerate(zip(macs.widths, chosen, strict=True))
        if width < dense
    )
    assert cheapest_step > share * macs.total - 1e-6


def test_what_is_left_over_may_grow_a_group_by_more_than_a_step(zoo: SimpleNamespace) -> None:
    """Two groups of equal wish round up at once: what neither was given was once left lying."""
    macs = chain(zoo)
    chosen = choose_widths(macs, [1.0, 1.0, 4.0], Prune(target=Macs(0.1875), min_width=1, max_cut_share=0.99))
    assert 78.0 <= macs.at(chosen) <= 0.1875 * macs.total


def test_widths_follow_the_wishes_in_proportion(zoo: SimpleNamespace) -> None:
    macs = chain(zoo, (40, 40, 40))
    chosen = choose_widths(macs, (6.0, 12.0, 3.0), Prune(target=Macs(0.3)))
    assert chosen[1] / chosen[0] == pytest.approx(2.0, rel=0.1)
    assert chosen[0] / chosen[2] == pytest.approx(2.0, rel=0.1)


def test_doubling_every_wish_changes_nothing(zoo: SimpleNamespace) -> None:
    macs = chain(zoo)
    settings_ = Prune(target=Macs(0.4))
    assert choose_widths(macs, (3.0, 5.0, 4.0), settings_) == choose_widths(macs, (6.0, 10.0, 8.0), settings_)


def test_widths_are_multiples_and_within_their_bounds(zoo: SimpleNamespace) -> None:
    macs = chain(zoo, (24, 32, 20))
    settings_ = Prune(target=Macs(0.5), round_to=8, min_width=3, max_cut_share=0.8)
    chosen = choose_widths(macs, (1.0, 30.0, 2.0), settings_)
    assert all(width % 8 == 0 or width == dense for width, dense in zip(chosen, macs.widths, strict=True))
    assert least_widths(macs.widths, settings_) == (8, 8, 8)
    assert least_widths((40, 2), Prune(max_cut_share=0.75)) == (10, 2)


def test_a_target_out_of_reach_says_what_is_in_reach(zoo: SimpleNamespace) -> None:
    macs = chain(zoo)
    with pytest.raises(
        PruneError, match=r"prune\.target macs=0\.01 cannot be reached: with min_width 2.*0\.\d{3}"
    ):
        choose_widths(macs, (1.0, 1.0, 1.0), Prune(target=Macs(0.01)))
