"""The extraction prunes to the planned widths; and every layer is listed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.unchanged import unchanged
from tpsprune import pruning
from tpsprune.numerics.macs import count_macs
from tpsprune.pruning.opening import open_layers
from tpsprune.recipe.prune import Macs, Params, Prune, Tolerance
from tpsprune.records import CheckedLayer


class Net(nn.Module):
    """Two convolutions with batch norm, attention over their outputs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, images_nchw: Tensor) -> Tensor:
        maps = torch.relu(self.norm1(self.conv1(images_nchw)))
        places_ntd = self.conv2(maps).flatten(2).transpose(1, 2)
        places_ntd = places_ntd + self.attention(places_ntd, places_ntd, places_ntd, need_weights=False)[0]
        scores: Tensor = self.head(torch.relu(self.hidden(places_ntd.mean(1))))
        return scores


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(96, 3, 9, 9, generator=torch.Generator().manual_seed(0)).split(48))


@pytest.mark.parametrize("target", [Macs(0.6), Params(0.6), Tolerance(0.3)], ids=str)
def test_planned_widths_are_those_of_the_extraction(
    net: Net, batches: list[Tensor], target: Macs | Params | Tolerance
) -> None:
    settings = Prune(target=target)
    planned = pruning.plan_widths(net, batches, settings)
    found = pruning.extract(net, batches, settings)
    assert [group.name for group in planned.groups] == [change.group for change in found.changes]
    assert list(planned.widths) == [change.width_after for change in found.changes]
    assert any(change.width_after < change.width_before for change in found.changes)


def listed(net: Net, batches: list[Tensor], *spared: str) -> dict[str, CheckedLayer]:
    opened, _ = open_layers(net)
    prunability, count = pruning.find_groups(opened, batches[0], spared), count_macs(opened, batches[0])
    return {layer.name: layer for layer in pruning.list_layers(net, prunability, count)}


def test_the_planned_cost_is_that_of_the_ticket_and_planning_leaves_the_model_as_it_is(
    net: Net, batches: list[Tensor]
) -> None:
    settings = replace(Prune(target=Macs(0.6)), new_biases=False)
    with unchanged(net.train()):
        planned = pruning.plan_widths(net, batches, settings)
    found = pruning.extract(net.eval(), batches, settings)
    assert planned.cost_share == pytest.approx(found.macs_share, abs=1e-3)


def test_every_layer_is_listed_with_its_parameters_and_macs(net: Net, batches: list[Tensor]) -> None:
    layers = listed(net, batches)
    assert list(layers) == [
        *("conv1", "norm1", "conv2", "attention"),
        *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
        *("hidden", "head"),
    ]
    assert sum(layer.parameters for layer in layers.values()) == sum(p.numel() for p in net.parameters())
    assert sum(layer.macs for layer in layers.values()) == count_macs(net, batches[0]).total
    assert sum(layer.macs_share for layer in layers.values()) == pytest.approx(1.0)
    expected = {"conv1": 81 * 27 * 12, "attention": 2 * 16 * 16 * 8, "norm1": 0}
    assert {name: layers[name].macs for name in expected} == expected


def test_the_list_tells_what_becomes_of_each_layer_and_why(net: Net, batches: list[Tensor]) -> None:
    layers = listed(net, batches)
    assert {name: (layers[name].fate, layers[name].groups) for name in ("conv1", "norm1", "attention")} == {
        "conv1": ("cut", ("conv1",)),
        "norm1": ("follows", ("conv1",)),
        "attention": ("follows", ("attention.q_proj",)),
    }
    values, head = layers["attention.v_proj"], layers["head"]
    assert (values.fate, values.groups) == ("cut", ("attention.q_proj",))
    assert (head.fate, head.reason, head.reads) == ("stays", "it is the model's output", ("hidden",))
    assert layers["hidden"].reads == ("conv2",)
    spared = listed(net, batches, "conv*", "attention")
    assert spared["conv1"].reason == "excluded by 'conv*'"
    assert spared["norm1"].reason == "as conv1: excluded by 'conv*'"
    assert spared["attention.out_proj"].reason.startswith("as conv2: excluded by")
