"""The repair: what it repairs, what it leaves as it was, and that it never ends worse than it began."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from tests.pruning import nets_structure as zoo
from tests.pruning.helpers import assert_same
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.numerics.trees import WholeBatch
from tpsprune.pruning import extract, repair
from tpsprune.pruning.repair import _hold_out, find_blocks, output_error
from tpsprune.recipe.prune import Macs, Prune, Widths


def prune(model: nn.Module, batch: Tensor) -> nn.Module:
    settings = Prune(target=Macs(0.5), compensate=False, recalibrate=False)
    return extract(model, [batch], settings).ticket


@pytest.mark.parametrize("name", ["cnn", "residual", "mlp"])
def test_plain_removal_comes_nearer_to_the_dense_model(name: str) -> None:
    model, batch = zoo.case(name)
    ticket = prune(model, batch)
    before = output_error(ticket, model, [batch])
    steps = list(repair(ticket, model, [batch], steps=60, learning_rate=3e-3))
    assert output_error(ticket, model, [batch]) < 0.7 * before
    assert [each.step for each in steps] == list(range(1, 61))
    assert any(each.held_error is not None for each in steps)


def test_a_ticket_equal_to_the_dense_model_is_not_changed() -> None:
    model, batch = zoo.case("mlp")
    ticket = copy.deepcopy(model)
    list(repair(ticket, model, [batch], steps=10))
    assert_same(ticket, model)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_however_early_it_is_left_it_ends_no_worse_on_the_items_held_out(steps: int) -> None:
    model, batch = zoo.case("cnn")
    ticket = prune(model, batch)
    held = batch[-len(batch) // 4 :]
    before = output_error(ticket, model, [held])
    # A rate at which it diverges: the weights that did best on what was held out are put back.
    running = repair(ticket, model, [batch], steps=40, learning_rate=3.0)
    list(islice(running, steps))
    running.close()  # type: ignore[attr-defined]
    assert output_error(ticket, model, [held]) <= before * (1 + 1e-5)


@pytest.mark.parametrize(
    ("batches", "fit", "held"),
    [(3, [0, 1, 2], [0, 1, 2]), (4, [0, 1, 2], [3]), (9, [0, 1, 2, 4, 5, 6, 8], [3, 7])],
    ids=["too few", "one", "two"],
)
def test_every_fourth_batch_is_held_out_where_none_can_be_split(
    batches: int, fit: list[int], held: list[int]
) -> None:
    found = _hold_out([WholeBatch(rank, 40) for rank in range(batches)])
    assert [[batch.data for batch in each] for each in found] == [fit, held]


def test_blocks_that_lost_inner_units_alone_are_fitted_one_by_one() -> None:
    model, batch = zoo.case("residual")
    settings = Prune(target=Widths({"blocks.0.conv1": 2}))
    ticket = extract(model, [batch], settings).ticket
    assert find_blocks(ticket, model, batch) == ("blocks.0",)
    worked_on = {each.block for each in repair(ticket, model, [batch], steps=20)}
    assert worked_on == {"blocks.0", ""}


def test_modes_statistics_frozen_weights_and_the_dense_model_are_kept() -> None:
    model, batch = zoo.case("cnn")
    ticket = prune(model, batch).train()
    ticket.head.weight.requires_grad_(False)
    frozen = ticket.head.weight.clone()
    means = [module.running_mean.clone() for module in ticket.modules() if isinstance(module, nn.BatchNorm2d)]
    with unchanged(model):
        list(repair(ticket, model, [batch], steps=5))
    assert ticket.training
    assert torch.equal(ticket.head.weight, frozen)
    norms = [module for module in ticket.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, means, strict=True))


def test_the_same_seed_repairs_alike_and_torchs_generator_is_left_alone() -> None:
    model, batch = zoo.case("mlp")
    repaired = []
    for _ in range(2):
        ticket = prune(model, batch)
        state = torch.get_rng_state()
        list(repair(ticket, model, [batch], steps=8, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
        repaired.append(ticket)
    assert_same(*repaired)


def test_what_cannot_be_repaired_is_refused() -> None:
    model, batch = zoo.case("mlp")
    ticket = prune(model, batch)
    with pytest.raises(PruneError, match="the calibration data are empty"):
        next(repair(ticket, model, [], steps=1))
    ticket.requires_grad_(False)
    with pytest.raises(PruneError, match="every parameter of the ticket is frozen"):
        next(repair(ticket, model, [batch], steps=1))
