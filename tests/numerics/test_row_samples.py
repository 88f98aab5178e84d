"""Rows kept of a stream: all where they fit, each as likely as any other, the same ones every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpsprune.numerics.row_samples import RowSample, input_rows


def kept(parts: list[Tensor], at_most: int) -> list[float]:
    sample = RowSample(at_most)
    for part in parts:
        sample.add(part[:, None])
    assert sample.rows_sn is not None
    return sample.rows_sn.flatten().tolist()


def test_all_rows_are_kept_where_they_fit_and_their_order_too() -> None:
    assert kept([torch.arange(3.0), torch.arange(3.0, 7.0)], 10) == list(range(7))


def test_how_a_stream_is_cut_up_decides_nothing() -> None:
    rows = torch.arange(100.0)
    whole = kept([rows], 8)
    assert len(set(whole)) == 8
    assert kept(list(rows.split(7)), 8) == whole


def test_late_rows_are_as_likely_as_early_ones() -> None:
    rows = torch.arange(20_000.0)
    found = kept(list(rows.split(300)), 2000)
    assert abs(sum(found) / len(found) / 10_000 - 1) < 0.05


def test_rows_are_items_positions_and_units_that_stand_side_by_side() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 4))
    images = torch.randn(5, 1, 2, 2)
    rows = input_rows(net, [images[:2], images[2:]], {"1": 3, "3": 2}, {})
    assert rows["1"].shape == (20, 3)
    assert torch.allclose(rows["1"], net[0](images).movedim(1, -1).reshape(-1, 3))
    assert torch.allclose(rows["3"], net[:2](images).movedim(1, -1).reshape(-1, 2))
    tokens = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    pairs = torch.tensor([[0, 1], [4, 6]])
    found = input_rows(tokens, [pairs], {"2": 3}, {"2": 1})["2"]
    assert torch.equal(found, tokens[0].weight[[0, 1, 4, 6]])
    assert not found.requires_grad


def test_a_module_that_is_not_called_is_left_out() -> None:
    assert input_rows(nn.Sequential(nn.Linear(2, 2)), [], {"0": 2}, {}) == {}
