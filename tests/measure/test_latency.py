"""Latency: what is run, how often, in which order and in which mode; never how fast."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import Tensor, nn

from tpsprune.measure import latency, paired_latency


class Witness(nn.Module):
    """Writes down every pass it is put through."""

    def __init__(self, name: str, book: list[str]) -> None:
        super().__init__()
        self.name = name
        self.book = book
        self.shapes: set[tuple[int, ...]] = set()
        self.dropout = nn.Dropout()

    def forward(self, items: Tensor) -> Tensor:
        assert not self.training
        assert not self.dropout.training
        assert torch.is_inference_mode_enabled()
        self.book.append(self.name)
        self.shapes.add(tuple(items.shape))
        return items


@pytest.mark.parametrize("batch", [1, 64])
def test_there_are_as_many_passes_as_asked_for(batch: int) -> None:
    witness = Witness("a", [])
    found = latency(witness, torch.zeros(3, 2), batch, seconds=0.0, repeats=20)
    assert found.repeats == 20
    assert found.batch == batch
    assert len(witness.book) == 20 + 5
    assert witness.shapes == {(batch, 3, 2)}


def test_passes_go_on_until_the_time_is_up() -> None:
    witness = Witness("a", [])
    assert latency(witness, torch.zeros(1), 1, seconds=0.05, repeats=2).repeats > 2


def test_the_quartiles_hold_the_median_between_them() -> None:
    found = latency(nn.Linear(8, 8), torch.zeros(8), 4, seconds=0.02)
    assert 0 < found.lower_quartile_seconds <= found.median_seconds <= found.upper_quartile_seconds


def test_the_summary_is_that_of_the_passes() -> None:
    from tpsprune.measure import _summary

    taken = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = _summary(7, taken)
    assert found.median_seconds == median(taken)
    assert (found.lower_quartile_seconds, found.upper_quartile_seconds) == (2.0, 4.0)


@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_back_in_its_mode(training: bool) -> None:
    witness = Witness("a", []).train(training)
    witness.dropout.train(not training)
    latency(witness, torch.zeros(1), 1, seconds=0.0, repeats=2)
    assert witness.training is training
    assert witness.dropout.training is not training


def test_two_models_are_timed_in_turn_and_who_is_first_changes() -> None:
    book: list[str] = []
    dense, ticket = Witness("dense", book), Witness("ticket", book)
    first, second = paired_latency(dense, ticket, torch.zeros(2), 4, seconds=0.0, repeats=4)
    assert book[10:] == ["dense", "ticket", "ticket", "dense"] * 2
    assert first.repeats == second.repeats == 4
    assert (first.batch, second.batch) == (4, 4)


def test_tokens_are_timed_as_well_as_numbers() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    assert latency(model, torch.tensor([1, 2, 3]), 8, seconds=0.0, repeats=2).repeats == 2


@pytest.mark.parametrize("by_name", [True, False])
def test_an_item_of_several_parts_is_repeated_part_by_part(by_name: bool) -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            assert (left.shape, right.shape) == ((8, 3), (8,))
            return left

    item: object = {"right": torch.tensor(1), "left": torch.zeros(3)}
    if not by_name:
        item = (torch.zeros(3), torch.tensor(1))
    assert latency(Two(), item, 8, seconds=0.0, repeats=2).batch == 8
