"""How the weights move: the spectral edge and the commutator defect."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unchanged import unchanged
from tpsprune.records.readings import Reading, Status
from tpsprune.signals import updates as updates_module
from tpsprune.signals.signal import Readings, View
from tpsprune.signals.updates import (
    EDGE_SIGNALS,
    CommutatorDefect,
    EdgeMemory,
    SpectralEdge,
    commutator_defect,
    snapshot,
    trained_parameters,
)


def linear(inputs: int = 30, outputs: int = 20) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def walk(
    signal: SpectralEdge,
    model: nn.Linear,
    updates: list[Tensor],
    memory: EdgeMemory | None = None,
    spacing: int = 25,
    first: int = 0,
) -> tuple[EdgeMemory, list[tuple[Reading, ...]]]:
    """Read, then once more after each update."""
    memory = memory or signal.start()
    all_readings = []
    for round_, update in enumerate([torch.zeros(()), *updates], first):
        model.weight.data += update
        memory, readings = signal.step(memory, View(model, (), round_ * spacing, float(round_), {}))
        all_readings.append(readings)
    return memory, all_readings


def planted_updates(count: int, rank: int, generator: torch.Generator) -> list[Tensor]:
    directions = torch.randn(rank, 20, 30, generator=generator)
    return [
        torch.einsum("k,kab->ab", torch.randn(rank, generator=generator), directions)
        + 0.02 * torch.randn(20, 30, generator=generator)
        for _ in range(count)
    ]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_updates_in_k_directions_put_the_edge_at_k(rank: int, generator: torch.Generator) -> None:
    _, rounds = walk(SpectralEdge(window=8, seed=0), linear(), planted_updates(8, rank, generator))
    ratio, place, gap, *_ = rounds[-1]
    assert [each.signal for each in rounds[-1]] == [signal for signal, _ in EDGE_SIGNALS]
    assert place.value == rank
    assert ratio.value > 3.0
    assert gap.status is Status.OK


def test_readings_equal_a_singular_value_decomposition_of_the_updates(generator: torch.Generator) -> None:
    updates = [torch.randn(20, 30, generator=generator) for _ in range(13)]
    _, rounds = walk(SpectralEdge(window=10, seed=0), linear(), updates)
    sigma = torch.linalg.svdvals(torch.stack(updates[-10:]).flatten(1).double())
    ratios = sigma[:5] / sigma[1:6]
    ratio, place, gap, edge_gap, stability = rounds[-1]
    assert ratio.value == pytest.approx(float(ratios.max()), rel=1e-4)
    assert place.value == int(ratios.argmax()) + 1
    assert gap.value == pytest.approx(float(sigma[1] ** 2 - sigma[2] ** 2), rel=1e-3)
    k = int(place.value)
    assert edge_gap.value == pytest.approx(float(sigma[k - 1] - sigma[k]), rel=1e-3)
    before = torch.linalg.svdvals(torch.stack(updates[-11:-1]).flatten(1).double()).square()
    apart = min(
        abs(float(each - sigma[k - 1].square())) for each in sigma.square() if each != sigma[k - 1] ** 2
    )
    moved = float((sigma.square() - before).square().sum())
    assert stability.value == pytest.approx(max(0.0, 1 - moved / apart**2), rel=1e-2)


def test_noise_read_far_apart_has_hardly_an_edge(generator: torch.Generator) -> None:
    updates = [torch.randn(200, 300, generator=generator) for _ in range(10)]
    _, rounds = walk(SpectralEdge(window=10, seed=0), linear(300, 200), updates)
    assert rounds[-1][0].value < 1.05


def test_the_first_full_window_has_no_stability_and_one_that_stays_has_all_of_it(
    generator: torch.Generator,
) -> None:
    updates = planted_updates(4, 1, generator)
    _, rounds = walk(SpectralEdge(window=4, seed=0), linear(), [*updates, *updates])
    assert rounds[4][-1].status is Status.NOT_YET
    assert rounds[4][-2].status is Status.OK
    # The window holds the same four updates at every further reading, in another order.
    assert [each[-1].value for each in rounds[5:]] == pytest.approx([1.0] * 4, abs=1e-4)


def test_a_state_from_before_spectra_were_kept_reads_on(generator: torch.Generator) -> None:
    signal, model = SpectralEdge(window=4, seed=0), linear()
    memory, _ = walk(signal, model, planted_updates(4, 1, generator))
    tensors, values = signal.pack(memory)
    del values["spectrum"]
    _, rounds = walk(signal, model, planted_updates(2, 1, generator), signal.unpack(tensors, values), first=5)
    assert [each[-1].status for each in rounds] == [Status.NOT_YET, Status.OK, Status.OK]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.q, self.o = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.ModuleDict({"in_proj": nn.Linear(4, 12), "norm": nn.LayerNorm(4)})
        self.mixer = nn.MultiheadAttention(4, 2)
        self.mlp = nn.Linear(4, 4)


def test_of_attention_are_its_matrices_alone() -> None:
    model = Attending()
    model.o.requires_grad_(False)
    names = {id(each): name for name, each in model.named_parameters()}
    assert [names[id(each)] for each in trained_parameters(model, "attention")] == [
        "q.weight",
        "attention.in_proj.weight",
        "mixer.in_proj_weight",
        "mixer.out_proj.weight",
    ]
    assert snapshot(model, 0, "attention").numel() == 16 + 48 + 48 + 16
    assert len(trained_parameters(model)) == len(names) - 2


def test_a_model_without_attention_has_no_edge_of_it() -> None:
    _, rounds = walk(SpectralEdge(window=4, seed=0, of="attention"), linear(), [torch.ones(())] * 4)
    assert {each.reason for each in rounds[-1]} == {"no parameter is trained (attention)"}


def test_until_the_window_is_full_readings_count_the_updates(generator: torch.Generator) -> None:
    _, rounds = walk(SpectralEdge(window=5, seed=0), linear(), planted_updates(5, 1, generator))
    assert [each[0].reason for each in rounds[:5]] == [f"{count} of 5 updates seen" for count in range(5)]
    assert {reading.status for each in rounds[:5] for reading in each} == {Status.NOT_YET}
    assert rounds[5][0].status is Status.OK


def test_a_cut_starts_the_window_anew(generator: torch.Generator) -> None:
    signal = SpectralEdge(window=4, seed=0)
    memory, _ = walk(signal, linear(), planted_updates(4, 1, generator))
    smaller = linear(30, 10)
    memory, rounds = walk(signal, smaller, [], memory)
    assert rounds[0][0].reason == "0 of 4 updates seen"
    assert len(memory.snapshots) == 1


def test_snapshots_close_together_carry_the_caveat_about_momentum(generator: torch.Generator) -> None:
    updates = planted_updates(4, 1, generator)
    near = walk(SpectralEdge(window=4, seed=0), linear(), updates, spacing=3)[1][-1][0]
    far = walk(SpectralEdge(window=4, seed=0), linear(), updates, spacing=10)[1][-1][0]
    assert near.reason == "snapshots 3 steps apart: momentum alone can make a ratio of 1.8"
    assert far.reason == ""


def test_weights_that_stand_still_have_no_edge() -> None:
    _, rounds = walk(SpectralEdge(window=4, seed=0), linear(), [torch.zeros(())] * 4)
    assert {each.reason for each in rounds[-1]} == {"the parameters have not moved"}
    assert {each.status for each in rounds[-1]} == {Status.NOT_APPLICABLE}


def test_weights_that_are_not_finite_make_readings_that_say_so() -> None:
    _, rounds = walk(SpectralEdge(window=4, seed=0), linear(), [torch.full((), torch.nan)] * 4)
    assert {each.status for each in rounds[-1]} == {Status.NOT_FINITE}


def test_a_model_without_trainable_parameters_has_no_edge() -> None:
    model = linear().requires_grad_(False)
    _, rounds = walk(SpectralEdge(window=4, seed=0), model, [torch.ones(())] * 4)
    assert rounds[-1][0].status is Status.NOT_APPLICABLE


def test_a_memory_packed_and_unpacked_reads_on_as_if_nothing_had_happened(generator: torch.Generator) -> None:
    signal = SpectralEdge(window=5, seed=0)
    updates = planted_updates(9, 2, generator)
    model = linear()
    memory, _ = walk(signal, model, updates[:4])
    weight = model.weight.detach().clone()
    _, straight = walk(signal, model, updates[4:], memory, first=5)
    model.weight.data = weight
    _, resumed = walk(signal, model, updates[4:], signal.unpack(*signal.pack(memory)), first=5)
    assert resumed == straight
    assert resumed[-1][0].status is Status.OK


def test_large_models_are_sketched_and_read_nearly_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [2.0 ** -min(i, 3) * torch.randn(200, 300, generator=generator) for i in range(6)]
    exact = walk(SpectralEdge(window=6, seed=1), linear(300, 200), updates)[1][-1]
    monkeypatch.setattr(updates_module, "EXACT_BELOW", 1000)
    model = linear(300, 200)
    assert snapshot(model, 1).shape == (4096,)
    folded = walk(SpectralEdge(window=6, seed=1), model, updates)[1][-1]
    assert folded[0].value == pytest.approx(exact[0].value, rel=0.1)
    assert folded[2].value == pytest.approx(exact[2].value, rel=0.2)
    assert folded[0].value != exact[0].value


def symmetric(size: int) -> Tensor:
    matrix = torch.randn(size, size, dtype=torch.float64)
    return matrix + matrix.T


def test_of_two_quadratic_losses_it_is_the_commutator_of_their_hessians() -> None:
    a, b = symmetric(5), symmetric(5)
    theta = torch.randn(5, dtype=torch.float64)
    found = commutator_defect(theta, lambda p: a @ p, lambda p: b @ p)
    expected = ((a @ b - b @ a) @ theta).norm() / ((a @ theta).norm() * (b @ theta).norm())
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_losses_whose_hessians_commute_have_none() -> None:
    a = symmetric(5)
    theta = torch.randn(5, dtype=torch.float64)
    assert commutator_defect(theta, lambda p: a @ p, lambda p: a @ a @ p) < 1e-8


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def read(
    model: nn.Module, batches: tuple[Tensor, ...], labels: tuple[Tensor, ...], step: int = 1
) -> Readings:
    return CommutatorDefect().read(View(model, batches, step, 1.0, {}, labels=labels))


BATCHES = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),)
LABELS = (torch.arange(20) % 3,)


def descend(model: nn.Module, batches: list[tuple[Tensor, Tensor]], step_size: float) -> Tensor:
    """Two steps of plain gradient descent, one after the other."""
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    for inputs, labels in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_it_is_what_two_steps_in_either_order_leave_between_them() -> None:
    torch.manual_seed(0)
    model = net().double().eval()
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    inputs, labels = BATCHES[0].double(), LABELS[0]
    (reading,) = read(model, (inputs,), (labels,))
    generator, defects = torch.Generator().manual_seed(1), []
    for _ in range(5):
        order = torch.randperm(20, generator=generator)
        a, b = ((inputs[part], labels[part]) for part in (order[:10], order[10:]))
        ends, lengths = [], []
        for batches in ([a, b], [b, a]):
            model.load_state_dict(weights)
            before = torch.cat([each.detach().flatten() for each in model.parameters()])
            lengths.append((descend(model, batches[:1], 1e-3) - before).norm())
            model.load_state_dict(weights)
            ends.append(descend(model, batches, 1e-3))
        defects.append(float((ends[0] - ends[1]).norm() / (lengths[0] * lengths[1])))
    assert reading.value == pytest.approx(sorted(defects)[2], rel=1e-6)


def test_the_model_is_as_it_was_and_the_reading_depends_on_the_step_alone() -> None:
    torch.manual_seed(0)
    model = net()
    with unchanged(model):
        readings = [read(model, BATCHES, LABELS, step)[0].value for step in (1, 1, 2)]
    assert readings[0] == readings[1] != readings[2]


def test_without_labels_parameters_or_pairs_there_is_no_reading() -> None:
    frozen = net().requires_grad_(False)
    for model, batches, labels, reason in (
        (net(), BATCHES, (), "the calibration data have no labels or are not tensors"),
        (net(), BATCHES, (BATCHES[0][:, 0],), "the labels are not classes, one for each item"),
        (frozen, BATCHES, LABELS, "no parameter is trained"),
        (net(), (BATCHES[0][:1],), (LABELS[0][:1],), "one item makes no pair"),
    ):
        (reading,) = read(model, batches, labels)
        assert (reading.status, reading.reason) == (Status.NOT_APPLICABLE, reason)


def test_weights_that_are_not_finite_say_so() -> None:
    model = net()
    model[0].weight.data[0, 0] = torch.nan
    assert read(model, BATCHES, LABELS)[0].status is Status.NOT_FINITE


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_bd: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x_bd)}


def test_logits_are_found_in_a_wrapped_output_and_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    model = net()
    assert read(Wrapped(model), BATCHES, LABELS)[0].value == pytest.approx(
        read(model, BATCHES, LABELS)[0].value
    )
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    tied[2].weight = tied[0].weight
    assert read(tied, BATCHES, LABELS)[0].value > 0


def test_in_training_mode_dropout_counts_and_nothing_of_the_model_moves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    view = View(model, (torch.randn(60, 6),), 7, 1.0, {}, labels=(torch.arange(60) % 3,))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    calm, noisy, again = (
        CommutatorDefect(training=training).read(view)[0].value for training in (False, True, True)
    )
    assert noisy == again
    assert noisy != calm
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    plain = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    view = View(plain, view.calibration_batches, 7, 1.0, {}, labels=view.labels)
    modes = [CommutatorDefect(training=training).read(view) for training in (False, True)]
    assert modes[0] == modes[1], "without dropout and batch norms both modes are one"
