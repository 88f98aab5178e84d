"""Statistics of calibration data in shards are those of the whole, of layers that few items reach too."""

from __future__ import annotations

import pytest
import torch

from tests.pruning.test_open_experts import FAMILIES, family
from tpsprune.numerics.moments import MomentSums
from tpsprune.numerics.peers import ALONE, Alone
from tpsprune.pruning.planning import plan_widths
from tpsprune.recipe.prune import Macs, Prune


def test_sums_of_shards_about_a_given_shift_are_those_of_all_rows() -> None:
    rows_rn = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + 3.0
    whole, first, second = MomentSums(), MomentSums(torch.zeros(5)), MomentSums(torch.zeros(5))
    whole.add(rows_rn)
    second.add(rows_rn)  # The first shard has none.
    found, expected = MomentSums.summed([first, second], Alone(2)).moments(), whole.moments()
    assert found.rows == expected.rows
    torch.testing.assert_close(found.mean_n, expected.mean_n)
    torch.testing.assert_close(found.covariance_nn, expected.covariance_nn)


@pytest.mark.parametrize("shards", [2, 4])
def test_moments_of_experts_that_two_items_do_not_reach(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 1}
    monkeypatch.setitem(FAMILIES, "MixtralForCausalLM", more)
    model = family("MixtralForCausalLM")
    words = torch.randint(3, 32, (128, 4), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": each} for each in words.split(32)]
    settings = Prune(target=Macs(0.7))
    whole, cut = (plan_widths(model, batches, settings, peers=peers) for peers in (ALONE, Alone(shards)))
    assert cut.widths == whole.widths
    assert cut.statistics.moments.keys() == whole.statistics.moments.keys()
    for consumer, expected in whole.statistics.moments.items():
        found = cut.statistics.moments[consumer]
        assert found.rows == expected.rows
        torch.testing.assert_close(found.mean_n, expected.mean_n, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.covariance_nn, expected.covariance_nn, rtol=1e-5, atol=1e-7)
