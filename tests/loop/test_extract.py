"""The extraction without a recipe: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tpsprune
from tpsprune.errors import PruneError
from tpsprune.loop.batches import batches_of


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        output: Tensor = self.net(left + right)
        return output


INPUTS = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))


def widths(extraction: Any) -> list[int]:
    return [change.width_after for change in extraction.changes]


def test_a_smaller_model_comes_out_and_the_original_is_unchanged() -> None:
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    extraction = tpsprune.extract(model, INPUTS, target=tpsprune.Macs(0.5))
    assert extraction.macs_share <= 0.5
    assert extraction.ticket.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_the_multiply_accumulates_is_the_target_without_one() -> None:
    assert tpsprune.extract(net(), INPUTS).plan.target == "macs=0.5"


@pytest.mark.parametrize(
    "batches",
    [
        INPUTS,
        list(INPUTS.tensor_split(3)),
        iter(INPUTS.tensor_split(3)),
        [(part,) for part in INPUTS.tensor_split(3)],
        DataLoader(TensorDataset(INPUTS, torch.zeros(600)), batch_size=200),
        DataLoader(TensorDataset(INPUTS), batch_size=200),
    ],
    ids=["a tensor", "a list", "an iterator", "tuples", "a loader with labels", "a loader without"],
)
def test_batches_come_in_many_shapes_with_one_result(batches: Any) -> None:
    extraction = tpsprune.extract(net(), batches, target=tpsprune.Macs(0.5))
    assert extraction.plan.groups == tpsprune.extract(net(), INPUTS, target=tpsprune.Macs(0.5)).plan.groups


@pytest.mark.parametrize("keyed", [True, False])
def test_several_inputs_go_in_by_position_or_by_name(keyed: bool) -> None:
    halves = [(part, part) for part in INPUTS.tensor_split(3)]
    batches = [{"left": left, "right": right} for left, right in halves] if keyed else halves
    assert tpsprune.extract(Named(), batches, target=tpsprune.Params(0.5)).macs_share < 1


def test_settings_are_those_of_the_recipe() -> None:
    extraction = tpsprune.extract(net(), INPUTS, ignored_layers=["0"], widths="uniform", compensate=False)
    assert [change.group for change in extraction.changes] == ["2"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roundto": 8}, r"roundto: no such setting \(did you mean 'round_to'\?\)"),
        ({"zzz": 8}, r"zzz: no such setting \(there are: target, widths"),
        ({"round_to": 0}, r"round_to: must .*greater than or equal to 1 .*\(found 0\)"),
        ({"widths": "rank"}, r"widths: must be 'effective-rank'.*\(found 'rank'\)"),
        ({"compensate": "yes"}, r"compensate: must be a valid boolean \(found 'yes'\)"),
        ({"target": 0.5}, r"target is 0.5; .*as in target=tpsprune.Macs\(0.5\)"),
        ({"rounds": 2}, r"rounds > 1 needs the training between them"),
        ({"ignored_layers": ["blocks*"]}, r"blocks\*"),
    ],
)
def test_a_setting_that_cannot_be_is_reported_with_what_would_do(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(PruneError, match=words):
        tpsprune.extract(net(), INPUTS, **settings)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(PruneError, match=r"a share above 0 and below 1 is needed"):
        tpsprune.Macs(share)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], r"empty"),
        (torch.zeros(0, 8), r"empty|no items"),
        ({"x": INPUTS}, r"calibration_data is dict"),
        (7, r"calibration_data is int"),
        ([torch.full((4, 8), float("nan"))], r"not finite"),
    ],
    ids=["empty list", "empty tensor", "mapping", "number", "not finite"],
)
def test_batches_that_cannot_be_are_reported(batches: Any, words: str) -> None:
    with pytest.raises(PruneError, match=words):
        tpsprune.extract(net(), batches)


class TwoInputs(nn.Module):
    """Takes a second input: it needs it, or makes do without, or passes it over."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.use = use

    def forward(self, x_bd: Tensor, scale_b: Tensor | None = None) -> Tensor:
        if scale_b is None and self.use == "needed":
            raise TypeError("forward() missing 1 required positional argument: 'scale_b'")
        if scale_b is None or self.use == "unused":
            return self.body(x_bd)
        return self.body(x_bd) * scale_b[:, None]


@pytest.mark.parametrize(("use", "inputs"), [("needed", 2), ("unused", 1)])
def test_the_last_of_a_list_is_an_input_where_the_model_needs_it(use: str, inputs: int) -> None:
    loader = DataLoader(TensorDataset(INPUTS, torch.rand(600)), batch_size=200)
    batches, labels = batches_of(loader, torch.device("cpu"), "data", PruneError, TwoInputs(use))
    assert [len(each) if isinstance(each, tuple) else 1 for each in batches] == [inputs] * 3
    assert (labels is None) == (inputs == 2)
    extraction = tpsprune.extract(TwoInputs(use), loader, target=tpsprune.Macs(0.5))
    extraction.ticket(INPUTS, torch.rand(600))


def test_the_last_of_a_list_that_may_be_either_is_asked_for() -> None:
    loader = DataLoader(TensorDataset(INPUTS, torch.rand(600)), batch_size=200)
    with pytest.raises(PruneError, match=r"a list of 2, and the model takes all of them as well as all but"):
        tpsprune.extract(TwoInputs("optional"), loader)


def test_the_names_of_the_package_are_there_and_no_others() -> None:
    assert {name for name in tpsprune.__all__ if getattr(tpsprune, name, None) is None} == set()
    with pytest.raises(AttributeError, match=r"no attribute 'extrakt'"):
        _ = tpsprune.extrakt


def test_the_example_of_the_documentation_runs() -> None:
    import doctest
    from importlib import import_module

    found = doctest.testmod(import_module("tpsprune.loop.extract"))
    assert found.attempted > 0
    assert not found.failed


def test_units_at_random_are_those_of_the_seed() -> None:
    kept = [
        tpsprune.extract(net(), INPUTS, seed=seed, units="random", compensate=False).plan.groups
        for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1] != kept[2]


def test_a_call_under_inference_mode_gives_the_same_ticket_and_one_that_trains() -> None:
    model = net()
    outside = tpsprune.extract(model, INPUTS)
    with torch.inference_mode():
        within = tpsprune.extract(model, INPUTS + 0)
    expected = outside.ticket.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in within.ticket.state_dict().items())
    within.ticket(INPUTS).sum().backward()


def test_a_model_made_under_inference_mode_is_refused_by_name() -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(PruneError, match=r"0\.weight was made under torch\.inference_mode"):
        tpsprune.extract(model, INPUTS)
