"""The repair: what it repairs, what it leaves as it was, and that it never ends worse than it began."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpsprune
from tests.pruning import nets_structure as zoo
from tests.pruning.helpers import assert_same
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.numerics.forward import observe_inputs
from tpsprune.numerics.trees import WholeBatch
from tpsprune.pruning import Extraction, count_repair_steps, extract, repair, repair_ticket
from tpsprune.pruning.inner_states import call_keeping, find_aims
from tpsprune.pruning.observations import hold_out
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.surgery import elements_kept
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
    assert [each.step for each in steps] == list(range(61))
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
    found = hold_out([WholeBatch(rank, 40) for rank in range(batches)])
    assert [[batch.data for batch in each] for each in found] == [fit, held]


def followed(model: nn.Module, found: Extraction, batch: Tensor) -> set[str]:
    kept = elements_kept(found.plan.shapes, found.plan.groups)
    return set(find_aims(found.ticket, model, [batch], kept).modules)


def test_blocks_and_layers_that_lost_units_are_followed_at_the_units_left() -> None:
    model, batch = zoo.case("residual")
    found = extract(model, [batch], Prune(target=Widths({"blocks.0.conv1": 2})))
    states = followed(model, found, batch)
    assert {"blocks.0", "blocks.0.conv1", "blocks.1"} <= states
    kept = elements_kept(found.plan.shapes, found.plan.groups)["blocks.0.conv1.weight"][0]
    aims = find_aims(found.ticket, model, [batch], {"blocks.0.conv1.weight": {0: kept}})
    state = next(each for each in aims.states if each.module == "blocks.0.conv1")
    with torch.no_grad():
        whole = call_keeping(model, batch, [state.module]).states[state.module]
        narrow = call_keeping(found.ticket, batch, [state.module]).states[state.module]
    assert torch.equal(state.of_dense(whole), whole[:, kept])
    # Nothing before this layer was pruned.
    assert (narrow - whole[:, kept]).abs().max() < 1e-5


def test_a_state_of_other_units_is_not_followed() -> None:
    model, batch = zoo.case("mlp")
    found = extract(model, [batch], Prune(target=Macs(0.5)))
    layer = next(each.group for each in found.changes if each.width_after < each.width_before)
    assert layer in followed(model, found, batch)
    other = copy.deepcopy(found.ticket)
    with torch.no_grad():
        other.get_submodule(layer).weight.neg_()  # type: ignore[operator, union-attr]
    assert layer not in followed(model, replace(found, ticket=other), batch)


def test_modes_frozen_weights_and_the_dense_model_are_kept() -> None:
    model, batch = zoo.case("cnn")
    ticket = prune(model, batch).train()
    ticket.head.weight.requires_grad_(False)
    frozen = ticket.head.weight.clone()
    with unchanged(model):
        list(repair(ticket, model, [batch], steps=5))
    assert all(module.training for module in ticket.modules())
    assert torch.equal(ticket.head.weight, frozen)


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("items", "own", "moves"),
    [(64, True, True), (18, True, False), (64, False, False)],
    ids=["enough", "few", "of other data"],
)
def test_batch_norms_take_the_statistics_of_long_batches_that_are_like_the_trainings(
    items: int, own: bool, moves: bool
) -> None:
    model, batch = zoo.case("cnn")
    for norm in norms_of(model) if own else ():
        norm.momentum = 1.0
        norm.train()
    model(torch.randn(256, *batch.shape[1:]))
    for norm in norms_of(model):
        norm.momentum = 0.0  # As in nets whose statistics were frozen.
    ticket = prune(model.eval(), batch)
    means = [norm.running_mean.clone() for norm in norms_of(ticket)]  # type: ignore[union-attr]
    modes = []
    for _ in repair(ticket, model, [torch.randn(items, *batch.shape[1:])], steps=5):
        modes += [norm.training for norm in norms_of(ticket)]
    assert not any(modes)
    assert all(norm.momentum == 0.0 for norm in norms_of(ticket))
    pairs = zip(norms_of(ticket), means, strict=True)
    assert any(not torch.equal(norm.running_mean, mean) for norm, mean in pairs) is moves  # type: ignore[arg-type]


def test_fresh_batches_take_the_place_of_calibration_data() -> None:
    model, batch = zoo.case("cnn")
    ticket = prune(model, batch)
    drawn = []

    def fresh(items: int, seed: int) -> Iterator[Tensor]:
        while True:
            drawn.append((items, seed))
            yield torch.randn(items, *batch.shape[1:])

    list(repair(ticket, model, [batch], steps=7, retries=0, fresh=fresh, seed=5))
    assert drawn == [(64, 5)] * 7


def test_a_step_holds_no_more_than_allowed() -> None:
    model, batch = zoo.case("cnn")
    ticket = prune(model, batch)
    lengths = []
    with observe_inputs(ticket, ["head"], lambda _name, x: lengths.append(len(x))):
        list(repair(ticket, model, [batch], steps=3, activation_gib=1e-9))
    assert lengths[-2] == 1


def settings(**changes: Any) -> Prune:
    return Prune(target=Macs(0.5), **changes)


def repaired(found: Extraction, model: nn.Module, batch: Tensor, how: Prune, steps: int) -> Extraction:
    steps_of = repair_ticket(found, model, [batch], how, steps=steps)
    while True:
        try:
            next(steps_of)
        except StopIteration as end:
            extraction: Extraction = end.value
            return extraction


def test_a_note_says_what_the_repair_brought() -> None:
    model, batch = zoo.case("cnn")
    found = extract(model, [batch], settings(compensate=False))
    notes = repaired(found, model, batch, settings(), 20).notes
    assert notes[:-1] == found.notes
    match = re.match(
        r"20 steps of repair lowered .* held out from (\S+) to (\S+); quality = 'best'", notes[-1]
    )
    assert match is not None
    assert float(match[2]) < float(match[1])


def test_the_best_quality_goes_on_until_a_round_brings_little() -> None:
    model, batch = zoo.case("cnn")
    found = extract(model, [batch], settings(compensate=False))
    note = repaired(found, model, batch, settings(quality="best"), 10).notes[-1]
    rounds = int(note.split()[0]) // 10
    assert 2 <= rounds <= 20
    assert "goes on" not in note


def test_a_ticket_that_cannot_be_repaired_is_left_with_the_reason() -> None:
    model, batch = zoo.case("mlp")
    found = extract(model, [batch], settings())
    ticket = found.ticket.requires_grad_(False)
    note = repaired(replace(found, ticket=ticket), model, batch, settings(), 3).notes[-1]
    assert "every parameter is frozen" in note


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_ticket_in_half_precision_is_repaired_in_single_and_judged_as_it_is_rounded(name: str) -> None:
    model, batch = zoo.case(name)
    model, batch = model.bfloat16(), batch.bfloat16()
    ticket = prune(model, batch)
    frozen = next(ticket.parameters()).requires_grad_(False)
    before, kept = output_error(ticket, model, [batch]), frozen.clone()
    steps = list(repair(ticket, model, [batch], steps=60, learning_rate=3e-3))
    errors = [each.held_error for each in steps if each.held_error is not None]
    assert {each.dtype for each in ticket.parameters()} == {torch.bfloat16}
    assert torch.equal(frozen, kept)
    assert output_error(ticket, model, [batch]) < 0.8 * before
    held = hold_out([batch])[1]
    assert output_error(ticket, model, held) == pytest.approx(min(errors))


def test_a_ticket_in_half_precision_is_repaired_through_other_calls_too() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.out, self.dec = nn.Linear(6, 24), nn.Linear(24, 3), nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.enc(x)))

        def decode(self, x: Tensor) -> Tensor:
            return self.dec(torch.relu(self.enc(x)))

    torch.manual_seed(0)
    model, x = Coder().eval().bfloat16(), torch.randn(256, 6).bfloat16()
    also = [lambda net, batch: net.decode(batch)]
    found = tpsprune.extract(model, x, Macs(0.5), also=also, repair_steps=10)
    assert "10 steps of repair" in found.notes[-1]


def test_a_ticket_that_does_not_run_in_single_precision_is_left_as_it_was_cut() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.first.weight.dtype is torch.float32 and not torch.is_grad_enabled() and x.any():
                raise ValueError("halves only")
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model, x = Strict().eval(), torch.randn(256, 6)
    ticket = nn.Sequential(copy.deepcopy(model)).bfloat16()
    dense = nn.Sequential(copy.deepcopy(model)).bfloat16()
    with pytest.raises(PruneError, match=r"does not run in single precision \(ValueError: halves only\)"):
        list(repair(ticket, dense, [x.bfloat16()], steps=3))


@pytest.mark.parametrize(
    ("changes", "where", "steps"),
    [
        ({}, {}, 192),
        ({}, {"fresh": True}, 200),
        ({}, {"trains_on": True}, 0),
        ({"quality": "fast"}, {}, 0),
        ({"quality": "fast", "repair": True}, {}, 192),
        ({"repair": False, "repair_steps": 7}, {}, 0),
        ({"repair_steps": 7}, {"trains_on": True}, 7),
    ],
)
def test_repair_is_on_where_nothing_follows_it(
    changes: dict[str, Any], where: dict[str, bool], steps: int
) -> None:
    assert count_repair_steps(settings(**changes), 1024, **where) == steps


class OverVectors(nn.Module):
    """A batch norm that takes no batch of one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.second(self.norm(self.first(x)).relu())
        return scores


def test_a_last_batch_of_one_is_repaired_on_with_the_others() -> None:
    torch.manual_seed(0)
    model = OverVectors()
    batches = [torch.randn(items, 6) for items in (64, 64, 1)]
    with torch.no_grad():
        model(torch.cat(batches))
    found = tpsprune.extract(model.eval(), batches, Macs(0.5), repair_steps=20)
    assert "20 steps of repair" in found.notes[-1]


def test_batches_of_one_are_joined() -> None:
    model, batch = zoo.case("mlp")
    tickets = []
    for batches in ([batch], list(batch.split(1))):
        found = extract(model, [batch], settings(compensate=False))
        steps = list(repair(found.ticket, model, batches, steps=20, learning_rate=3e-3))
        assert steps[-1].held_error is not None
        assert steps[0].held_error is not None
        tickets.append(steps[-1].held_error / steps[0].held_error)
    assert max(tickets) < 0.6


def test_sequences_of_several_lengths_are_repaired_on_in_parts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    batches = [torch.randn(1, length, 6) for length in (3, 5, 8, 13) * 8]
    found = tpsprune.extract(model, batches, Macs(0.5), compensate=False, repair_steps=30)
    before, after = map(float, re.findall(r"from (\S+) to ([^;\s]+)", found.notes[-1])[0])
    assert after < 0.8 * before


class Scaled(nn.Module):
    """A perceptron of small weights: a step of Adam moves them by many times themselves."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 24), nn.Linear(24, 3), scale
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(scale)

    def forward(self, x_bd: Tensor) -> Tensor:
        return self.scale * self.second(self.scale * torch.relu(self.first(x_bd)))


@pytest.mark.parametrize(("scale", "lowered"), [(1.0, False), (300.0, True)])
@pytest.mark.parametrize("given", [None, 3e-3])
def test_where_a_learning_rate_brings_little_a_fifth_of_it_is_tried_unless_it_is_given(
    scale: float, lowered: bool, given: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, batch = Scaled(scale).eval(), torch.randn(256, 6)
    rates = []

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr("torch.optim.Adam", Adam)
    ticket = prune(model, batch)
    steps = list(repair(ticket, model, [batch], steps=100, learning_rate=given))
    errors = [each.held_error for each in steps if each.held_error is not None]
    assert [each.step for each in steps] == list(range(len(steps)))
    assert all(each.steps >= each.step for each in steps)
    assert max(rates[:100]) == pytest.approx(3e-3)
    if lowered and given is None:
        highest = [max(rates[start : start + 100]) for start in range(0, len(rates), 100)]
        assert highest == pytest.approx([3e-3, 6e-4, 1.2e-4][: len(highest)])
        assert len(highest) > 1
        assert min(errors) < errors[0]
        assert steps[-1].steps == len(steps) - 1 == len(rates)
    else:
        assert len(steps) == 101
    if lowered and given:
        assert min(errors) == errors[0]
    if not lowered:
        assert min(errors) == errors[-1] < 0.5 * errors[0]


def test_a_complex_parameter_stays_and_the_others_are_repaired() -> None:
    torch.manual_seed(0)
    model = OverVectors().eval()
    model.register_parameter("turn", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    found = tpsprune.extract(model, torch.randn(128, 6), Macs(0.5), repair_steps=5)
    assert "5 steps of repair" in found.notes[-1]


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).sigmoid()
        hidden.mul_(2)
        scores: Tensor = self.second(hidden)
        return scores


def test_a_ticket_whose_code_has_no_gradient_is_left_as_it_was_cut() -> None:
    torch.manual_seed(0)
    model = WithoutGradient()
    x = torch.randn(64, 6)
    found = tpsprune.extract(model, x, Macs(0.5))
    assert "was not repaired: it has no gradient" in found.notes[-1]
    assert_same(found.ticket, tpsprune.extract(model, x, Macs(0.5), repair=False).ticket)


def test_the_best_quality_ends_where_nothing_is_left_to_repair() -> None:
    model, batch = zoo.case("mlp")
    found = replace(extract(model, [batch], settings()), ticket=copy.deepcopy(model))
    note = repaired(found, model, batch, settings(quality="best"), 3).notes[-1]
    assert note.startswith("3 steps of repair")


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
    with pytest.raises(PruneError, match="every parameter is frozen"):
        next(repair(ticket, model, [batch], steps=1))
