"""Layers of low rank: split exactly, chosen where least is lost, and taken only where they are better."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tpsprune
from tests.pruning.helpers import plan_of
from tpsprune.errors import ArtifactError, PruneError
from tpsprune.numerics.low_rank_layer import LowRank
from tpsprune.numerics.macs import count_macs
from tpsprune.numerics.moments import Moments
from tpsprune.pruning import Plan, carry_state, extract, replay
from tpsprune.pruning.factored import Factored, factor_layers
from tpsprune.pruning.low_rank import (
    Outputs,
    Point,
    allocate_ranks,
    layers_to_split,
    lost_by_rank,
    observe_outputs,
    points_of,
)
from tpsprune.pruning.observations import JointSums
from tpsprune.pruning.output_error import output_error
from tpsprune.pruning.reconstruction import refit_layer
from tpsprune.pruning.replay import check_ticket, compose
from tpsprune.pruning.verification import verify_split
from tpsprune.recipe.prune import Macs, Params, Prune, Tolerance

RANK = 8
SPLIT = Prune(target=Macs(0.5), low_rank=True, quality="fast", round_to=1)


def low_rank_net(rank: int = RANK, width: int = 48) -> nn.Sequential:
    """A net whose wide layers have a low rank, and whose units are all needed."""
    torch.manual_seed(1)
    sizes = (16, width, width, width, 4)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        if inputs == outputs == width:
            left, right = torch.randn(width, rank), torch.randn(rank, width)
            layer.weight = nn.Parameter(left @ right * 2.0 / width)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def data(items: int = 512) -> list[Tensor]:
    return list(torch.randn(items, 16, generator=torch.Generator().manual_seed(2)).split(128))


def moments_of(x_rp: Tensor, y_rq: Tensor) -> Any:
    sums = JointSums()
    for x, y in zip(x_rp.split(64), y_rq.split(64), strict=True):
        sums.add(x[:, None, None], y[:, None, None])
    return sums.moments()


def error_of_map(weight_qp: Tensor, x_rp: Tensor, y_rq: Tensor) -> float:
    left = y_rq - x_rp @ weight_qp.T
    return float((left - left.mean(0)).square().sum())


def test_a_refit_of_a_rank_is_reduced_rank_regression() -> None:
    """By a slow twin: the best of that rank, found by alternating least squares."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2048, 7, generator=generator, dtype=torch.float64) @ torch.randn(
        7, 7, generator=generator, dtype=torch.float64
    )
    true = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    y = x @ true.T + torch.randn(2048, 5, generator=generator, dtype=torch.float64) + 3.0
    layer = nn.Linear(7, 5).double()
    refit_layer(layer, moments_of(x, y), rank=2)
    assert torch.linalg.matrix_rank(layer.weight) == 2
    x0, y0 = x - x.mean(0), y - y.mean(0)
    up, down = torch.randn(5, 2, generator=generator, dtype=torch.float64), torch.empty(0)
    for _ in range(400):
        code = torch.linalg.lstsq(up, y0.T).solution  # Best codes, then the best maps to and from them.
        down = torch.linalg.lstsq(x0, code.T).solution.T
        up = torch.linalg.lstsq(x0 @ down.T, y0).solution.T
    twin = error_of_map(up @ down, x0, y0)
    found = error_of_map(layer.weight.detach(), x0, y0)
    assert found <= twin * (1 + 1e-4)
    torch.testing.assert_close(layer(x).mean(0), y.mean(0))


def test_a_refit_of_full_rank_is_the_refit() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(1024, size, generator=generator, dtype=torch.float64) for size in (6, 4))
    plain, ranked = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    ranked.load_state_dict(plain.state_dict())
    refit_layer(plain, moments_of(x, y))
    refit_layer(ranked, moments_of(x, y), rank=4)
    torch.testing.assert_close(ranked.weight, plain.weight)
    torch.testing.assert_close(ranked.bias, plain.bias)


def test_what_a_rank_loses_is_the_variance_of_the_weaker_directions() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double()).Q
    covariance = turn @ torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0]).double()) @ turn.T
    assert lost_by_rank(covariance) == pytest.approx([0.4, 0.1, 0.0, 0.0], abs=1e-12)


def test_points_are_those_that_cost_less_than_the_whole_layer_and_of_the_units_kept() -> None:
    covariance = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).double())
    outputs = Outputs(Moments(9, torch.zeros(4).double(), covariance), worth=2.0)
    whole, *ranks = points_of(40, outputs, None, 3.0, 1)
    assert whole == Point(120.0, 0.0, 0)
    assert [each.rank for each in ranks] == [2, 1]  # 3 · (10 + 4) is more than 40.
    assert [each.cost for each in ranks] == [84.0, 42.0]
    assert [each.loss for each in ranks] == pytest.approx([-2 * math.log(0.7), -2 * math.log(0.4)])
    _, *ranks = points_of(20, outputs, torch.tensor([0, 3]), 1.0, 1)
    assert [(each.rank, each.loss) for each in ranks] == [(1, pytest.approx(-2 * math.log(0.8)))]


CURVES = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), min_size=1, max_size=3
)


def curve_of(steps: list[tuple[int, int]]) -> list[Point]:
    """A convex curve of loss over cost: each step dearer per cost saved than the one before."""
    points = [Point(float(sum(saved for saved, _ in steps)), 0.0, 0)]
    for rank, (saved, price) in enumerate(sorted(steps, key=lambda step: step[1]), start=1):
        last = points[-1]
        points.append(Point(last.cost - saved, last.loss + saved * price, len(steps) + 1 - rank))
    return points


@given(CURVES, st.floats(0.01, 1.0))
@settings(deadline=None)
def test_ranks_save_what_is_asked_and_none_could_go_back(
    curves: list[list[tuple[int, int]]], share: float
) -> None:
    points = {str(place): curve_of(steps) for place, steps in enumerate(curves)}
    saving = share * sum(own[0].cost for own in points.values())
    found = allocate_ranks(points, saving)
    at = {
        name: next(place for place, each in enumerate(own) if each.rank == found.get(name, 0))
        for name, own in points.items()
    }
    saved = sum(own[0].cost - own[at[name]].cost for name, own in points.items())
    assert saved >= saving - 1e-9
    for name, place in at.items():
        if place:
            assert saved - (points[name][place - 1].cost - points[name][place].cost) < saving


@given(CURVES, st.integers(0, 12))
@settings(deadline=None)
def test_of_convex_curves_no_choice_that_saves_as_much_loses_less(
    curves: list[list[tuple[int, int]]], rounds: int
) -> None:
    """By a slow twin, all choices there are, where what is asked for is what some steps save."""
    points = {str(place): curve_of(steps) for place, steps in enumerate(curves)}
    steps = sorted(
        ((b.loss - a.loss) / (a.cost - b.cost), a.cost - b.cost)
        for own in points.values()
        for a, b in pairwise(own)
    )
    dearest, _ = steps[rounds % len(steps)]
    saving = sum(saved for price, saved in steps if price <= dearest)
    found = allocate_ranks(points, saving)
    loss = sum(
        next(each.loss for each in own if each.rank == found.get(name, 0)) for name, own in points.items()
    )
    choices = (
        (sum(each.loss for each in choice), sum(own[0].cost for own in points.values()))
        for choice in product(*points.values())
        if sum(own[0].cost - each.cost for own, each in zip(points.values(), choice, strict=True)) >= saving
    )
    assert loss <= min(choices)[0] + 1e-9


def test_what_saves_too_little_is_refused() -> None:
    with pytest.raises(PruneError, match="do not save enough"):
        allocate_ranks({"a": curve_of([(2, 1)])}, 3.0)


def test_layers_that_others_share_read_or_hold_are_not_split() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.tied, self.like_it = (nn.Linear(8, 8) for _ in range(3))
            self.like_it.weight = self.tied.weight
            self.hooked, self.frozen, self.named, self.ignored = (nn.Linear(8, 8) for _ in range(4))
            self.again = self.named
            self.hooked.register_forward_hook(lambda *_: None)
            self.frozen.requires_grad_(False)

            class Own(nn.Linear):
                pass

            self.own = Own(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.children():
                x = layer(x)
            return x

    assert layers_to_split(Net(), torch.randn(2, 8), Prune(ignored_layers=("ign*",))) == ["plain"]


def test_what_an_error_at_a_layer_is_worth_is_measured_and_a_layer_never_called_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False)).double()
    model.unused = nn.Linear(3, 3)
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    batches = [batch.double() for batch in data()]
    before = copy.deepcopy(model.state_dict())
    found = observe_outputs(model, batches, ["0", "1", "unused"])
    assert set(found) == {"0", "1"}
    # Of the last layer the loss is in the outputs themselves: worth · −ln(1 − lost) is the share lost.
    lost = lost_by_rank(found["1"].moments.covariance_nn)[1]
    assert found["1"].worth * -math.log1p(-lost) == pytest.approx(lost, rel=0.2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_net_of_low_rank_is_split_and_loses_less_than_without() -> None:
    model, batches = low_rank_net(), data()
    before = copy.deepcopy(model.state_dict())
    units = extract(model, batches, replace(SPLIT, low_rank=False))
    found = extract(model, batches, SPLIT)
    assert any(isinstance(module, LowRank) for module in found.ticket.modules())
    assert count_macs(found.ticket, batches[0]).total <= 0.5 * count_macs(model, batches[0]).total
    assert found.macs_share <= 0.5
    other = list(torch.randn(512, 16, generator=torch.Generator().manual_seed(9)).split(128))
    errors = [output_error(each.ticket, model, other) for each in (found, units)]
    assert errors[0] < 0.2 * errors[1]
    assert "of low rank the error on calibration data held out is" in found.notes[0]
    ranks = {each.group: each.width_after for each in found.changes if each.kind == "rank"}
    assert ranks == {each.layer: each.rank for each in found.plan.factored}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = extract(model, batches, SPLIT)
    assert again.plan == found.plan
    assert all(
        torch.equal(value, again.ticket.state_dict()[name])
        for name, value in found.ticket.state_dict().items()
    )


def test_a_target_of_parameters_is_met_by_ranks_too() -> None:
    model = low_rank_net()
    found = extract(model, data(), replace(SPLIT, target=Params(0.5)))
    assert found.plan.factored
    sizes = [sum(each.numel() for each in net.parameters()) for net in (found.ticket, model)]
    assert sizes[0] <= 0.5 * sizes[1]


def test_where_units_alone_do_better_no_layer_is_split_and_a_note_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    with torch.no_grad():  # Half of the units are dead: nothing is lost without them.
        model[0].weight[32:], model[0].bias[32:] = 0.0, -1.0
    found = extract(model, data(), SPLIT)
    units = extract(model, data(), replace(SPLIT, low_rank=False))
    assert found.plan == units.plan
    assert "none was split" in found.notes[0] or "no layer was split" in found.notes[0]


def test_layers_that_are_slower_split_are_not_split_where_that_is_measured() -> None:
    def clock(model: nn.Module) -> float:
        return 2.0 if any(isinstance(module, LowRank) for module in model.modules()) else 1.0

    found = extract(low_rank_net(), data(), SPLIT, clock=clock)
    assert found.plan.factored
    assert "a pass takes 2.00 times as long as one of units alone, measured here" in found.notes[0]
    found = extract(low_rank_net(), data(), replace(SPLIT, low_rank="auto"), clock=clock)
    assert not found.plan.factored
    assert "2.00 times as long as one of units alone, measured here: none was split" in found.notes[0]


def test_a_ticket_of_low_rank_is_written_down_replayed_saved_and_loaded(tmp_path: Path) -> None:
    model, batches = low_rank_net(), data()
    found = tpsprune.extract(model, batches, tpsprune.Macs(0.5), low_rank=True, quality="fast", round_to=1)
    plan = Plan.from_json(found.plan.to_json())
    assert plan == found.plan
    assert plan.factored
    check_ticket(found.ticket, plan)
    shell = replay(model, plan)
    assert {name: value.shape for name, value in shell.state_dict().items()} == {
        name: value.shape for name, value in found.ticket.state_dict().items()
    }
    tpsprune.save(found, tmp_path / "ticket")
    loaded = tpsprune.load(tmp_path / "ticket", model=low_rank_net())
    assert torch.equal(loaded(batches[0]), found.ticket(batches[0]))
    card = (tmp_path / "ticket" / "README.md").read_text()
    assert "rank" in card


def test_a_ticket_of_low_rank_is_repaired_and_can_be_pruned_again_but_not_composed() -> None:
    model, batches = low_rank_net(), data()
    found = tpsprune.extract(model, batches, tpsprune.Macs(0.4), low_rank=True, repair_steps=20, round_to=1)
    assert found.plan.factored
    assert any("repair" in note for note in found.notes)
    again = tpsprune.extract(found.ticket, batches, tpsprune.Macs(0.7), quality="fast", round_to=1)
    assert again.macs_share <= 0.7
    with pytest.raises(PruneError, match="pruned no further"):
        compose(found.plan, again.plan)


def test_optimizer_state_of_biases_is_carried_and_that_of_split_weights_starts_afresh() -> None:
    model = low_rank_net()
    found = extract(model, data(), SPLIT)
    split = found.plan.factored[0].layer
    state = {name: {"exp_avg": value.detach().clone()} for name, value in model.named_parameters()}
    carried = carry_state(state, found.plan)
    assert f"{split}.up.bias" in carried
    assert not {f"{split}.weight", f"{split}.bias", f"{split}.up.weight", f"{split}.down.weight"} & set(
        carried
    )
    names = dict(found.ticket.named_parameters())
    assert all(entries["exp_avg"].shape == names[name].shape for name, entries in carried.items())


@pytest.mark.parametrize(
    "factored",
    [
        Factored(layer="nowhere", rank=2),
        Factored(layer="1", rank=2),
        Factored(layer="0", rank=17),
    ],
)
def test_a_plan_that_splits_what_is_not_there_is_refused(factored: Factored) -> None:
    plan = plan_of(low_rank_net(), (), factored=(factored,))
    with pytest.raises(ArtifactError, match=r"plan\.factored"):
        Plan.from_json(plan.to_json())
    twice = plan_of(low_rank_net(), (), factored=(Factored(layer="2", rank=2),) * 2)
    with pytest.raises(ArtifactError, match=r"plan\.factored"):
        Plan.from_json(twice.to_json())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": Tolerance(0.1)}, "low_rank: needs a target of macs or params"),
        ({"reconstruct": False}, "low_rank: needs prune.compensate and prune.reconstruct"),
    ],
)
def test_low_rank_without_what_it_needs_is_refused(more: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        tpsprune.extract(low_rank_net(), data(), **{"target": tpsprune.Macs(0.5), "low_rank": True, **more})


class Own(nn.Linear):
    """A class that is not split."""


def test_where_no_layer_can_be_split_the_target_is_met_by_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Own(16, 64), nn.ReLU(), Own(64, 64), nn.ReLU(), Own(64, 4))
    for target in (Macs(0.5), Params(0.5)):
        found = extract(model, data(), replace(SPLIT, target=target))
        assert found.plan == extract(model, data(), replace(SPLIT, target=target, low_rank=False)).plan
        assert "no layer was split" in found.notes[0]


def test_layers_whose_weight_other_code_reads_are_not_split() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = low_rank_net()

        def forward(self, x: Tensor) -> Tensor:
            for place, layer in enumerate(self.net):
                if place == 2:
                    x = x.to(layer.weight.dtype)
                x = layer(x)
            return x

    assert "net.2" not in layers_to_split(Reader(), data()[0][:2], Prune())
    found = extract(Reader(), data(), replace(SPLIT, target=Macs(0.7)))
    assert "net.2" not in {each.layer for each in found.plan.factored}
    assert count_macs(found.ticket, data()[0]).total <= 0.7 * count_macs(Reader(), data()[0]).total


def test_layers_that_the_fast_path_of_an_encoder_reads_are_not_split() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(32, 4)
    ).eval()
    names = layers_to_split(model, torch.randn(2, 5, 32), Prune())
    assert not any(name.endswith(("linear1", "linear2")) for name in names)


class Routed(nn.Module):
    """A layer that some batches do not reach, and which items reach it hangs on the layers before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = low_rank_net()
        self.some, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.least = 0.99

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.net(x))
        chosen = hidden[:, 0] > self.least
        out: Tensor = self.last(hidden)
        return out.index_add(0, chosen.nonzero()[:, 0], self.some(hidden[chosen]))


def test_a_layer_that_is_called_on_no_item_or_on_others_breaks_nothing() -> None:
    found = extract(Routed(), data(), SPLIT)
    assert found.macs_share <= 0.5
    assert found.plan.factored
    never = Routed()
    never.least = 2.0
    assert set(observe_outputs(never, data(), ["some", "last"])) == {"last"}


def test_layers_of_very_many_outputs_and_adapters_are_left_whole() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 3000), nn.Linear(3000, 8))
    assert layers_to_split(model, torch.randn(2, 8), Prune()) == ["1"]
    model.peft_config = {}
    assert layers_to_split(model, torch.randn(2, 8), Prune()) == []


def test_auto_needs_a_clock() -> None:
    with pytest.raises(PruneError, match="needs a clock"):
        extract(low_rank_net(), data(), replace(SPLIT, low_rank="auto"))


def test_where_the_split_ticket_fails_at_the_end_units_alone_are_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise PruneError("not alike")

    monkeypatch.setattr(importlib.import_module("tpsprune.pruning.extract"), "verify_split", refuse)
    found = extract(low_rank_net(), data(), SPLIT)
    assert found.plan == extract(low_rank_net(), data(), replace(SPLIT, low_rank=False)).plan
    assert found.notes[0] == "no layer was split: not alike"


def test_a_split_ticket_that_differs_is_refused() -> None:
    whole = low_rank_net()
    split = low_rank_net()
    factor_layers(split, [Factored(layer="2", rank=RANK // 2)])
    with pytest.raises(PruneError, match="differs by"):
        verify_split(split, whole, data())
    exact = low_rank_net()
    factor_layers(exact, [Factored(layer="2", rank=RANK)])
    verify_split(exact, whole, data())


def test_factors_are_of_equal_size() -> None:
    model = low_rank_net()
    factor_layers(model, [Factored(layer="2", rank=RANK)])
    down, up = (part.weight.detach() for part in model[2])
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0), rtol=1e-3, atol=1e-4)


def test_ranks_are_multiples_that_kernels_like_and_of_the_units_kept() -> None:
    found = extract(low_rank_net(), data(), replace(SPLIT, round_to="auto"))
    assert found.plan.factored
    assert all(each.rank % 8 == 0 for each in found.plan.factored)


def test_worth_tells_a_layer_that_matters_from_one_that_does_not() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.much, self.little = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.much(x) + 0.01 * self.little(x)

    found = observe_outputs(Two(), data(), ["much", "little"])
    assert found["much"].worth > 1000 * found["little"].worth


def test_means_of_outputs_are_kept_where_directions_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.no_grad():
        model[0].bias.fill_(100.0)  # Without the mean the error would be that of the mean.
    found = observe_outputs(model, data(), ["0"])
    assert found["0"].worth < 10.0


def test_a_layer_that_is_called_on_one_item_without_an_axis_gives_what_it_gave() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.of_all = low_rank_net(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found = self.net(x)
            pooled = self.of_all(found.mean(0))
            assert pooled.shape == (4,)
            out: Tensor = found + pooled
            return out

    assert set(observe_outputs(Pooled(), data(), ["net.2", "of_all"])) == {"net.2", "of_all"}
