"""Extraction from models and batches that are not plain: graphs, lists, classes of one's own, wrappers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import tpsprune
from tests.unchanged import unchanged
from tpsprune.errors import PruneError
from tpsprune.numerics.forward import call_model

FEATURES, HIDDEN, CLASSES = 6, 24, 3
Graph = tuple[Tensor, Tensor, Tensor]


class Gcn(nn.Module):
    """Two graph convolutions Â relu(Â X W₁) W₂, Â dense; the edges are there to be seen as no items."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x_nf: Tensor, edge_index: Tensor, adjacency_nn: Tensor) -> Tensor:
        assert edge_index.shape == (2, int((adjacency_nn > 0).sum()))
        hidden_nh = relu(adjacency_nn @ self.first(x_nf))
        return adjacency_nn @ self.second(hidden_nh)


def graph(nodes: int) -> Graph:
    generator = torch.Generator().manual_seed(nodes)
    linked_nn = torch.rand(nodes, nodes, generator=generator) < 0.2
    linked_nn |= linked_nn.T | torch.eye(nodes, dtype=torch.bool)
    adjacency_nn = linked_nn / linked_nn.sum(1, keepdim=True)
    return torch.randn(nodes, FEATURES, generator=generator), linked_nn.nonzero().T, adjacency_nn


GRAPHS = [graph(nodes) for nodes in (40, 31, 57, 44)]


def gcn() -> Gcn:
    torch.manual_seed(0)
    return Gcn()


def macs(nodes: int, hidden: int) -> int:
    return nodes * hidden * (FEATURES + CLASSES) + nodes * nodes * (hidden + CLASSES)


def count_nodes(batch: Graph) -> int:
    return len(batch[0])


def test_graphs_of_several_sizes_are_pruned_and_the_share_is_that_of_the_closed_form() -> None:
    model = gcn()
    with unchanged(model):
        found = tpsprune.extract(model, GRAPHS, tpsprune.Widths({"first": 10}), items=count_nodes)
    assert isinstance(found.ticket, Gcn)
    assert found.ticket.first.weight.shape == (10, FEATURES)
    assert found.ticket.second.weight.shape == (CLASSES, 10)
    assert found.macs_share == pytest.approx(macs(40, 10) / macs(40, HIDDEN), abs=2e-3)
    assert [note for note in found.notes if "steps of repair" not in note] == []


def test_without_a_count_of_items_a_graph_is_refused_with_the_way_out() -> None:
    with pytest.raises(PruneError, match=r"cannot be called on two items .* items= of tpsprune\.extract"):
        tpsprune.extract(gcn(), GRAPHS)


class Records(nn.Module):
    """Takes a list of mappings, one for each item, of which each holds one vector."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, records: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([self.net(record["x"]) for record in records])


@dataclass
class Scene:
    """A batch of one's own class: it knows neither its device nor its length."""

    x: Tensor


class OfScenes(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, scene: Scene) -> Tensor:
        output: Tensor = self.net(scene.x)
        return output


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))


ROWS = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[Tensor], Any], Callable[[Any], int]]] = {
    "list of dicts": (Records, lambda part: [{"x": item} for item in part], len),
    "own class": (OfScenes, Scene, lambda scene: len(scene.x)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("net", "data"), [(mlp, ROWS), (cnn, IMAGES)])
def test_however_a_batch_is_dressed_the_ticket_is_that_of_the_plain_tensor(
    way: str, net: Callable[[], nn.Module], data: Tensor
) -> None:
    dress, batch_of, items = WAYS[way]
    plain = tpsprune.extract(net(), list(data.split(24)), tpsprune.Macs(0.6))
    dressed = tpsprune.extract(
        dress(net()), [batch_of(part) for part in data.split(24)], tpsprune.Macs(0.6), items=items
    )
    assert [each.kept for each in dressed.plan.groups] == [each.kept for each in plain.plan.groups]
    assert dressed.macs_share == plain.macs_share
    with torch.no_grad():
        aim, found, same = (
            call_model(model.eval(), batch)
            for model, batch in ((net(), data), (dressed.ticket, batch_of(data)), (plain.ticket, data))
        )
    lost, usual = ((each - aim).square().mean() for each in (found, same))
    assert lost < 1.5 * usual, "fitted as well, though on other places"


class Moving:
    """What has a method ``to`` is asked to move itself."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.asked = x, list[torch.device]()

    def to(self, device: torch.device) -> None:
        self.asked.append(device)


def test_an_object_that_can_move_is_moved() -> None:
    batches = [Moving(part) for part in ROWS.split(24)]
    tpsprune.extract(OfScenes(mlp()), batches, items=lambda each: len(each.x))
    assert all(each.asked == [torch.device("cpu")] for each in batches)


def test_a_ticket_of_graphs_is_repaired_and_no_worse_for_it() -> None:
    tickets = [
        tpsprune.extract(
            gcn(),
            GRAPHS,
            tpsprune.Widths({"first": 6}),
            items=count_nodes,
            compensate=False,
            repair=repairs,
        ).ticket
        for repairs in (False, True)
    ]
    with torch.no_grad():
        aim = gcn()(*GRAPHS[3])
        before, after = ((each(*GRAPHS[3]) - aim).square().mean() for each in tickets)
    assert after < before


@pytest.mark.parametrize(
    ("data", "items", "words"),
    [
        (ROWS, len, r"calibration_data is Tensor: with items=, a list or loader"),
        (GRAPHS, lambda graph: graph[3], r"items= fails on batch 0 .*IndexError"),
        (GRAPHS, lambda graph: graph[0], r"items= fails on batch 0 .*; expected a function"),
        (GRAPHS, lambda _: 0, r"items= counts 0 items in batch 0"),
        ([], len, r"empty"),
        (GRAPHS[:1], lambda _: 40, r"cannot be called on calibration batch 0: .*shape"),
    ],
)
def test_counts_that_cannot_be_are_reported(data: Any, items: Any, words: str) -> None:
    model = gcn() if "shape" not in words else nn.Sequential(nn.Linear(7, 3))
    batches = data if "shape" not in words else [GRAPHS[0][0]]
    with pytest.raises(PruneError, match=words):
        tpsprune.extract(model, batches, items=items)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
    ],
    ids=["replicated", "compiled", "both"],
)
def test_of_a_wrapped_model_the_ticket_is_that_of_what_it_wraps(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    plain, wrapped = (tpsprune.extract(net, ROWS) for net in (mlp(), wrap(mlp())))
    assert type(wrapped.ticket) is nn.Sequential
    assert wrapped.plan == plain.plan
    assert wrapped.macs_share == plain.macs_share < 1


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(8), mlp()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(self.norm(x))
        return output


def test_a_model_compiled_in_place_is_pruned_without_being_compiled() -> None:
    seen: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    # The dense model itself is called where batch norms are computed again, and in the repair.
    model, plain = Normed(), Normed()
    model.compile(backend=count)
    assert tpsprune.extract(model, ROWS, repair_steps=2).plan == tpsprune.extract(plain, ROWS).plan
    assert not seen
    model(ROWS)
    assert seen, "the backend is one that torch calls"


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: torch.jit.script(mlp()), r"the model is TorchScript .*prune the Python module"),
        (lambda: nn.Sequential(torch.jit.script(mlp())), r"its part '0' is TorchScript"),
        (quantised, r"its part '0' is quantised .*prune the model before it is quantised"),
        (
            lambda: nn.Sequential(torch.compile(mlp(), backend="eager")),
            r"its part '0' is compiled by itself",
        ),
    ],
    ids=["scripted", "scripted part", "quantised", "compiled part"],
)
def test_what_has_no_code_or_weights_to_prune_is_refused_at_once(
    model: Callable[[], nn.Module], words: str
) -> None:
    with pytest.raises(PruneError, match=words):
        tpsprune.extract(model(), ROWS)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        self.seen.add((len(left), len(right), scale.numel()))
        output: Tensor = self.net((left + right) * scale)
        return output


@pytest.mark.parametrize("keyed", [True, False])
def test_a_latency_is_measured_on_batches_of_several_parts(
    keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []

    def clock(model: nn.Module, batch: Any) -> Any:
        timed.append(batch)
        width = model.get_submodule("net.0").weight.shape[0]
        return type("Found", (), {"median_seconds": float(width)})

    monkeypatch.setattr("tpsprune.measure.batch_latency", clock)
    parts = (ROWS, ROWS.flip(0), torch.ones(1))
    batch = dict(zip(("left", "right", "scale"), parts, strict=True)) if keyed else parts
    found = tpsprune.extract(Sum(), [batch], tpsprune.Latency(0.5, batch_items=5), round_to=1)
    assert found.changes[0].width_after == 12
    left, right, scale = timed[0].values() if keyed else timed[0]
    assert torch.equal(left, ROWS[:1].expand(5, -1))
    assert torch.equal(right, ROWS[-1:].expand(5, -1))
    assert torch.equal(scale, torch.ones(1))


def test_joules_are_metered_by_the_callers_meter_on_so_many_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[int] = []

    def infer(_: float, model: nn.Module, batch: Any) -> int:
        answered.append(len(batch["left"]))
        return 2400 // model.get_submodule("net.0").weight.shape[0]

    monkeypatch.setattr("tpsprune.measure.infer_for", infer)
    batch = {"left": ROWS, "right": ROWS.flip(0), "scale": torch.ones(1)}
    with tpsprune.Meter("fake") as meter:
        found = tpsprune.extract(Sum(), [batch], tpsprune.Joules(0.5), meter=meter, round_to=1)
        spent = meter.take()
    assert found.changes[0].width_after == 12
    assert set(answered) == {64}
    assert spent.joules == 15.0 * len(spent.windows) > 0
    with pytest.raises(PruneError, match=r"joules=0\.5 needs a meter: .*meter=tpsprune\.Meter"):
        tpsprune.extract(Sum(), [batch], tpsprune.Joules(0.5))
    with tpsprune.Meter("none") as silent, pytest.raises(PruneError, match="a meter that meters"):
        tpsprune.extract(Sum(), [batch], tpsprune.Joules(0.5), meter=silent)


def test_a_latency_of_a_batch_that_cannot_be_split_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(model: nn.Module, batch: Any) -> Any:
        assert call_model(model, batch).shape == (40, CLASSES)
        return type("Found", (), {"median_seconds": float(model.get_submodule("first").weight.shape[0])})

    monkeypatch.setattr("tpsprune.measure.batch_latency", clock)
    found = tpsprune.extract(gcn(), GRAPHS, tpsprune.Latency(0.5), items=count_nodes, round_to=1)
    assert found.changes[0].width_after == 12


class TwoWays(nn.Module):
    """An encoder that is called alone, a decoder that only ``reconstruct`` calls, a head for training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 24), nn.ReLU())
        self.inner = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))
        self.decoder = nn.Linear(24, 8)

    def forward(self, x_bd: Tensor) -> Any:
        return self.inner(self.encoder(x_bd))

    def reconstruct(self, x_bd: Tensor) -> Tensor:
        return self.decoder(self.encoder(x_bd))


class WithAuxiliary(TwoWays):
    def forward(self, x_bd: Tensor) -> Any:
        hidden = self.encoder(x_bd)
        return (self.inner(hidden), self.decoder(hidden)) if self.training else self.inner(hidden)


def test_another_way_to_call_a_model_is_traced_proved_and_fitted() -> None:
    torch.manual_seed(0)
    model, inputs = TwoWays().eval(), torch.randn(512, 8)
    found = tpsprune.extract(
        model,
        inputs,
        tpsprune.Macs(0.5),
        also=[lambda model, batch: model.reconstruct(batch)],
        max_pruning_ratios={"inner.0": 0.3},
    )
    assert found.ticket.decoder.in_features == found.ticket.encoder[0].out_features < 24
    assert found.ticket.reconstruct(inputs).shape == (512, 8)
    dense, sliced = model.reconstruct(inputs), tpsprune.replay(model, found.plan).reconstruct(inputs)
    error, uncompensated = (
        (other - dense).square().mean() for other in (found.ticket.reconstruct(inputs), sliced)
    )
    assert error < uncompensated / 2, "its layer was fitted as well"


def test_a_layer_that_runs_in_training_only_keeps_its_inputs() -> None:
    torch.manual_seed(0)
    model, inputs = WithAuxiliary().eval(), torch.randn(512, 8)
    found = tpsprune.extract(model, inputs, tpsprune.Macs(0.8))
    assert [each.group for each in found.changes] == ["inner.0"]
    reasons = {each.name: each.reason for each in found.unpruned}
    assert reasons["encoder.0"].startswith(
        "a layer that runs in training only reads its units (RuntimeError: mat1"
    )
    first, second = found.ticket.train()(inputs)
    (first.sum() + second.sum()).backward()


def test_another_call_that_fails_is_named() -> None:
    also = [lambda model, batch: model(batch), lambda model, batch: model.absent(batch)]
    with pytest.raises(PruneError, match=r"also\[1\] fails on the first batch .* has no attribute 'absent'"):
        tpsprune.extract(mlp(), ROWS, also=also)
