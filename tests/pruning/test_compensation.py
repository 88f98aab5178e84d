"""The map against removal least squares, and a compensated layer against the dense one on estimates."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.nets_structure import conv1d
from tests.pruning.observed import elements_of, moments_of_rows, noise
from tpsprune.pruning import Consumer
from tpsprune.pruning.compensation import (
    RIDGES,
    Interpolation,
    Read,
    compensate,
    fit_interpolation,
    takes_intercept,
    weights_gram,
)
from tpsprune.pruning.layers import length, tensor_axes, update_sizes


def sampled(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


def removal_map(kept: tuple[int, ...], signals: int) -> Tensor:
    return torch.eye(signals, dtype=torch.float64)[:, list(kept)]


def read_error(y_rn: Tensor, x_rk: Tensor, found: Interpolation, gram_nn: Tensor) -> float:
    wrong_rn = y_rn - x_rk @ found.map_nk.T - found.intercept_n
    return float(((wrong_rn @ gram_nn) * wrong_rn).sum() / len(y_rn))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), intercept=st.booleans())
def test_without_ridge_the_map_is_ordinary_least_squares(seed: int, intercept: bool) -> None:
    x_rn = sampled(40, 6, seed=seed) + 2
    y_rn = x_rn @ sampled(6, 6, seed=seed + 1) + 1
    kept = (0, 2, 5)
    found = fit_interpolation(
        moments_of_rows(x_rn[:, kept], y_rn), kept, torch.eye(6).double(), intercept=intercept, ridges=(0.0,)
    )
    design = x_rn[:, kept]
    if intercept:
        design = torch.cat([design, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(design, y_rn).solution
    torch.testing.assert_close(found.map_nk.T, expected[:3])
    torch.testing.assert_close(found.intercept_n, expected[3] if intercept else torch.zeros(6).double())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ridges=st.sampled_from([RIDGES, (0.0,), (1e-4,), (1.0,), (1e4,)]),
    intercept=st.booleans(),
    loudness=st.floats(0.0, 2.0),
)
def test_whatever_the_ridge_compensation_is_never_worse_than_removal(
    seed: int, ridges: tuple[float, ...], intercept: bool, loudness: float
) -> None:
    x_rn = sampled(30, 5, seed=seed) + 0.5
    y_rn = x_rn + loudness * sampled(30, 5, seed=seed + 1)
    weight_qn = sampled(3, 5, seed=seed + 2)
    gram_nn = weight_qn.T @ weight_qn
    kept = (1, 3)
    found = fit_interpolation(
        moments_of_rows(x_rn[:, kept], y_rn), kept, gram_nn, intercept=intercept, ridges=ridges
    )
    removal = Interpolation(removal_map(kept, 5), torch.zeros(5).double(), None)
    errors = [read_error(y_rn, x_rn[:, kept], each, gram_nn) for each in (found, removal)]
    assert errors[0] <= errors[1] * (1 + 1e-9)
    assert found.ridge in {None, *ridges}
    if ridges == (1e4,):
        torch.testing.assert_close(found.map_nk, removal.map_nk, atol=1e-2, rtol=0)


def test_the_ridge_is_the_one_that_the_consumer_reads_best_on_items_held_out() -> None:
    x_rk = sampled(24, 4)
    exact = x_rk @ sampled(4, 3, seed=1)
    y_rn = torch.cat([x_rk, exact, exact + 4 * sampled(24, 3, seed=2)], dim=1)
    joints, kept = moments_of_rows(x_rk, y_rn), (0, 1, 2, 3)
    to_exact, to_noisy = (
        torch.diag(torch.tensor(each).double())
        for each in ([0.0] * 4 + [1.0] * 3 + [0.0] * 3, [0.0] * 7 + [1.0] * 3)
    )
    clean = fit_interpolation(joints, kept, to_exact, intercept=True)
    assert clean.ridge == RIDGES[0]
    estimate = x_rk @ clean.map_nk.T + clean.intercept_n
    torch.testing.assert_close(estimate[:, :7], y_rn[:, :7], rtol=0, atol=1e-6)
    noisy = fit_interpolation(joints, kept, to_noisy, intercept=True)
    assert noisy.ridge is None or noisy.ridge > RIDGES[0]


def test_where_a_map_would_only_overfit_removal_is_chosen() -> None:
    x_rn = sampled(16, 10, seed=3)
    y_rn = torch.cat([x_rn, sampled(16, 3, seed=4)], dim=1)  # Three that the others do not determine.
    kept = tuple(range(10))
    found = fit_interpolation(
        moments_of_rows(x_rn, y_rn, at_a_time=16), kept, torch.eye(13).double(), intercept=False
    )
    assert found.ridge is None
    assert torch.equal(found.map_nk, removal_map(kept, 13))
    assert not found.intercept_n.any()


CONSUMERS = {
    "linear": (lambda: nn.Linear(4, 3), Consumer("", 0, 1), (5, 4)),
    "convolution": (lambda: nn.Conv2d(4, 3, 3), Consumer("", 0, 1), (5, 4, 6, 6)),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), Consumer("", 0, 1), (5, 4, 6, 6),
    ),
    "behind a flattened image": (lambda: nn.Linear(8, 3), Consumer("", 0, 2, positions=2), (5, 8)),
    "among others": (lambda: nn.Conv2d(7, 3, 3), Consumer("", 2, 1), (5, 7, 6, 6)),
    "twice side by side": (lambda: nn.Linear(9, 3), Consumer("", 1, 1, repeat=2, stride=4), (5, 9)),
    "heads": (lambda: nn.Linear(12, 3), Consumer("", 0, 3), (5, 2, 12)),
    "blocks behind a flattened image": (lambda: nn.Linear(24, 3), Consumer("", 0, 6, positions=3), (5, 24)),
    "blocks in two halves": (
        lambda: nn.Linear(17, 3), Consumer("", 1, 2, repeat=2, stride=8, positions=2), (5, 17),
    ),
    "one group of two": (
        lambda: nn.Conv2d(8, 6, 3, groups=2), Consumer("", 4, 1, outputs=(3, 6)), (5, 8, 6, 6),
    ),
    "Conv1D": (lambda: conv1d(8, 3), Consumer("", 0, 2), (5, 2, 8)),
}  # fmt: skip


def without_inputs(layer: nn.Module, removed: list[int]) -> tuple[nn.Module, Tensor]:
    """Return a layer without some inputs, and those that are left."""
    narrow = copy.deepcopy(layer)
    kept = torch.tensor([each for each in range(length(layer, "in")) if each not in removed])
    axis = tensor_axes(layer, "in")["weight"]
    groups = getattr(layer, "groups", 1)
    of_group = kept[kept < length(layer, "in") // groups]
    narrow.weight = nn.Parameter(layer.weight.detach().index_select(axis, of_group))
    update_sizes(narrow)
    return narrow, kept


@pytest.mark.parametrize("name", [each for each in CONSUMERS if each != "one group of two"])
@pytest.mark.parametrize("fewer_outputs", [False, True], ids=["all outputs", "fewer outputs"])
def test_a_compensated_layer_gives_of_the_kept_signals_what_it_would_of_their_estimates(
    name: str, fewer_outputs: bool
) -> None:
    torch.manual_seed(0)
    make, consumer, shape = CONSUMERS[name]
    layer, batch = make().double(), sampled(*shape)
    places = elements_of(consumer, 4)
    read = Read(consumer, 4, (1, 3))
    found = Interpolation(
        sampled(len(places), len(read.signals), seed=1),
        sampled(len(places), seed=2) * takes_intercept(layer),
        1e-4,
    )
    axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
    rows, estimated = batch.movedim(axis, 0), batch.clone()
    for signal, elements in enumerate(places):
        for position, element in enumerate(elements):
            estimate = sum(
                found.map_nk[signal, rank] * rows[places[each][position]]
                for rank, each in enumerate(read.signals)
            )
            estimated.movedim(axis, 0)[element] = estimate + found.intercept_n[signal]
    removed = [e for n, elements in enumerate(places) if n not in read.signals for e in elements]
    narrow, kept_c = without_inputs(layer, removed)
    outputs_q = None
    if fewer_outputs:
        outputs_q = torch.tensor([0, 2])
        out_axis = tensor_axes(narrow, "out")["weight"]
        narrow.weight = nn.Parameter(narrow.weight.detach().index_select(out_axis, outputs_q))
        narrow.bias = nn.Parameter(narrow.bias.detach()[outputs_q])
        update_sizes(narrow)
    expected = layer(estimated)
    expected = expected if outputs_q is None else expected.index_select(axis, outputs_q)
    inside = read.in_ticket(length(layer, "in"), [read], outputs_q)
    compensate(narrow, layer, read, inside, found, outputs_q)
    torch.testing.assert_close(narrow(batch.index_select(axis, kept_c)), expected)


@pytest.mark.parametrize("outputs", [None, [1, 2, 3, 4]], ids=["all outputs", "fewer outputs"])
def test_each_consumer_of_a_layer_is_compensated_by_itself(outputs: list[int] | None) -> None:
    """The groups of a convolution, and the parts of a concatenation: one after the other is both at once."""
    layer, batch = nn.Conv2d(8, 6, 3, groups=2).double(), sampled(5, 8, 6, 6)
    estimated = batch.clone()
    narrow, kept_c = without_inputs(layer, [1, 2, 5, 6])
    outputs_q = None if outputs is None else torch.tensor(outputs)
    if outputs_q is not None:
        narrow.weight = nn.Parameter(narrow.weight.detach()[outputs_q])
        narrow.bias = nn.Parameter(narrow.bias.detach()[outputs_q])
        update_sizes(narrow)
    reads = [Read(Consumer("", at, 1, outputs=rows), 4, (0, 3)) for at, rows in ((0, (0, 3)), (4, (3, 6)))]
    for read in reads:
        offset = read.consumer.offset
        found = Interpolation(sampled(4, 2, seed=offset), sampled(4, seed=offset + 1), 1e-4)
        compensate(narrow, layer, read, read.in_ticket(8, reads, outputs_q), found, outputs_q)
        units = batch[:, [offset, offset + 3]]
        estimate = torch.einsum("nk,bkhw->bnhw", found.map_nk, units) + found.intercept_n[:, None, None]
        estimated[:, offset : offset + 4] = estimate
    expected = layer(estimated) if outputs_q is None else layer(estimated)[:, outputs_q]
    torch.testing.assert_close(narrow(batch[:, kept_c]), expected)


@pytest.mark.parametrize("name", CONSUMERS)
def test_the_gram_matrix_is_what_errors_of_the_signals_cost_at_the_output(name: str) -> None:
    torch.manual_seed(0)
    make, consumer, _ = CONSUMERS[name]
    layer = make().double()
    cost_q = torch.rand(len(layer.bias), dtype=torch.float64)
    gram_nn = weights_gram(layer, consumer, 4, cost_q)
    weight = layer.weight.detach()
    weight = weight if isinstance(layer, nn.Linear | nn.Conv2d) else weight.transpose(0, 1)
    low, high = consumer.outputs or (0, len(layer.bias))
    expected = torch.zeros_like(gram_nn)
    for q in range(low, high):
        for i, mine in enumerate(elements_of(consumer, 4)):
            for j, other in enumerate(elements_of(consumer, 4)):
                pair = zip(mine, other, strict=True)
                inputs = weight.shape[1]
                estimate = sum((weight[q, a % inputs] * weight[q, b % inputs]).sum() for a, b in pair)
                expected[i, j] += cost_q[q] * estimate
    torch.testing.assert_close(gram_nn, expected)
