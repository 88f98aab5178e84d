"""Time is measured on models that are really cut, in turn with the dense one."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from tpsprune.pruning import find_groups
from tpsprune.pruning.costs import latency_shares


def size(model: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in model.parameters()))


def test_the_share_is_that_of_a_model_cut_to_these_widths(zoo: SimpleNamespace) -> None:
    model, batch = zoo.case("mlp")
    share = latency_shares(model, find_groups(model, batch).groups, size)
    assert share((9, 7)) == 1.0
    assert share((4, 3)) == (6 * 4 + 5 * 3 + 4 * 3) / size(model)


def test_a_machine_that_slows_down_slows_both_and_one_slip_of_the_clock_counts_for_nothing(
    zoo: SimpleNamespace,
) -> None:
    model, batch = zoo.case("mlp")
    calls = 0

    def clock(timed: nn.Module) -> float:
        nonlocal calls
        calls += 1
        # It takes twice as long from one pair to the next, and slips once.
        return size(timed) * 2.0 ** (-(-calls // 2)) * (50.0 if calls == 3 else 1.0)

    share = latency_shares(model, find_groups(model, batch).groups, clock)
    assert share((4, 3)) == (6 * 4 + 5 * 3 + 4 * 3) / size(model)
