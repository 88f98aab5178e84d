"""Size, latency and items predicted in a window."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.unchanged import unchanged
from tpsprune.measure import infer_for, latency, paired_latency, size
from tpsprune.runs.tensors import save_tensors

WIDTHS = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(n_in=WIDTHS, hidden=WIDTHS, n_out=WIDTHS, batch=st.integers(1, 4))
def test_a_two_layer_network_has_the_closed_form(n_in: int, hidden: int, n_out: int, batch: int) -> None:
    model = nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, n_out))
    found = size(model, torch.randn(batch, n_in))
    assert found.parameters == n_in * hidden + hidden + hidden * n_out + n_out
    assert found.macs == n_in * hidden + hidden * n_out


def test_a_convolution_has_the_closed_form() -> None:
    model = nn.Conv2d(3, 8, kernel_size=3, padding=1)
    found = size(model, torch.randn(2, 3, 10, 12))
    assert found.parameters == 3 * 8 * 9 + 8
    assert found.macs == 3 * 8 * 9 * 10 * 12


def test_bytes_are_those_of_the_file_on_disk(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / "model.safetensors"
    save_tensors(path, model.state_dict(), {})
    assert size(model, torch.randn(1, 1, 8, 8)).bytes == path.stat().st_size


def test_a_shared_parameter_is_counted_once() -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    apart = size(nn.Sequential(first, second), torch.randn(1, 5)).parameters
    second.weight = first.weight
    assert size(nn.Sequential(first, second), torch.randn(1, 5)).parameters == apart - 25


def test_zeros_weigh_as_much_as_any_other_number() -> None:
    model, batch = nn.Linear(6, 4), torch.randn(3, 6)
    before = size(model, batch)
    nn.init.zeros_(model.weight)
    assert size(model, batch) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    with unchanged(model):
        size(model, torch.randn(3, 4))


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
def test_there_are_as_many_passes_as_requested(batch: int) -> None:
    witness = Witness("a", [])
    found = latency(witness, torch.zeros(3, 2), batch, seconds=0.0, repeats=20)
    assert found.repeats == 20
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
    found = _summary(taken)
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
    assert latency(Two(), item, 8, seconds=0.0, repeats=2).repeats == 2


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = 0
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, batch: Tensor) -> Tensor:
        self.items += len(batch)
        self.modes.add((self.training, torch.is_inference_mode_enabled()))
        return batch


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_every_item_that_was_predicted_is_counted(batch: int, seconds: float) -> None:
    model = Counting().train()
    started = perf_counter()
    counted = infer_for(seconds, model, torch.zeros(batch, 3))
    assert counted == model.items >= batch
    assert perf_counter() - started >= seconds
    assert model.modes == {(False, True)}
    assert model.training, "the mode is as it was"


def test_no_seconds_are_one_pass() -> None:
    assert infer_for(0.0, Counting(), torch.zeros(4, 3)) == 4
